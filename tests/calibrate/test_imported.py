"""Optimiser states that a trainer kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.statistics import open_statistics
from evomerge.errors import CheckpointError
from tests.calibrate.world import (
    asked,
    collect,
    loglikelihood,
    plain_model,
    relative,
    statistics,
)
from tests.merging import tensors_of

NAME = "model.layers.0.mlp.up_proj.weight"


def squares(world: Path) -> dict[str, torch.Tensor]:
    """Something for every tensor of the base."""
    return {name: t.square() + 1e-9 for name, t in tensors_of(world / "base").items()}


def states(folder: Path, tensors: dict[str, torch.Tensor], name: str = "states") -> Path:
    path = folder / f"{name}.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("before", "behind"),
    [("", ""), ("", ".exp_avg_sq"), ("module.", ".exp_avg_sq"), ("_orig_mod.module.", "")],
)
def test_names(world: Path, tmp_path: Path, before: str, behind: str) -> None:
    wanted = squares(world)
    stored = {f"{before}{name}{behind}": t for name, t in wanted.items()}
    stored |= {f"{name}.exp_avg": -t for name, t in wanted.items()}
    stored |= {f"{name}.step": torch.tensor(5.0) for name in wanted}
    path = states(tmp_path, stored)
    seen: list[str] = []
    found = statistics(
        world, tmp_path / "s", states={"adds": path}, observe=lambda what, *_: seen.append(what)
    )
    assert found.kinds("adds") == {"second_moment"}
    assert found.kinds("names") == frozenset()
    for name, tensor in wanted.items():
        read = found.read("second_moment", "adds", name)
        assert read is not None
        assert torch.equal(read, tensor)
    assert seen
    assert collect(world, tmp_path / "s", states={"adds": path}).lines[0].seconds is None


def test_with_what_is_collected_for_the_others(world: Path, tmp_path: Path) -> None:
    path = states(tmp_path, squares(world))
    found = statistics(world, tmp_path / "s", "second_moment", states={"adds": path}, items=2)
    imported, collected = (found.read("second_moment", e, NAME) for e in ("adds", "names"))
    assert imported is not None
    assert torch.equal(imported, squares(world)[NAME])
    assert collected is not None
    assert not torch.equal(imported, collected)


def test_narrower_dtypes_are_widened(world: Path, tmp_path: Path) -> None:
    wanted = {n: t.to(torch.bfloat16) for n, t in squares(world).items()}
    found = statistics(world, tmp_path / "s", states={"adds": states(tmp_path, wanted)})
    read = found.read("second_moment", "adds", NAME)
    assert read is not None
    assert torch.equal(read, wanted[NAME].float())


def test_what_a_file_lacks_is_named(world: Path, tmp_path: Path) -> None:
    path = states(tmp_path, {NAME: squares(world)[NAME]})
    report = collect(world, tmp_path / "s", states={"adds": path})
    (note,) = report.notes
    assert "model.layers.0.mlp.down_proj.weight" in note
    found = open_statistics(str(tmp_path / "s"))
    assert list(found.collections[0].tensors) == [NAME]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other.weight": torch.ones(3)}, r"no state of a tensor.*found other\.weight"),
        ({NAME: torch.ones(3)}, r"shape \[3\], expected.*\[64, 32\]"),
        ({NAME: torch.ones(64, 32, dtype=torch.int32)}, "floating point"),
        ({NAME: torch.full((64, 32), -1.0)}, "negative or not finite"),
        ({NAME: torch.full((64, 32), float("nan"))}, "negative or not finite"),
        ({f"x.lora_A.{NAME}": torch.ones(3)}, "LoRA factor"),
    ],
)
def test_what_cannot_be_meant(
    world: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        collect(world, tmp_path / "s", states={"adds": states(tmp_path, tensors)})


def test_pickles_are_refused_with_the_way_to_convert_them(world: Path, tmp_path: Path) -> None:
    torch.save({"state": {0: {"exp_avg_sq": torch.ones(3)}}}, tmp_path / "optimizer.pt")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02}q\x00.")
    for name in ("optimizer.pt", "old.pt"):
        with pytest.raises(CheckpointError, match=r"pickled.*weights_only=True.*save_file"):
            collect(world, tmp_path / "s", states={"adds": tmp_path / name})
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_the_conversion_that_the_error_gives_works(world: Path, tmp_path: Path) -> None:
    """Its lines, run as they stand, on the state of a real optimiser."""
    model = plain_model(world, "adds")
    named = dict(model.named_parameters())
    optimiser = torch.optim.Adam(named.values())
    ids, answer = asked(world, "adds")[0]
    loglikelihood(model, ids, answer).backward()
    gradient = model.get_parameter(NAME).grad.clone()
    optimiser.step()
    torch.save(optimiser.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError) as refused:
        collect(world, tmp_path / "s", states={"adds": tmp_path / "optimizer.pt"})
    lines = re.findall("`([^`]*)`", str(refused.value))
    assert len(lines) == 3
    exec("\n".join(lines).replace('"optimizer.', f'"{tmp_path}/optimizer.'), {"names": [*named]})
    path = tmp_path / "optimizer.safetensors"
    found = statistics(world, tmp_path / "s", states={"adds": path})
    read = found.read("second_moment", "adds", NAME)
    assert relative(read, 0.001 * gradient.double().square()) < 1e-6


def test_a_file_that_is_not_there(world: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        collect(world, tmp_path / "s", states={"adds": tmp_path / "none.safetensors"})
