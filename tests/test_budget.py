from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.budget import choose, measure, parse
from evomerge.checkpoints.catalog import fingerprint
from evomerge.checkpoints.open import Buffered, open_checkpoint
from evomerge.errors import ConfigError
from evomerge.export import export
from evomerge.instantiate import Merge, open_merge
from evomerge.plan import plan
from evomerge.recipe import Recipe
from tests.merging import lora_expert, tensors_of
from tests.sliced import recipe, write_models

SLICE = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    for module in ("slice_forms", "slices", "budget"):
        monkeypatch.setattr(f"evomerge.{module}.SLICE", SLICE)


def opened(models: Path, method: str = "ties", **experts: str) -> Merge:
    made = recipe(models, method, {}, **(experts or {"a": "a", "b": "b", "c": "c"}))
    return open_merge(made, streaming=True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that were read of each model while tensors were merged."""
    found: dict[str, int] = {}
    whole = Buffered.part

    def part(self: Buffered, info: Any, start: int, stop: int) -> torch.Tensor:
        tensor = whole(self, info, start, stop)
        name = info.file.parent.name
        found[name] = found.get(name, 0) + tensor.numel() * tensor.element_size()
        return tensor

    monkeypatch.setattr(Buffered, "part", part)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1000", 1000), ("2GB", 2 * 10**9), ("1.5 MiB", 1572864), ("25%", 0.25), ("0.25", 0.25),
     ("1.0", 1.0), ("1", 1), ("0", 0), ("100%", 1.0)],
)  # fmt: skip
def test_budgets_are_bytes_or_shares(text: str, expected: float) -> None:
    found = parse(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["", "GB", "-1", "much", "101%", "nan", "inf"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected bytes"):
        parse(text)


def test_norms_that_are_not_known_are_asked_for(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"norms of .* are not known"):
        choose(opened(models), 0.5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_bound_is_the_norm_of_what_was_left_out(
    models: Path, tmp_path: Path, reads: dict[str, int], share: float
) -> None:
    merge = opened(models, "task_arithmetic", a="a", b="b", c="far")
    measure(merge)
    choice = choose(merge, share)
    assert choice.read <= share * choice.available
    assert choice.read >= 0.9 * share * choice.available
    reads.clear()
    export(merge, tmp_path / "out", "", choice=choice)
    assert sum(reads.get(name, 0) for name in ("a", "b", "far")) == choice.read

    base, written = tensors_of(models / "base"), tensors_of(tmp_path / "out")
    named = {"a": "a", "b": "b", "c": "far"}
    left = dict.fromkeys(named, 0.0)
    for name in base:
        start = base[name].float().flatten()
        total = start.clone()
        for i, (label, at) in enumerate(named.items()):
            delta = tensors_of(models / at)[name].float().flatten() - start
            if not delta.any():
                continue
            kept = choice.kept[name][i]
            for number, block in enumerate(delta.split(SLICE)):
                if number not in kept:
                    left[label] += float(block.double().square().sum())
                    block.zero_()
            total += 0.3 * delta
        expected = total.to(base[name].dtype).reshape(base[name].shape)
        torch.testing.assert_close(written[name], expected)
    for label, square in left.items():
        assert choice.left_out[label] == pytest.approx(math.sqrt(square), rel=1e-5)
    stored = json.loads((tmp_path / "out" / "lineage.json").read_text())["io_budget"]
    assert stored["left_out_norm"] == choice.left_out
    assert (tmp_path / "out" / "recipe.yaml").read_text().startswith("# merged with an I/O budget")


def test_the_largest_task_vectors_are_read_first(models: Path) -> None:
    merge = opened(models, a="a", b="far")
    measure(merge)
    choice = choose(merge, 0.4)
    near, far = (sum(len(kept[i]) for kept in choice.kept.values()) for i in (0, 1))
    assert near <= 2  # a short last slice fits where no other does
    assert far > 20


def test_the_whole_budget_is_the_whole_merge(models: Path, tmp_path: Path) -> None:
    merge = opened(models, a="a", b="twin", c="c", d="base")
    measure(merge)
    choice = choose(merge, 1.0)
    assert choice.read == choice.available
    assert set(choice.left_out.values()) == {0.0}
    digest = export(merge, tmp_path / "some", "", choice=choice)
    assert digest == export(opened(models, a="a", b="twin", c="c", d="base"), tmp_path / "all", "")


def test_a_merge_leaves_the_norms_behind(models: Path, tmp_path: Path) -> None:
    export(opened(models, a="a", b="twin"), tmp_path / "out", "")
    again = opened(models, a="a", b="twin")
    assert measure(again) == 0
    assert choose(again, 0.5).whole["a"] == pytest.approx(choose(again, 0.5).whole["b"])


def test_only_what_is_merged_in_slices_has_a_budget(models: Path, tmp_path: Path) -> None:
    lora = lora_expert(models / "base", tmp_path / "lora", 1, "up_proj")
    for merge in (opened(models, "iso_c"), opened(models, a="a", b=str(lora))):
        with pytest.raises(ConfigError, match="full checkpoints and the methods"):
            measure(merge)


# --- lineage and plan ----------------------------------------------------------------------------


def test_lineage_says_where_a_model_comes_from(models: Path, tmp_path: Path) -> None:
    merge = opened(models)
    digest = export(merge, tmp_path / "out", "")
    found = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert found["weights"] == digest == fingerprint(open_checkpoint(tmp_path / "out"))
    assert found["base"]["sha256"] == fingerprint(open_checkpoint(models / "base"))
    for name in "abc":
        assert found["experts"][name]["sha256"] == fingerprint(open_checkpoint(models / name))


def test_lineage_of_sources_that_were_read_in_part(models: Path, tmp_path: Path) -> None:
    made = recipe(models, "ties", {}, a="a").model_copy(deep=True)
    data = made.model_dump(exclude_none=True)
    data["parameters"] = [{"tensors": "language/0/mlp"}]
    export(open_merge(Recipe.model_validate(data), streaming=True), tmp_path / "out", "")
    found = json.loads((tmp_path / "out" / "lineage.json").read_text())["experts"]["a"]
    assert found["sha256"] is None
    assert (found["known"], found["tensors"]) == (1, 4)


def test_a_plan_before_and_after_the_catalogue(
    models: Path, tmp_path: Path, reads: dict[str, int]
) -> None:
    names = {"a": "a", "b": "twin", "c": "base"}
    size = sum(t.nbytes for t in tensors_of(models / "base").values())
    first = plan(opened(models, **names), tmp_path / "out")
    assert first.reads == dict.fromkeys(["base", "a", "b", "c"], size)
    assert (first.unknown, first.writes) == (3 * size, size)
    assert (first.moved, first.tensors) == (4, 4)
    assert first.seconds > 0
    export(opened(models, **names), tmp_path / "out", "")
    second = plan(opened(models, **names), tmp_path / "out")
    table = tensors_of(models / "base")["model.embed_tokens.weight"].nbytes
    assert second.reads == {"base": size, "a": size - table, "b": 0, "c": 0}
    assert (second.unknown, second.moved) == (0, 3)
    reads.clear()
    export(opened(models, **names), tmp_path / "again", "")  # and so it is
    assert reads["a"] <= 2 * second.reads["a"]  # once for TIES' thresholds, once to merge
    assert "twin" not in reads
