from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints.layout import Place, layout
from evomerge.documents import Document, validate
from evomerge.errors import ConfigError
from evomerge.recipe import Group, Recipe, Source, select
from evomerge.space import Gene, Space, SpaceSpec, bind

BASE = Source(path="base")


def experts(names: str) -> dict[str, Source]:
    return {name: Source(path=name) for name in names.split()}


def blocks(count: int, tower: str = "language") -> dict[str, Place]:
    prefix = {"language": "model.layers", "vision": "visual.blocks"}[tower]
    parts = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    return layout([f"{prefix}.{i}.{part}.weight" for i in range(count) for part in parts])


def spec(method: str = "task_arithmetic", **more: Any) -> SpaceSpec:
    more.setdefault("genes", {"weight": {"per": ["expert", "group"]}})
    return validate(SpaceSpec, Document({"method": method, **more}))


def space(
    places: Mapping[str, Place] | None = None,
    names: str = "b a",
    changed: frozenset[str] | None = None,
    **more: Any,
) -> Space:
    places = blocks(6) if places is None else places
    return bind(
        spec(**more),
        BASE,
        experts(names),
        places,
        frozenset(places) if changed is None else changed,
    )


def selectors(bound: Space) -> list[str]:
    return [cell.selector for cell in bound.cells]


# --- genome and values ---------------------------------------------------------------------------

unit = st.floats(0, 1)


@given(unit, st.floats(-10, 10), st.floats(0.01, 100))
def test_linear_genes_are_one_to_one(u: float, low: float, width: float) -> None:
    gene = Gene("x", low, low + width, log=False)
    assert gene.encode(gene.decode(u)) == pytest.approx(u, abs=1e-12)


@given(unit, st.floats(1e-6, 10), st.floats(1.5, 1e6))
def test_logarithmic_genes_are_one_to_one(u: float, low: float, factor: float) -> None:
    gene = Gene("x", low, low * factor, log=True)
    assert gene.encode(gene.decode(u)) == pytest.approx(u, abs=1e-12)


@given(st.lists(unit, min_size=25, max_size=25))
def test_a_space_is_one_to_one(genome: list[float]) -> None:
    bound = space(
        method="dare_ties",
        names="b a",
        groups={"depth": 6, "modules": ["attention"]},
        genes={
            "weight": {"per": ["expert", "group"], "low": 0.01, "high": 1.5, "log": True},
            "density": {"per": ["expert", "group"], "low": 0.05, "high": 1.0},
            "scale": {},
        },
    )
    values = bound.decode(genome)
    assert bound.encode(values) == pytest.approx(genome, abs=1e-12)
    assert all(
        g.low <= v <= g.high + 1e-12 for g, v in zip(bound.genes, values.values(), strict=True)
    )


def test_values_by_hand() -> None:
    log = Gene("x", 0.01, 1.0, log=True)
    assert [log.decode(u) for u in (0.0, 0.5, 1.0)] == pytest.approx([0.01, 0.1, 1.0])
    linear = Gene("x", 0.5, 2.5, log=False)
    assert [linear.decode(u) for u in (0.0, 0.25, 1.0)] == [0.5, 1.0, 2.5]
    assert (linear.encode(0.0), linear.encode(3.5)) == (-0.25, 1.5)
    assert log.encode(0.0) < 0


@pytest.mark.parametrize("genome", [(0.5,) * 23, (0.5,) * 25, (1.1, *(0.5,) * 23)])
def test_genomes_outside_of_the_box(genome: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected 24 numbers between 0 and 1"):
        space().decode(genome)
    with pytest.raises(ValueError, match="expected 24"):
        space().decode((float("nan"), *(0.5,) * 23))


def test_genes_and_their_recipe_by_hand() -> None:
    bound = space(
        blocks(2),
        method="ties",
        groups={"modules": ["mlp"]},
        genes={
            "weight": {"per": ["expert", "group"], "low": 0.0, "high": 2.0},
            "density": {"per": ["group"], "low": 0.0, "high": 1.0},
            "scale": {"low": 1.0, "high": 3.0},
            "normalise": {"fixed": False},
        },
    )
    assert [g.name for g in bound.genes] == [
        "weight[b] language/0/mlp",
        "weight[a] language/0/mlp",
        "weight[b] language/1/mlp",
        "weight[a] language/1/mlp",
        "density language/0/mlp",
        "density language/1/mlp",
        "scale",
    ]
    found = bound.recipe((0.0, 0.25, 0.5, 1.0, 0.125, 0.75, 0.5))
    assert found.parameters == (
        Group.model_validate(
            {
                "tensors": "language/0/mlp",
                "weight": {"b": 0.0, "a": 0.5},
                "density": 0.125,
                "scale": 2.0,
                "normalise": False,
            }
        ),
        Group.model_validate(
            {
                "tensors": "language/1/mlp",
                "weight": {"b": 1.0, "a": 2.0},
                "density": 0.75,
                "scale": 2.0,
                "normalise": False,
            }
        ),
    )


def test_fixed_and_default_values_reach_the_recipe() -> None:
    bound = space(
        method="dare_linear",
        genes={"scale": {}, "weight": {"fixed": {"a": 0.25, "b": 0.75}}},
        groups={"depth": 1},
    )
    (first, *_) = bound.recipe((0.5,)).parameters
    assert first.values == {"weight": {"a": 0.25, "b": 0.75}, "density": 0.8, "scale": 1.0}


# --- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "ranges"),
    [
        ("each", ["0", "1", "2", "3", "4", "5"]),
        (1, ["*"]),
        (2, ["0-2", "3-5"]),
        (4, ["0-1", "2", "3", "4-5"]),
        (5, ["0", "1", "2-3", "4", "5"]),
        (6, ["0", "1", "2", "3", "4", "5"]),
        (99, ["0", "1", "2", "3", "4", "5"]),
    ],
)
def test_depth_groups(depth: str | int, ranges: list[str]) -> None:
    bound = space(groups={"depth": depth, "modules": ["mlp"]})
    found = selectors(bound)
    assert sorted(found) == sorted(f"language/{r}/mlp" for r in ranges)
    assert bound.cells[0].position == 0.0
    assert bound.cells[-1].position == (1.0 if len(ranges) > 1 else 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 28, 31])
@pytest.mark.parametrize("depth", ["each", 1, 2, 3, 5, 6])
def test_depth_groups_share_all_blocks_evenly(count: int, depth: str | int) -> None:
    bound = space(blocks(count), groups={"depth": depth, "modules": [["attention", "mlp"]]})
    chosen = select(bound.recipe((0.5,) * bound.dimension), blocks(count))
    assert len(chosen) == 2 * count
    if depth not in ("each", 1) and count > int(depth):
        sizes = [sum(g.tensors == s for g in chosen.values()) for s in selectors(bound)]
        assert len(sizes) == depth
        assert max(sizes) - min(sizes) <= 2  # of two tensors a block


def test_joined_modules_are_one_group() -> None:
    joined = space(groups={"depth": 2, "modules": [["attention", "mlp"]]})
    apart = space(groups={"depth": 2, "modules": ["attention", "mlp"]})
    assert selectors(joined) == ["language/0-2/attention,mlp", "language/3-5/attention,mlp"]
    assert (len(apart.cells), len(joined.cells)) == (4, 2)
    assert joined.moves(blocks(6)) == apart.moves(blocks(6))
    assert not any("norm" in name for name in joined.moves(blocks(6)))


def test_several_towers() -> None:
    places = {**blocks(2), **blocks(3, "vision")}
    bound = space(places, groups={"towers": ["vision", "language"], "modules": ["mlp"]})
    assert selectors(bound) == [f"vision/{i}/mlp" for i in range(3)] + [
        f"language/{i}/mlp" for i in range(2)
    ]


def test_a_tower_without_blocks_is_one_group() -> None:
    places = {**blocks(2), **layout(["visual.merger.mlp.0.weight"])}
    bound = space(places, groups={"towers": ["projector"], "modules": ["projection"]})
    assert selectors(bound) == ["projector/*/projection"]


def test_groups_that_no_expert_changes_get_no_genes() -> None:
    changed = frozenset(n for n in blocks(6) if ".layers.3." in n and "mlp" in n)
    bound = space(changed=changed)
    assert selectors(bound) == ["language/3/mlp"]
    assert [g.name for g in bound.genes] == [
        "weight[b] language/3/mlp",
        "weight[a] language/3/mlp",
    ]
    assert bound.cells[0].position == pytest.approx(3 / 5)  # its place in the whole tower


# --- anchors -------------------------------------------------------------------------------------


def test_anchors_by_hand() -> None:
    """Six blocks lie at 0, 1/5, ... 1; three anchors at 0, 1/2, 1."""
    bound = space(
        method="slerp",
        groups={"modules": ["mlp"]},
        genes={"t": {"per": ["group"], "anchors": 3, "low": 0.0, "high": 1.0}},
    )
    assert [g.name for g in bound.genes] == [f"t language/mlp@{i}" for i in range(3)]
    found = bound.recipe((0.0, 1.0, 0.5))
    # between anchors 1 and 2, block 3 lies a fifth of the way, block 4 three fifths
    expected = [0.0, 0.4, 0.8, 0.9, 0.7, 0.5]
    assert [g.values["t"] for g in found.parameters] == pytest.approx(expected)


def test_anchors_for_each_column_and_expert() -> None:
    bound = space(
        groups={"modules": ["attention", "mlp"]},
        genes={"weight": {"per": ["expert", "group"], "anchors": 2}},
    )
    assert bound.dimension == 2 * 2 * 2
    genome = [0.0] * 8
    at = [g.name for g in bound.genes].index("weight[a] language/mlp@1")
    genome[at] = 1.0
    for g in bound.recipe(genome).parameters:
        block = int(g.tensors.split("/")[1])
        expected = block / 5 if g.tensors.endswith("/mlp") else 0.0
        assert g.values["weight"] == pytest.approx({"a": expected, "b": 0.0})


def test_anchors_of_a_single_group() -> None:
    bound = space(blocks(1), method="slerp", genes={"t": {"per": ["group"], "anchors": 4}})
    assert {g.values["t"] for g in bound.recipe((0.25, 1, 1, 1) * 2).parameters} == {0.25}


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "tise"}, r"unknown merge method 'tise'; did you mean 'ties'\?"),
        ({"genes": {"wieght": {}}}, r"genes\.wieght: .*did you mean 'weight'\?"),
        (
            {"genes": {"weight": {"fixed": 1, "low": 0}}},
            "fixed gene takes no per, low, high or anch",
        ),
        ({"genes": {"weight": {"fixed": 1, "per": ["group"]}}}, "fixed gene takes no per"),
        ({"genes": {"weight": {"low": 1, "high": 1}}}, "low must be below high, found 1.0 and 1.0"),
        ({"genes": {"weight": {"low": 2}}}, "low must be below high, found 2.0 and 1.0"),
        ({"genes": {"weight": {"high": -1}}}, "low must be below high, found 0.0 and -1.0"),
        ({"genes": {"weight": {"low": 0, "log": True}}}, "logarithmic gene needs low above 0"),
        ({"genes": {"weight": {"log": True}}}, "logarithmic gene needs low above 0, found 0.0"),
        ({"genes": {"weight": {"low": float("nan")}}}, r"genes\.weight\.low: .*finite"),
        ({"genes": {"weight": {"anchors": 3}}}, "add group to per"),
        ({"genes": {"weight": {"per": ["group"], "anchors": 1}}}, "greater than or equal to 2"),
        ({"genes": {"weight": {"per": ["block"]}}}, "Input should be 'expert' or 'group'"),
        ({"genes": {"scale": {"per": ["expert"]}}}, "'scale' of task_arithmetic is not per expert"),
        ({"method": "ties", "genes": {"normalise": {}}}, "is a switch: give it as fixed"),
        ({"groups": {"depth": 0}}, "expected 'each' or a number of depth groups of at least 1"),
        ({"groups": {"towers": ["langauge"]}}, r"'langauge'; did you mean 'language'\?"),
        ({"groups": {"modules": ["mlp", "atention"]}}, r"'atention'; did you mean 'attention'\?"),
        ({"groups": {"modules": ["mlp", ["attention", "mlp"]]}}, "'mlp' is named twice"),
        ({"groups": {"towers": ["vision", "vision"]}}, "'vision' is named twice"),
        ({"groups": {"tower": ["language"]}}, "did you mean 'towers'"),
    ],
)
def test_mistakes_in_the_file(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"genes": {"weight": {"fixed": 0.5}}}, "no gene to search: all are fixed"),
        ({"genes": {}}, "no gene to search"),
        (
            {"method": "slerp", "names": "a b c", "genes": {"t": {}}},
            "takes 1 to 2 experts, found 3",
        ),
        (
            {"groups": {"towers": ["vision"]}},
            "moves nothing: no expert changes a tensor of towers vision.*they change: language/at",
        ),
        (
            {"genes": {"scale": {}, "weight": {"fixed": {"a": 1, "bb": 1}}}},
            "unknown expert 'bb'",
        ),
        ({"genes": {"scale": {}, "weight": {"fixed": {"a": 1}}}}, "no value for expert 'b'"),
        (
            {"genes": {"weight": {}, "scale": {"fixed": True}}},
            "expected a finite number, found True",
        ),
        ({"genes": {"weight": {}, "scale": {"fixed": float("inf")}}}, "finite number, found inf"),
    ],
)
def test_mistakes_that_show_with_the_experts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(**given)


# --- plain points ---------------------------------------------------------------------------------


def test_plain_points_outside_of_the_space() -> None:
    outside = space(genes={"weight": {"per": ["expert"], "low": 0.4, "high": 0.6}})
    assert outside.plain({"a": 0.5, "b": 0.5}) is not None
    assert outside.plain({"a": 0.3, "b": 0.3}) is None
    shared = space(genes={"weight": {}})
    assert shared.plain({"a": 0.3, "b": 0.3}) is not None
    assert shared.plain({"a": 1.0, "b": 0.0}) is None
    fixed = space(genes={"weight": {"per": ["expert"]}, "scale": {"fixed": 0.5}})
    assert fixed.plain({"a": 0.3, "b": 0.3}) is None
    logarithmic = space(genes={"weight": {"per": ["expert"], "low": 0.01, "log": True}})
    assert logarithmic.plain({"a": 0.0, "b": 0.0}) is None
    assert logarithmic.plain({"a": 1.0, "b": 0.01}) == (0.0, 1.0)
    unmentioned = space(method="dare_linear", genes={"weight": {"per": ["expert"]}})
    assert unmentioned.plain({"a": 0.3, "b": 0.3}) is None  # its density stays at 0.8


def test_the_order_of_two_models() -> None:
    bound = space(names="z a", method="slerp", genes={"t": {}})
    assert bound.plain({"z": 1.0, "a": 0.0}) == (0.0,)
    assert bound.plain({"z": 0.0, "a": 1.0}) == (1.0,)
    assert bound.recipe((0.5,)).order() == ("z", "a")


# --- slopes --------------------------------------------------------------------------------------

SLOPED: dict[str, dict[str, Any]] = {
    "each": {"per": ["expert", "group"]},
    "by expert": {"per": ["expert"]},
    "by group": {"per": ["group"]},
    "one": {},
    "anchors": {"per": ["expert", "group"], "anchors": 3},
    "anchors of all": {"per": ["group"], "anchors": 2},
    "logarithmic": {"per": ["expert", "group"], "low": 0.01, "high": 1.5, "log": True},
    "logarithmic anchors": {"per": ["group"], "anchors": 3, "low": 0.1, "high": 1.5, "log": True},
}


def weights_of(recipe: Recipe) -> list[float]:
    """Groups outermost, experts as the weights name them, or one for all."""
    given = [group.values["weight"] for group in recipe.parameters]
    return [w for each in given for w in (each.values() if isinstance(each, Mapping) else [each])]


@pytest.mark.parametrize("gene", SLOPED.values(), ids=SLOPED)
def test_slopes_by_weights_become_those_by_genes(gene: dict[str, Any]) -> None:
    bound = space(names="b c a", groups={"depth": 4}, genes={"weight": gene})
    genome = [0.1 + 0.8 * i / bound.dimension for i in range(bound.dimension)]
    by_weight = [1.5 - 0.7 * i for i in range(len(weights_of(bound.recipe(genome))))]
    step = 1e-5

    def along(moved: list[float]) -> float:
        pairs = zip(weights_of(bound.recipe(moved)), by_weight, strict=True)
        return sum(w * s for w, s in pairs)

    found = bound.slopes(genome, by_weight)
    assert len(found) == bound.dimension
    for i, slope in enumerate(found):
        up, down = ([u + d * (i == j) for j, u in enumerate(genome)] for d in (step, -step))
        assert slope == pytest.approx((along(up) - along(down)) / (2 * step), rel=1e-7, abs=1e-7)


def test_a_number_of_slopes_that_is_not_that_of_the_weights_is_refused() -> None:
    bound = space()
    with pytest.raises(ValueError, match="shorter"):
        bound.slopes([0.5] * bound.dimension, [1.0])


@pytest.mark.parametrize(
    ("method", "genes", "smooth"),
    [
        ("task_arithmetic", {"weight": {"per": ["group"]}}, True),
        ("linear", {"weight": {"per": ["expert"]}}, True),
        ("breadcrumbs", {"weight": {"per": ["expert"]}, "density": {"fixed": 0.3}}, True),
        ("task_arithmetic", {"weight": {"per": ["group"]}, "scale": {}}, False),
        ("task_arithmetic", {"weight": {"fixed": 0.5}, "scale": {}}, False),
        ("ties", {"weight": {"per": ["expert"]}}, False),
    ],
)
def test_what_is_smooth(method: str, genes: dict[str, Any], smooth: bool) -> None:
    assert space(method=method, genes=genes).smooth == smooth
