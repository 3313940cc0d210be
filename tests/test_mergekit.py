"""mergekit configurations read as recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.instantiate import open_merge
from evomerge.mergekit.form import Conditional, evaluate
from evomerge.mergekit.shared import SHARED
from evomerge.recipe import Source
from tests.mergekit import BLOCKS, NORM, SLERP, UP, Q, models, read, values, workspace
from tests.merging import tensors_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("mergekit"))


# what mergekit publishes in its examples folder, with local models


def test_the_linear_example(folder: Path) -> None:
    recipe, notes = read(
        folder, models=models(1.0, 0.3, 0.5), merge_method="linear", dtype="float16"
    )
    assert recipe.base == Source(path=str(folder / "a"))
    assert recipe.experts["base"] == recipe.base
    assert list(recipe.experts) == ["base", "b", "c"]
    assert recipe.dtype == "float16"
    assert [g.tensors for g in recipe.parameters] == ["*/*/*"]
    assert recipe.parameters[0].values == {"weight": {"base": 1.0, "b": 0.3, "c": 0.5}}
    assert [n for n in notes if "float32" in n] == notes
    merged = open_merge(recipe).merged(Q.format(3)).double()
    a, b, c = (tensors_of(folder / n)[Q.format(3)].double() for n in "abc")
    expected = (a + 0.3 * b + 0.5 * c) / 1.8
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-6)


def test_the_example_of_ties_with_gradients_and_filters(folder: Path) -> None:
    given = [
        {"model": "a", "parameters": {"density": [1, 0.7, 0.1], "weight": 1.0}},
        {"model": "b", "parameters": {"density": 0.5, "weight": [0, 0.3, 0.7, 1]}},
        {
            "model": "c",
            "parameters": {
                "density": 0.33,
                "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}],
            },
        },
    ]
    recipe, _ = read(
        folder,
        models=given,
        merge_method="ties",
        base_model="base",
        parameters={"normalize": True, "int8_mask": True},
        dtype="float16",
    )
    assert set(recipe.experts) == {"a", "b", "c"}
    at = [values(folder, recipe, Q.format(b), "density")["a"] for b in range(BLOCKS)]
    assert at == pytest.approx([1, 0.85, 0.7, 0.4, 0.1])
    at = [values(folder, recipe, UP.format(b), "weight")["b"] for b in range(BLOCKS)]
    assert at == pytest.approx([0, 0.225, 0.5, 0.775, 1])
    assert values(folder, recipe, UP.format(2), "weight")["c"] == 0.5
    assert values(folder, recipe, Q.format(2), "weight")["c"] == 0
    for outside in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert values(folder, recipe, outside, "weight") == {"a": 1, "b": 0, "c": 0}
    assert values(folder, recipe, Q.format(0), "normalise") is True
    assert values(folder, recipe, Q.format(0), "scale") == 1


def test_the_example_of_ties_without_normalising(folder: Path) -> None:
    recipe, notes = read(
        folder,
        models=models(0.5, 0.5, density=0.5),
        merge_method="ties",
        base_model="base",
        parameters={"normalize": False, "int8_mask": True},
        dtype="float32",
    )
    assert recipe.parameters[0].values == {
        "weight": 0.5, "density": 0.5, "scale": 1.0, "normalise": False,
    }  # fmt: skip
    assert notes == []


@pytest.mark.parametrize("form", ["slices", "models", "other alone"])
def test_the_example_of_slerp_in_all_its_forms(folder: Path, form: str) -> None:
    pair = [{"model": m} for m in ("base", "a")]
    forms: dict[str, dict[str, Any]] = {
        "slices": {"slices": [{"sources": [{**m, "layer_range": [0, BLOCKS]} for m in pair]}]},
        "models": {"models": pair},
        "other alone": {"models": pair[1:]},
    }
    inputs = forms[form]
    recipe, _ = read(
        folder, **inputs, merge_method="slerp", base_model="base", parameters={"t": SLERP}
    )
    assert list(recipe.experts) == ["a"]
    at = [values(folder, recipe, Q.format(b), "t") for b in range(BLOCKS)]
    assert at == [0, 0.5, 0.3, 0.7, 1]
    assert [values(folder, recipe, UP.format(b), "t") for b in range(BLOCKS)] == [
        1, 0.5, 0.7, 0.3, 0,
    ]  # fmt: skip
    assert values(folder, recipe, NORM.format(1), "t") == 0.5
    assert values(folder, recipe, "lm_head.weight", "t") == 0.5
    merge = open_merge(recipe)
    assert torch.equal(merge.tensor(Q.format(0)), tensors_of(folder / "base")[Q.format(0)])
    assert torch.equal(merge.tensor(Q.format(4)), tensors_of(folder / "a")[Q.format(4)])


def test_the_example_of_arcee_fusion(folder: Path) -> None:
    recipe, _ = read(
        folder,
        models=[{"model": "a"}, {"model": "b"}],
        merge_method="arcee_fusion",
        base_model="a",
        dtype="bfloat16",
    )
    assert recipe.base.path == str(folder / "a")
    assert list(recipe.experts) == ["b"]


def test_the_example_of_stacked_layers_is_refused(folder: Path) -> None:
    slices = [
        {"sources": [{"model": "a", "layer_range": [0, 3]}]},
        {"sources": [{"model": "b", "layer_range": [2, 5]}]},
    ]
    with pytest.raises(ConfigError, match=r"passthrough.*stacks layers"):
        read(folder, slices=slices, merge_method="passthrough")


# slices


def sliced(*spans: tuple[int, int], weights: tuple[Any, ...] = (0.2, 0.9)) -> list[dict[str, Any]]:
    return [
        {
            "sources": [
                {"model": "a", "layer_range": list(span), "parameters": {"weight": w}},
                {"model": "base", "layer_range": list(span)},
            ]
        }
        for span, w in zip(spans, weights, strict=True)
    ]


def test_slices_that_keep_every_layer_in_its_place(folder: Path) -> None:
    recipe, _ = read(
        folder,
        slices=sliced((0, 2), (2, 5), weights=(0.2, [0, 1])),
        merge_method="task_arithmetic",
        base_model="base",
    )
    at = [values(folder, recipe, Q.format(b), "weight")["a"] for b in range(BLOCKS)]
    assert at == [0.2, 0.2, 0, 0.5, 1]
    assert values(folder, recipe, "model.embed_tokens.weight", "weight")["a"] == 0.2
    assert values(folder, recipe, "lm_head.weight", "weight")["a"] == 0


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (((0, 3), (2, 5)), r"begins at 3"),
        (((1, 3), (3, 5)), r"begins at 0"),
        (((0, 2), (2, 4)), r"end at layer 4, the base has 5"),
    ],
)
def test_other_slices_are_refused(folder: Path, spans: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(folder, slices=sliced(*spans), merge_method="task_arithmetic", base_model="base")


def test_a_model_taken_from_other_layers_is_refused(folder: Path) -> None:
    slices = sliced((0, 5), weights=(1,))
    slices[0]["sources"][1]["layer_range"] = [0, 4]
    with pytest.raises(ConfigError, match="the same for all sources"):
        read(folder, slices=slices, merge_method="task_arithmetic", base_model="base")


# parameters


def test_levels_of_parameters(folder: Path) -> None:
    """A model's own come first; where its filters are silent the common ones speak."""
    own = [{"filter": "mlp", "value": 0.9}]
    recipe, _ = read(
        folder,
        models=[{"model": "a", "parameters": {"weight": own}}, {"model": "b"}],
        merge_method="task_arithmetic",
        base_model="base",
        parameters={"weight": 0.4, "lambda": 0.5},
    )
    assert values(folder, recipe, UP.format(0), "weight") == {"a": 0.9, "b": 0.4}
    assert values(folder, recipe, Q.format(0), "weight") == {"a": 0.4, "b": 0.4}
    assert values(folder, recipe, Q.format(0), "scale") == 0.5


def test_a_missing_value_is_named(folder: Path) -> None:
    own = [{"filter": "mlp", "value": 0.9}]
    with pytest.raises(ConfigError, match=r"no value of 'weight' for a of lm_head"):
        read(
            folder,
            models=[{"model": "a", "parameters": {"weight": own}}],
            merge_method="task_arithmetic",
            base_model="base",
        )
    with pytest.raises(ConfigError, match=r"no value of 't'; set it under parameters"):
        read(folder, models=[{"model": "a"}], merge_method="slerp", base_model="base")


@pytest.mark.parametrize(
    ("t", "expected"), [(0, 1), (0.25, 1.5), (0.5, 2), (0.75, 4), (1, 6), (1 / 3, 1 + 2 / 3)]
)
def test_a_gradient_is_straight_between_its_entries(t: float, expected: float) -> None:
    assert evaluate([1.0, 2.0, 6.0], "", t) == pytest.approx(expected)


def test_a_gradient_of_one_entry_a_block_gives_the_entries_exactly() -> None:
    for count in (3, 7, 32, 80):
        curve: list[bool | float] = [0.1 * i for i in range(count)]
        assert [evaluate(curve, "", i / (count - 1)) for i in range(count)] == curve


def test_the_first_condition_that_covers_a_tensor_counts() -> None:
    setting = [
        Conditional(filter="mlp", value=1),
        Conditional(filter="*", value=[2, 4]),
        Conditional(value=5),
    ]
    assert evaluate(setting, "x.mlp.y", 0) == 1
    assert evaluate(setting, "x.attn.y", 0.5) == 3
    assert evaluate([Conditional(filter="mlp", value=1)], "x.attn.y", 0) is None


def test_normalised_task_arithmetic(folder: Path) -> None:
    recipe, _ = read(
        folder,
        models=models(0.4, 0.6, 1.0),
        merge_method="task_arithmetic",
        base_model="base",
        parameters={"normalize": True, "lambda": 3},
    )
    assert recipe.parameters[0].values["scale"] == pytest.approx(1.5)


def test_linear_that_does_not_normalise(folder: Path) -> None:
    parameters = {"normalize": False}
    recipe, _ = read(folder, models=models(0.7, 0.3), merge_method="linear", parameters=parameters)
    assert recipe.parameters[0].values["weight"] == {"base": 0.7, "b": 0.3}
    with pytest.raises(ConfigError, match=r"sum to 1\.1"):
        read(folder, models=models(0.7, 0.4), merge_method="linear", parameters=parameters)


def test_dare_without_rescaling(folder: Path) -> None:
    recipe, notes = read(
        folder,
        models=models(0.7, 0.3, density=0.4),
        merge_method="dare_ties",
        base_model="base",
        parameters={"rescale": False},
    )
    assert recipe.parameters[0].values["scale"] == pytest.approx(0.4)
    assert recipe.parameters[0].values["normalise"] is False
    assert any("1-norms" in n for n in notes)
    for method, parameters in (("della", {"rescale": False}), ("ties", {"rescale": True})):
        with pytest.raises(ConfigError, match="rescale"):
            read(
                folder,
                models=models(0.7, 0.3, density=0.4),
                merge_method=method,
                base_model="base",
                parameters=parameters,
            )


def test_breadcrumbs_leave_out_fewer_outliers_at_high_density(folder: Path) -> None:
    at = []
    for density in (0.5, 0.995, 1.0):
        recipe, _ = read(
            folder,
            models=models(1.0, 1.0, density=density),
            merge_method="breadcrumbs",
            base_model="base",
        )
        at.append(recipe.parameters[0].values["gamma"])
    assert at == pytest.approx([0.01, 0.005, 0])


def test_every_shared_method_can_be_read(folder: Path) -> None:
    for name, shared in SHARED.items():
        count = {"one": 1, "others": 3, "all": 2 if name == "nuslerp" else 3}[shared.takes]
        recipe, _ = read(
            folder,
            models=models(0.5, 0.3, 0.2)[:count],
            merge_method=name,
            base_model="base" if shared.takes != "all" else None,
            parameters={"t": 0.3} if "t" in shared.overall else {},
        )
        assert recipe.method == shared.method
        assert open_merge(recipe).merged(Q.format(1)).isfinite().all()


def test_the_base_among_the_models(folder: Path) -> None:
    """linear averages it like the others; task arithmetic leaves it out."""
    given = [{"model": "base", "parameters": {"weight": 0.5}}, *models(1.0)]
    averaged, _ = read(folder, models=given, merge_method="linear", base_model="base")
    assert averaged.parameters[0].values["weight"] == {"base": 0.5, "a": 1.0}
    added, _ = read(folder, models=given, merge_method="task_arithmetic", base_model="base")
    assert list(added.experts) == ["a"]
    with pytest.raises(ConfigError, match="no value of 'weight' for base"):
        read(folder, models=given[1:], merge_method="linear", base_model="base")


def test_nuslerp_relative_to_a_base(folder: Path) -> None:
    given = models(0.4, 0.6)
    recipe, _ = read(folder, models=given, merge_method="nuslerp", base_model="base")
    assert recipe.parameters[0].values["task_vectors"] is True
    recipe, _ = read(folder, models=given, merge_method="nuslerp")
    assert recipe.parameters[0].values["task_vectors"] is False
    with pytest.raises(ConfigError, match="columns"):
        read(
            folder,
            models=given,
            merge_method="nuslerp",
            parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True},
        )


def test_the_documentation_lists_every_shared_method() -> None:
    text = (Path(__file__).parents[1] / "docs" / "mergekit.md").read_text()
    table = [
        line.split("|")[1] for line in text.split("## Measured")[0].splitlines() if "|" in line
    ]
    assert {name for name in SHARED if any(f"`{name}`" in cell for cell in table)} == set(SHARED)
