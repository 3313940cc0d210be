from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints import catalog as module
from evomerge.checkpoints.adapter import open_adapter
from evomerge.checkpoints.catalog import catalog, fingerprint
from evomerge.checkpoints.digest import combine, tensor_digest
from evomerge.checkpoints.open import open_checkpoint

Tensors = dict[str, torch.Tensor]
Make = Callable[..., Path]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The tensors that were really read."""
    seen: list[torch.Tensor] = []
    real = module.scan

    def scan(tensor: torch.Tensor) -> tuple[str, bool]:
        seen.append(tensor)
        return real(tensor)

    monkeypatch.setattr(module, "scan", scan)
    return seen


def test_digests_are_those_of_the_tensors(make: Make, weights: Tensors) -> None:
    found = catalog(open_checkpoint(make("m", weights, shards=2)))
    assert found.digests == {name: tensor_digest(tensor) for name, tensor in weights.items()}
    assert found.nonfinite == frozenset()


def test_nonfinite_tensors_are_named(make: Make, weights: Tensors) -> None:
    weights["model.norm.weight"][2] = float("nan")
    weights["lm_head.weight"][1, 1] = float("inf")
    path = make("m", weights)
    expected = frozenset({"model.norm.weight", "lm_head.weight"})
    assert catalog(open_checkpoint(path)).nonfinite == expected
    assert catalog(open_checkpoint(path)).nonfinite == expected  # from the cache


def test_second_time_nothing_is_read(
    make: Make, weights: Tensors, scans: list[torch.Tensor]
) -> None:
    path = make("m", weights, shards=3)
    first = catalog(open_checkpoint(path))
    assert len(scans) == len(weights)
    assert catalog(open_checkpoint(path)) == first
    assert len(scans) == len(weights)


def test_a_changed_file_is_read_again(
    make: Make, weights: Tensors, scans: list[torch.Tensor]
) -> None:
    path = make("m", weights)
    first = catalog(open_checkpoint(path))
    file = path / "model.safetensors"
    weights["lm_head.weight"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    os.utime(file, ns=(0, 1))  # same size, another time
    second = catalog(open_checkpoint(path))
    assert len(scans) == 2 * len(weights)
    changed = {name for name in weights if first.digests[name] != second.digests[name]}
    assert changed == {"lm_head.weight"}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 1}',
        b'{"version": 0, "file": [], "tensors": {}}',
        b"\xff\xfe",
    ],
)
def test_damaged_cache_is_rebuilt(
    make: Make, weights: Tensors, cache: Path, scans: list[torch.Tensor], damage: bytes
) -> None:
    path = make("m", weights)
    first = catalog(open_checkpoint(path))
    (entry,) = (cache / "catalog").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage)
    assert catalog(open_checkpoint(path)) == first
    assert len(scans) == 2 * len(weights)
    assert entry.read_bytes() == good


@pytest.mark.parametrize("value", [None, [], ["00", True], ["0" * 64, 1], ["0" * 64], 3])
def test_damaged_cache_value_is_rebuilt(
    make: Make, weights: Tensors, cache: Path, value: object
) -> None:
    path = make("m", weights)
    first = catalog(open_checkpoint(path))
    (entry,) = (cache / "catalog").iterdir()
    content = json.loads(entry.read_text())
    content["tensors"]["lm_head.weight"] = value
    entry.write_text(json.dumps(content))
    assert catalog(open_checkpoint(path)) == first


def test_unwritable_cache_is_no_obstacle(
    make: Make, weights: Tensors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(file))
    assert set(catalog(open_checkpoint(make("m", weights))).digests) == set(weights)


def test_fingerprint_does_not_depend_on_shards(make: Make, weights: Tensors) -> None:
    one, two = (
        open_checkpoint(make("one", weights)),
        open_checkpoint(make("two", weights, shards=2)),
    )
    expected = combine({name: tensor_digest(tensor) for name, tensor in weights.items()})
    assert fingerprint(one) == fingerprint(two) == expected


def test_fingerprint_of_an_adapter_counts_its_scaling(make_adapter: Callable[..., Path]) -> None:
    stem = "base_model.model.model.layers.0.mlp.down_proj"
    factors = {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(4, 2)}
    paths = [
        make_adapter("a", factors),
        make_adapter("b", factors, lora_dropout=0.5, base_model_name_or_path="elsewhere"),
        make_adapter("c", factors, lora_alpha=8),
        make_adapter("d", factors, use_rslora=True),
        make_adapter("e", factors, fan_in_fan_out=True),
    ]
    a, b, c, d, e = (fingerprint(open_adapter(path)) for path in paths)
    assert a == b
    assert len({a, c, d, e}) == 4
