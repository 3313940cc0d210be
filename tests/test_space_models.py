"""Search spaces on real layouts: the shipped ones, and the places of known models in a space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.checkpoints.layout import layout
from evomerge.checkpoints.sources import open_sources
from evomerge.config import load_space
from evomerge.content import known
from evomerge.documents import Document, validate
from evomerge.instantiate import Merge
from evomerge.recipe import Group, Recipe, Source, select
from evomerge.space import SpaceSpec, bind
from tests.merging import full_expert, tensors_of
from tests.models import tiny_llama, tiny_qwen2_vl

BASE = Source(path="base")
EXPERTS = {name: Source(path=name) for name in "ba"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_vl(tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("name", sorted(known("search_spaces")))
@pytest.mark.parametrize("model", ["llama", "qwen"])
def test_shipped_spaces(name: str, model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    places = layout(tensors_of(path))
    shipped = load_space(name, Path("nowhere"))
    assert shipped.name == Path(name).name
    assert shipped.summary
    bound = bind(shipped, BASE, EXPERTS, places, frozenset(places))
    chosen = select(bound.recipe((0.5,) * bound.dimension), places)
    wanted = {
        n for n in places if ".layers." in n and n.endswith("proj.weight") and "visual" not in n
    }
    assert len(wanted) == 2 * 7
    if name == "darwin":  # its genes speak of embeddings too: all of the language model
        wanted = {n for n in places if "visual" not in n}
    assert set(chosen) == wanted == bound.moves(places)


# --- plain points --------------------------------------------------------------------------------

PLAIN = {
    "base": ({"b": 0.0, "a": 0.0}, None),
    "b": ({"b": 1.0, "a": 0.0}, ("linear", {"weight": {"b": 1.0, "a": 0.0}})),
    "a": ({"b": 0.0, "a": 1.0}, ("linear", {"weight": {"b": 0.0, "a": 1.0}})),
    "average": ({"b": 0.5, "a": 0.5}, ("linear", {"weight": 0.5})),
    "arithmetic": ({"b": 0.3, "a": 0.3}, ("task_arithmetic", {"weight": 0.3})),
}
METHODS: dict[str, tuple[dict[str, Any], set[str]]] = {
    # a space, and the points that lie in it
    "task_arithmetic": ({"weight": {"per": ["expert", "group"]}}, set(PLAIN)),
    "dare_linear": (
        {"weight": {"per": ["expert", "group"]}, "density": {"per": ["group"]}, "scale": {}},
        set(PLAIN),
    ),
    "linear": ({"weight": {"per": ["expert"]}}, {"a", "b", "average"}),
    "ties": (
        {"weight": {"per": ["expert"]}, "density": {}, "normalise": {"fixed": False}},
        {"base", "a", "b"},
    ),
    "dare_ties": ({"weight": {"per": ["expert", "group"]}, "density": {}}, {"base", "a", "b"}),
    "slerp": ({"t": {"per": ["group"], "anchors": 2}}, {"a", "b"}),
}


@pytest.fixture(scope="module")
def sources(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("experts")
    made = {name: full_expert(llama, folder / name, seed) for seed, name in enumerate("ba")}
    return {name: Source(path=str(path)) for name, path in made.items()}


@pytest.mark.parametrize("method", METHODS)
def test_plain_points_merge_to_the_static_recipe(
    method: str, llama: Path, sources: dict[str, Source]
) -> None:
    genes, points = METHODS[method]
    spec = validate(SpaceSpec, Document({"method": method, "genes": genes}))
    base = Source(path=str(llama))
    opened = open_sources(base.path, {n: s.path for n, s in sources.items()})
    places = layout(opened.base.tensors)
    changed = frozenset().union(*(e.changed for e in opened.experts.values()))
    bound = bind(spec, base, sources, places, changed)
    assert {name for name in PLAIN if bound.plain(PLAIN[name][0]) is not None} == points
    for name in points:
        weights, static = PLAIN[name]
        genome = bound.plain(weights)
        assert genome is not None
        found = Merge(bound.recipe(genome), opened)
        groups: tuple[Group, ...] = ()
        if static is not None:
            values = {"tensors": "language/*/attention,mlp", **static[1]}
            groups = (Group.model_validate(values),)
        expected = Merge(
            Recipe(
                base=base,
                experts=sources if static else {},
                method=static[0] if static else "linear",
                parameters=groups,
            ),
            opened,
        )
        for tensor in places:
            torch.testing.assert_close(
                found.tensor(tensor), expected.tensor(tensor), rtol=2e-6, atol=2e-6
            )


def test_a_space_survives_its_dump() -> None:
    for name in known("search_spaces"):
        loaded = load_space(name, Path("nowhere"))
        text = yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False)
        assert SpaceSpec(**yaml.safe_load(text)) == loaded
