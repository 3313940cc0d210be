from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from evomerge.checkpoints.layout import Place, layout
from evomerge.errors import ConfigError
from evomerge.methods import get_method
from evomerge.recipe import (
    Group,
    Recipe,
    Selector,
    Source,
    check_experts,
    group_values,
    load_recipe,
    select,
)

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{part}.weight"
        for i in range(12)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
    "visual.blocks.0.attn.qkv.weight",
    "visual.blocks.0.attn.qkv.bias",
    "visual.merger.mlp.0.weight",
    "lm_head.weight",
]


def group(tensors: str = "*/*/*", **values: Any) -> Group:
    return Group.model_validate({"tensors": tensors, **values})


def recipe(*groups: Group, method: str = "ties", experts: str = "b a", **more: Any) -> Recipe:
    return Recipe(
        base=Source(path="org/base"),
        experts={name: Source(path=f"org/{name}") for name in experts.split()},
        method=method,
        parameters=groups,
        **more,
    )


def test_a_recipe_survives_its_file_with_every_bit(tmp_path: Path) -> None:
    draw = random.Random(0)
    numbers = [draw.uniform(0, 1.5) for _ in range(40)] + [0.0, 1e-7, 5e-324, 1e300, 1 / 3, 3]
    written = Recipe(
        base=Source(path="org/bäse", sha256="ab" * 32),
        experts={name: Source(path=f"org/{name}") for name in ("z", "yes", "1", "a: b")},
        method="ties",
        parameters=tuple(
            group(
                f"language/{i}/attention",
                weight={"z": number, "yes": -number, "1": 0.25, "a: b": 1},
                density=0.1,
                normalise=i % 2 == 0,
            )
            for i, number in enumerate(numbers)
        ),
        seed=2**40,
        dtype="bfloat16",
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(written.to_yaml(), encoding="utf-8")
    read = load_recipe(path)
    assert read == written
    assert list(read.experts) == ["z", "yes", "1", "a: b"]
    for one, other in zip(read.parameters, written.parameters, strict=True):
        assert {n: float(x).hex() for n, x in one.values["weight"].items()} == {
            n: float(x).hex() for n, x in other.values["weight"].items()
        }


def test_the_order_of_two_models_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(group(t=0.25), method="slerp").to_yaml())
    assert load_recipe(path).order() == ("b", "a")


def test_experts_are_sorted_unless_their_order_has_a_meaning() -> None:
    assert recipe(group()).order() == ("a", "b")
    assert recipe(group(), method="slerp").order() == ("b", "a")


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    for name in ("base", "a"):
        (tmp_path / name).mkdir()
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text(
        "base: ../base\nexperts:\n  a: {path: ../a, sha256: ff}\n  b: ../hub\n"
        "method: linear\nparameters: [{tensors: '*/*/*'}]\n"
    )
    read = load_recipe(path)
    assert read.base.path == str(tmp_path / "base")
    assert read.experts == {
        "a": Source(path=str(tmp_path / "a"), sha256="ff"),
        "b": Source(path="../hub"),
    }


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("*/*/*", len(NAMES)),
        ("language/*/*", 37),
        ("language/0-11/*", 36),
        ("language/-/*", 1),
        ("language/-,3/*", 4),
        ("language/0-2,5,7-7/attention", 5),
        ("language/11-30/mlp", 1),
        ("language/*/attention,mlp", 24),
        ("language,vision/0/attention", 2),
        ("*/*/norm", 13),
        ("vision/*/bias", 1),
        ("projector/-/*", 1),
        ("embeddings,head/*/*", 2),
    ],
)
def test_selectors(selector: str, count: int) -> None:
    chosen = select(recipe(group(selector)), layout(NAMES))
    assert len(chosen) == count
    assert set(chosen) <= set(NAMES)


def test_a_selected_tensor_has_its_groups_values() -> None:
    low, high = group("language/0-5/*", density=0.1), group("language/6-11/*", density=0.9)
    chosen = select(recipe(low, high), layout(NAMES))
    assert chosen["model.layers.5.mlp.up_proj.weight"] is low
    assert chosen["model.layers.6.mlp.up_proj.weight"] is high
    assert "model.norm.weight" not in chosen


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("language/0", "tensors must be 'tower/blocks/modules'"),
        ("language//mlp", "tensors must be 'tower/blocks/modules'"),
        ("language/*/mlp/weight", "tensors must be 'tower/blocks/modules'"),
        ("language/0..5/mlp", "blocks must be numbers, ranges such as 0-5, '-' or '*'"),
        ("language/-5/mlp", "blocks must be numbers"),
        ("language/all/mlp", "blocks must be numbers"),
        ("langauge/*/mlp", r"'langauge'; did you mean 'language'\?"),
        ("language/*/mlp,atention", r"'atention'; did you mean 'attention'\?"),
        ("language/*/mlp,", "called ''"),
    ],
)
def test_selectors_that_cannot_be_read(selector: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selector.parse(selector)
    with pytest.raises(ValidationError, match=message):
        group(selector)


def test_a_selector_of_nothing_known_matches_by_all_three_parts() -> None:
    selector = Selector.parse("language/1-2/mlp")
    assert selector.matches(Place("language", 2, "mlp"))
    for other in (("vision", 2, "mlp"), ("language", 3, "mlp"), ("language", None, "mlp")):
        assert not selector.matches(Place(*other))
    assert not selector.matches(Place("language", 2, "attention"))


def test_an_entry_that_selects_nothing() -> None:
    with pytest.raises(ConfigError, match=r"'audio/\*/\*' selects no tensor.*evomerge inspect"):
        select(recipe(group("audio/*/*")), layout(NAMES))


def test_entries_that_overlap() -> None:
    overlapping = recipe(group("language/0-5/*"), group("language/*/mlp"))
    with pytest.raises(
        ConfigError,
        match=r"layers\.0\.mlp\.up_proj\.weight is selected by 'language/0-5/\*' and by 'lang",
    ):
        select(overlapping, layout(NAMES))


def test_values_come_in_the_order_of_the_experts_with_defaults() -> None:
    given = group(weight={"b": 0.2, "a": 0.7}, density=1, normalise=False)
    values = group_values(get_method("ties"), given, ("a", "b"))
    assert values == {"weight": (0.7, 0.2), "density": (1.0, 1.0), "scale": 1.0, "normalise": False}
    assert isinstance(values["density"][0], float)
    assert values["normalise"] is False
    assert group_values(get_method("ties"), group(), ("a", "b"))["normalise"] is True


HEAD = """base: org/base
experts:
  math: org/math
  code: {path: org/code}
"""


@pytest.mark.parametrize(
    ("rest", "line", "message"),
    [
        (
            "method: tise\nparameters: []\n",
            5,
            r"unknown merge method 'tise'; did you mean 'ties'\?",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    densty: 1\n",
            7,
            r"no parameter 'densty'; did you mean 'density'\?",
        ),
        (
            "method: ties\nparameters:\n  - tensors: language/0/*\n  - tensors: language/1/*\n"
            "    weight: {math: 1, cod: 1}\n",
            8,
            r"'weight' of language/1/\*: unknown expert 'cod'; did you mean 'code'\?",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    weight: {math: 1}\n",
            7,
            r"no value for expert 'code'; give one for each expert",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    density: .nan\n",
            7,
            r"'density' of \*/\*/\*: expected a finite number, found nan",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    weight: {math: .inf, code: 1}\n",
            7,
            r"expected a finite number, found inf",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    scale: true\n",
            7,
            r"expected a finite number, found True",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    scale: {math: 1, code: 1}\n",
            7,
            r"expected a finite number, found {'math': 1, 'code': 1}",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    normalise: 'no'\n",
            7,
            r"'normalise' of \*/\*/\*: expected true or false, found 'no'",
        ),
        (
            "method: ties\nparameters:\n  - tensors: '*/*/*'\n    normalise: 0.5\n",
            7,
            r"expected true or false, found 0.5",
        ),
        ("method: ties\nparameters:\n  - density: 1\n", 7, r"'parameters\.0\.tensors' is missing"),
        (
            "method: ties\nparameters:\n  - tensors: language/*\n",
            7,
            r"parameters\.0\.tensors: tensors must be 'tower/blocks/modules'",
        ),
        ("method: ties\nparameters: []\nsed: 1\n", 7, r"unknown key 'sed'; did you mean 'seed'\?"),
        ("method: ties\nparameters: []\ndtype: half\n", 7, r"dtype: Input should be 'base', 'floa"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, rest: str, line: int, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(HEAD + rest)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert f"{path}:{line}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_for_fewer_experts() -> None:
    with pytest.raises(ValidationError, match="'slerp' takes 1 to 2 experts, found 3: c, b, a"):
        recipe(group(), method="slerp", experts="c b a")
    with pytest.raises(ConfigError, match="takes 1 to any number of experts, found 0"):
        check_experts(get_method("ties"), [])


def test_a_recipe_without_entries_may_lack_experts() -> None:
    assert recipe(method="linear", experts="").parameters == ()
