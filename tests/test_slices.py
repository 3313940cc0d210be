"""Slice by slice a merge has the bits that it has whole."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import slice_forms, slices
from evomerge.errors import CheckpointError
from evomerge.export import Producer, Room, export
from evomerge.instantiate import open_merge
from evomerge.recipe import Recipe
from tests.merging import tensors_of, with_tensors
from tests.sliced import HEAD, UP, recipe, write_models

CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"weight": {"a": 0.25, "b": 0.5, "c": 1.0}}),
    ("task_arithmetic", {"weight": {"a": 0.3, "b": -0.7, "c": 1.0}, "scale": 0.9}),
    ("ties", {"density": 0.2}),
    ("ties", {"weight": {"a": 0.5, "b": 1.0, "c": -0.7}, "density": 0.37, "scale": 0.8}),
    ("ties", {"density": {"a": 0.0, "b": 1.0, "c": 0.01}, "normalise": False}),
    ("ties", {"weight": {"a": 0.0, "b": 1e-46, "c": 0.0}, "density": 1.0}),
    ("dare_linear", {"density": 0.3, "scale": 1.1}),
    ("dare_ties", {"density": 0.3, "weight": 0.4}),
    ("dare_ties", {"density": {"a": 0.0, "b": 1.0, "c": 0.5}, "normalise": False}),
    ("slerp", {"t": 0.3}),
    ("iso_c", {"scale": 0.7}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def bits(tensor: torch.Tensor) -> list[int]:
    raw: list[int] = tensor.contiguous().view(torch.uint8).flatten().tolist()
    return raw


@pytest.mark.parametrize("dtype", ["base", "float32"])
@pytest.mark.parametrize(("method", "values"), CASES)
def test_the_bits_are_those_of_the_whole(
    models: Path, monkeypatch: pytest.MonkeyPatch, method: str, values: dict[str, Any], dtype: str
) -> None:
    monkeypatch.setattr(slice_forms, "SLICE", 512)
    monkeypatch.setattr(slice_forms, "_ROW", 128)
    monkeypatch.setattr("evomerge.methods.numerics._ROW", 128)
    experts = {"a": "a", "b": "far"} if method == "slerp" else {"a": "a", "b": "b", "c": "c"}
    made = recipe(models, method, values, **experts).model_copy(update={"dtype": dtype})
    whole, streamed = open_merge(made), open_merge(made, streaming=True)
    produce = Producer(streamed)
    for name in whole.sources.base.tensors:
        sliced = torch.cat([part.clone() for part in produce(name)])
        expected = whole.tensor(name)
        assert sliced.dtype == expected.dtype
        assert bits(sliced) == bits(expected), name
        if method != "iso_c" and streamed.group(name) is not None:
            assert slices.in_slices(streamed, name) is not None
    if method == "iso_c":  # the formula sees whole matrices, the policy for the rest slices
        assert slices.in_slices(streamed, UP) is None
        assert slices.in_slices(streamed, HEAD) is not None


def test_experts_of_equal_content_are_read_once(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(models, "task_arithmetic", {}, a="a", b="twin", c="b", d="base")
    streamed = open_merge(made, streaming=True)
    tensor = slices.in_slices(streamed, UP)
    assert tensor is not None
    assert list(tensor.same) == [0, 0, 2, -1]
    sliced = torch.cat(list(slices.merged(tensor))).reshape(64, 32)
    assert torch.equal(sliced, open_merge(made).merged(UP))


@settings(deadline=None)
@given(
    values=st.lists(st.floats(0, 10, width=32), min_size=1, max_size=50),
    times=st.integers(1, 4000),
    at=st.floats(0, 1),
    ordered=st.booleans(),
)
def test_the_selection_is_exact(values: list[float], times: int, at: float, ordered: bool) -> None:
    array = np.tile(np.array(values, np.float32), times)
    if ordered:
        array = np.sort(array)
    rank = min(int(at * array.size), array.size - 1)
    assert slice_forms.selected(array, rank) == np.sort(array)[rank]


def test_a_source_with_nan_is_refused_when_its_tensor_comes(models: Path, tmp_path: Path) -> None:
    tensors = tensors_of(models / "a")
    tensors[UP][3, 4] = float("nan")
    broken = with_tensors(models / "a", tmp_path / "broken", tensors)
    made = recipe(models, "ties", {}, a=str(broken), b="b")
    with pytest.raises(CheckpointError, match=r"NaN or Inf.*a: tensor 'model\.layers\.0\.mlp\.up"):
        export(open_merge(made, streaming=True), tmp_path / "out", "")
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]
    elsewhere = made.model_dump(exclude_none=True) | {"parameters": [{"tensors": "head/*/*"}]}
    export(open_merge(Recipe.model_validate(elsewhere), streaming=True), tmp_path / "out", "")


def test_the_number_of_threads_changes_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(models, "tsv_m", {}, a="a", b="b")  # decompositions, of whole tensors
    digests = set()
    for count in (1, 2, 5):
        monkeypatch.setattr("evomerge.export.cores", lambda count=count: count)
        digests.add(export(open_merge(made, streaming=True), tmp_path / str(count), ""))
    assert len(digests) == 1


def test_whole_tensors_share_the_room() -> None:
    room, entered = Room(100), threading.Event()

    def take(size: int) -> None:
        with room.taken(size):
            entered.set()

    with room.taken(60), room.taken(40):
        waiting = threading.Thread(target=take, args=(500,))
        waiting.start()
        assert not entered.wait(0.05)
    waiting.join()
    assert entered.is_set()  # larger than the bound, and alone
