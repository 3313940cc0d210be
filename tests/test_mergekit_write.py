"""Recipes written for mergekit, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.errors import ConfigError
from evomerge.instantiate import open_merge
from evomerge.mergekit.read import load_any
from evomerge.mergekit.shared import WRITTEN_AS
from evomerge.mergekit.write import to_mergekit
from evomerge.methods import get_method
from evomerge.recipe import Recipe, load_recipe
from tests.merging import full_expert, lora_expert, tensors_of
from tests.models import tiny_llama, tiny_qwen2_vl

EVERYTHING = "*/*/*"
ONE, TWO = {"a": "a"}, {"a": "a", "b": "b"}
THREE = {**TWO, "lora": "lora"}
WEIGHTS = {"a": 0.8, "b": 0.5, "lora": 0.1}
OTHER = {"a": 0.1, "b": 0.7, "lora": 1.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    tiny_llama(folder / "base", dtype="bfloat16")
    for seed, name in enumerate("abc"):
        full_expert(folder / "base", folder / name, seed, pattern=".")
    lora_expert(folder / "base", folder / "lora", 7)
    return folder


def load(folder: Path, base: str = "base", **content: Any) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"base": base, **content}))
    return load_recipe(path)


def round_trip(folder: Path, recipe: Recipe) -> tuple[dict[str, Any], Recipe]:
    """The configuration, and the recipe that it is read as."""
    text, _ = to_mergekit(recipe)
    path = folder / "written.yml"
    path.write_text(text)
    return yaml.safe_load(text), load_any(path)[0]


def tensors(recipe: Recipe) -> Mapping[str, torch.Tensor]:
    merge = open_merge(recipe)
    return {name: merge.tensor(name) for name in merge.sources.base.tensors}


def whole(**values: Any) -> list[dict[str, Any]]:
    return [{"tensors": EVERYTHING, **values}]


def by_place(**common: Any) -> list[dict[str, Any]]:
    """Weights that differ by block and kind of module; embeddings and head stay at base."""
    return [
        {"tensors": "language/0/attention,norm", "weight": WEIGHTS, **common},
        {"tensors": "language/1/attention,norm", "weight": OTHER, **common},
        {"tensors": "language/*/mlp", "weight": 0.4, **common},
    ]


CASES: dict[str, tuple[str, dict[str, str], list[dict[str, Any]]]] = {
    "linear": ("linear", THREE, whole(weight=WEIGHTS)),
    "linear by place": ("linear", THREE, by_place()),
    "linear with the base": (
        "linear",
        {**TWO, "same": "base"},
        [{"tensors": "*/*/mlp", "weight": {"a": 0.3, "b": 0.3, "same": 1}}],
    ),
    "task_arithmetic": ("task_arithmetic", THREE, by_place(scale=0.7)),
    "ties": ("ties", THREE, whole(weight=WEIGHTS, density=0.3, scale=1.2)),
    "ties by place": ("ties", THREE, by_place(density={"a": 0.3, "b": 1, "lora": 0.1})),
    "ties as a sum": ("ties", TWO, whole(weight=0.5, density=0.5, normalise=False)),
    "dare_linear": ("dare_linear", THREE, by_place(density=0.3)),
    "dare_ties": ("dare_ties", THREE, by_place(density=0.3)),
    "della": ("della", THREE, by_place(density=0.5, epsilon=0.2)),
    "della_linear": ("della_linear", TWO, whole(weight=0.5, density=1.0)),
    "breadcrumbs": ("breadcrumbs", THREE, by_place(density=0.3, gamma=0.05)),
    "breadcrumbs_ties": ("breadcrumbs_ties", TWO, whole(density=0.99, gamma=0.05)),
    "sce": ("sce", THREE, [{"tensors": "language/*/*", "density": 0.4}]),
    "ram": ("ram", THREE, whole(epsilon=0.05, r=0.3)),
    "model_stock": ("model_stock", THREE, whole()),
    "model_stock by row": ("model_stock", THREE, whole(per_row=True)),
    "karcher": ("karcher", THREE, whole()),
    "nuslerp": ("nuslerp", TWO, whole(weight={"a": 0.2, "b": 0.6}, row_wise=True)),
    "nuslerp of changes": ("nuslerp", TWO, whole(weight=1.0, task_vectors=True)),
    "multislerp": ("multislerp", TWO, whole(weight={"a": 0.2, "b": 0.6})),
    "multislerp of changes": ("multislerp", THREE, whole(weight=WEIGHTS, task_vectors=True)),
    "slerp from the base": (
        "slerp",
        ONE,
        [
            {"tensors": "language/0/attention", "t": 0.2},
            {"tensors": "language/1/attention", "t": 0.9},
            {"tensors": "language/*/mlp", "t": 0.4},
        ],
    ),
    "slerp of two": (
        "slerp",
        {"b": "b", "a": "a"},
        [
            {"tensors": "*/*/attention", "t": 0.2},
            {"tensors": "*/*/mlp", "t": 0.9},
            {"tensors": "*/*/norm,embedding,head", "t": 0.4},
        ],
    ),
    "nearswap": ("nearswap", ONE, [{"tensors": "*/*/mlp", "t": 0.05}]),
    "arcee_fusion": ("arcee_fusion", ONE, whole()),
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_gives_the_same_tensors(folder: Path, case: str) -> None:
    method, experts, groups = CASES[case]
    recipe = load(folder, experts=experts, method=method, parameters=groups)
    _, back = round_trip(folder, recipe)
    found = tensors(back)
    base = tensors_of(folder / "base")
    for name, expected in tensors(recipe).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0, msg=name)
    assert any(not torch.equal(found[n], base[n]) for n in base)
    assert back.method == recipe.method


def test_every_shared_method_has_a_case() -> None:
    assert {method for method, _, _ in CASES.values()} == set(WRITTEN_AS)
    assert all(get_method(method).name == method for method in WRITTEN_AS)


def test_what_is_written(folder: Path) -> None:
    recipe = load(folder, experts=THREE, method="ties", parameters=by_place(density=0.25))
    config, _ = round_trip(folder, recipe)
    first, _, third = config.pop("models")
    assert config == {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "parameters": {"lambda": 1.0, "normalize": True},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    assert first["model"] == str(folder / "a")
    assert third["model"] == f"{folder / 'base'}+{folder / 'lora'}"
    assert first["parameters"]["density"] == 0.25
    assert first["parameters"]["weight"] == [
        {"filter": "self_attn", "value": [0.8, 0.1]},
        {"filter": "mlp", "value": 0.4},
        {"filter": "layers", "value": [0.8, 0.1]},
        {"value": 0.0},
    ]


def test_the_towers_of_a_vision_model(tmp_path: Path) -> None:
    """Each tower has its own blocks; filters keep them apart."""
    tiny_qwen2_vl(tmp_path / "base")
    full_expert(tmp_path / "base", tmp_path / "a", 1, pattern=".")
    groups = [
        {"tensors": "language/0/attention,mlp", "weight": 0.2},
        {"tensors": "language/1/attention,mlp", "weight": 0.9},
        {"tensors": "vision/*/*", "weight": 0.5},
        {"tensors": "projector/*/*", "weight": 0.7},
    ]
    recipe = load(tmp_path, experts=ONE, method="task_arithmetic", parameters=groups)
    _, back = round_trip(tmp_path, recipe)
    found = tensors(back)
    for name, expected in tensors(recipe).items():
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "tsv_m"}, r"'tsv_m' does not exist in mergekit; .*breadcrumbs"),
        ({"method": "karcher", "weight": {"a": 1, "b": 2}}, "no weights"),
        ({"method": "sce", "weight": 0.5}, r"weight \(0\.5, 0\.5\)"),
        ({"method": "model_stock", "scale": 0.5}, "scale 0.5"),
        ({"method": "arcee_fusion", "spread": 2.0}, "spread 2.0"),
        ({"method": "della", "density": 0.1, "epsilon": 0.2}, "density 0.1 with epsilon 0.2"),
        ({"method": "breadcrumbs", "gamma": 0.0}, "gamma 0"),
        ({"method": "model_stock", "tensors": "*/*/mlp"}, "stay at base"),
        ({"method": "slerp", "tensors": "*/*/mlp"}, "stay at base"),
        ({"method": "ties", "experts": {"a": "a", "same": "a"}}, "one model"),
    ],
)
def test_what_mergekit_cannot_express(folder: Path, content: dict[str, Any], message: str) -> None:
    method, experts = content.pop("method"), content.pop("experts", TWO)
    group = {"tensors": EVERYTHING, **content}
    recipe = load(folder, experts=experts, method=method, parameters=[group])
    with pytest.raises(ConfigError, match=message):
        to_mergekit(recipe)


def test_more_that_mergekit_cannot_express(folder: Path) -> None:
    inner = {"experts": TWO, "method": "ties", "parameters": whole()}
    nested = load(folder, experts={"m": {"merge": inner}}, method="linear", parameters=whole())
    with pytest.raises(ConfigError, match="'m' is a merge itself"):
        to_mergekit(nested)
    switched = [
        {"tensors": "*/*/mlp", "normalise": False},
        {"tensors": "*/*/attention", "normalise": True},
    ]
    with pytest.raises(ConfigError, match="normalize is true for some"):
        to_mergekit(load(folder, experts=TWO, method="ties", parameters=switched))
    anchored = load(folder, experts=TWO, method="ties", parameters=whole(), anchor="a")
    with pytest.raises(ConfigError, match="anchor"):
        to_mergekit(anchored)


def test_notes(folder: Path) -> None:
    base = {"path": "base", "sha256": "0" * 64}
    recipe = load(
        folder,
        base=base,  # type: ignore[arg-type]
        experts={"a": "a", "hub": "some/model"},
        method="dare_ties",
        parameters=whole(weight={"a": 1, "hub": -1}),
    )
    text, notes = to_mergekit(recipe)
    assert "some/model" in text
    assert len(notes) == 4
    for note, said in zip(
        notes, ("1-norms", "differ in sign", "sha256", "full model"), strict=True
    ):
        assert said in note
