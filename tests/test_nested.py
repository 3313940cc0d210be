"""Recipes whose experts are merges themselves, anchors, factors and directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from evomerge.calibrate.store import open_store
from evomerge.checkpoints.catalog import fingerprint
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.sources import open_sources
from evomerge.checkpoints.statistics import Origin
from evomerge.config import load_experiment
from evomerge.directions import make_directions
from evomerge.engine.study import open_study, space_of
from evomerge.errors import CheckpointError, ConfigError
from evomerge.export import export
from evomerge.instantiate import Lazy, Merge, open_merge
from evomerge.recipe import Group, Merged, Recipe, Source, load_recipe
from evomerge.report.card import recipe_card
from evomerge.report.provenance import provenance
from tests.merging import full_expert, lora_delta, lora_expert
from tests.models import tiny_llama
from tests.studies import EXPERTS, make_workspace, write_experiment

LANGUAGE = "language/*/attention,mlp"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nested")
    tiny_llama(folder / "base", dtype="bfloat16")
    full_expert(folder / "base", folder / "a", 1)
    full_expert(folder / "base", folder / "b", 2)
    lora_expert(folder / "base", folder / "lora", 3)
    lora_expert(folder / "base", folder / "lora2", 4, pattern=r"layers\.0\..*q_proj")
    return folder


def write(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def inner(method: str, experts: dict[str, str], **values: object) -> dict[str, object]:
    return {
        "experts": experts,
        "method": method,
        "parameters": [{"tensors": LANGUAGE, **values}],
    }


AB = {"a": "a", "b": "b"}


def test_an_inner_merge_is_used_before_it_is_rounded(folder: Path) -> None:
    path = write(
        folder / "outer.yaml",
        base="base",
        **inner("task_arithmetic", {"half": {"merge": inner("linear", AB)}}, weight=0.3),  # type: ignore[dict-item]
    )
    merge = open_merge(load_recipe(path))
    sources = open_sources(str(folder / "base"), {n: str(folder / n) for n in AB})
    base = sources.base.read(UP).double()
    mean = sum(sources.experts[n].read(UP).double() for n in AB) / 2
    expected = base + 0.3 * (mean - base)
    torch.testing.assert_close(merge.merged(UP).double(), expected, rtol=0, atol=1e-7)
    assert merge.tensor(UP).dtype == torch.bfloat16
    assert torch.equal(merge.tensor(NORM), sources.base.read(NORM))


def test_recipe_files_may_be_named(folder: Path) -> None:
    write(folder / "ties.yaml", base="base", **inner("ties", AB, density=0.4))
    (folder / "deep").mkdir()
    path = write(
        folder / "deep" / "outer.yaml",
        base="../base",
        **inner("linear", {"t": {"merge": "../ties.yaml"}, "a": "../a"}),  # type: ignore[dict-item]
        anchor={"merge": "../ties.yaml"},
    )
    loaded = load_recipe(path)
    nested = loaded.experts["t"]
    assert isinstance(nested, Merged)
    assert nested.merge.experts["b"] == Source(path=str(folder / "b"))
    assert loaded.anchor == nested
    merge = open_merge(loaded)
    ties = open_merge(load_recipe(folder / "ties.yaml"))
    expected = (ties.merged(UP) + merge.sources.experts["a"].read(UP)) / 2
    torch.testing.assert_close(merge.merged(UP), expected, rtol=0, atol=1e-7)
    anchor = merge.context(UP).anchor
    assert anchor is not None
    assert torch.equal(anchor(), ties.merged(UP))


def test_a_nested_recipe_survives_its_file_and_its_export(folder: Path, tmp_path: Path) -> None:
    path = write(
        folder / "outer.yaml",
        base="base",
        **inner("lines", {"half": {"merge": inner("linear", AB)}}),  # type: ignore[dict-item]
    )
    recipe = load_recipe(path)
    merge = open_merge(recipe)
    digest = export(merge, tmp_path / "out", recipe_card(recipe, provenance(merge.sources)))
    again = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert again == recipe
    assert export(open_merge(again), tmp_path / "again", "", digest) == digest
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- half: a merge by `linear` of" in card
    assert f"  - b: `{folder / 'b'}`" in card


def test_an_inner_merge_of_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", dtype="bfloat16", seed=5)
    write(folder / "foreign.yaml", base=str(other), **inner("linear", {"o": str(other)}))
    path = write(
        folder / "outer.yaml",
        base="base",
        **inner("linear", {"x": {"merge": "foreign.yaml"}}),  # type: ignore[dict-item]
    )
    with pytest.raises(CheckpointError, match="which is another model than"):
        open_merge(load_recipe(path)).moved  # noqa: B018


def test_a_method_without_its_statistics_is_refused(folder: Path) -> None:
    path = write(folder / "outer.yaml", base="base", **inner("regmean", AB))
    with pytest.raises(ConfigError, match=r"needs statistics \(gram\).*evomerge calibrate"):
        load_recipe(path)


def collected(folder: Path, path: Path, kinds: dict[str, list[str]], of: str = "a") -> Path:
    """Statistics of every language matrix: an identity as the Gram."""
    sources = open_sources(str(folder / "base"), {n: str(folder / n) for n in (*AB, "lora")})
    names = [n for n in sources.base.tensors if "_proj" in n]
    with open_store(path, fingerprint(sources.base)) as store:
        for source, wanted in kinds.items():
            weights = sources.experts[of if source == "a" else source].weights
            for kind in wanted:
                draft = store.begin(source, kind, Origin(fingerprint(weights), 1, 1, "0" * 64))
                for n in names:
                    width = sources.base.tensors[n].shape[1]
                    draft.record({n: store.write(torch.eye(width))})
                draft.finish()
    return path


def test_statistics_reach_the_method_and_must_be_those_of_the_experts(
    folder: Path, tmp_path: Path
) -> None:
    def merge(statistics: Path) -> Merge:
        named = {"statistics": str(statistics)}
        path = write(folder / "outer.yaml", base="base", **inner("regmean", AB), **named)
        return open_merge(load_recipe(path))

    whole = merge(collected(folder, tmp_path / "whole", {"a": ["gram"], "b": ["gram"]}))
    sources = open_sources(str(folder / "base"), {n: str(folder / n) for n in AB})
    mean = sum(sources.experts[n].read(UP) for n in AB) / 2
    torch.testing.assert_close(whole.merged(UP), mean, rtol=0, atol=1e-6)  # equal Grams
    lookup = whole.context(UP).lookup
    assert lookup is not None
    assert torch.equal(lookup("gram", "a"), torch.eye(sources.base.tensors[UP].shape[1]))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"have no gram of b, which regmean needs"):
        merge(collected(folder, tmp_path / "part", {"a": ["gram"], "b": ["fisher"]}))
    with pytest.raises(CheckpointError, match="are of another 'a' than"):
        merge(collected(folder, tmp_path / "other", {"a": ["gram"], "b": ["gram"]}, of="lora"))


def test_whole_numbers(folder: Path) -> None:
    experts = {n: Source(path=str(folder / n)) for n in AB}
    base = Source(path=str(folder / "base"))

    def recipe(value: object) -> Recipe:
        group = Group.model_validate({"tensors": LANGUAGE, "lower": value})
        return Recipe(base=base, experts=experts, method="layer_swapping", parameters=(group,))

    assert recipe(1)
    with pytest.raises(ValueError, match=r"expected a whole number, found 1\.5"):
        recipe(1.5)


def test_factors_are_the_task_vectors(folder: Path) -> None:
    names = {"lora": str(folder / "lora"), "lora2": str(folder / "lora2"), "a": str(folder / "a")}
    sources = open_sources(str(folder / "base"), names)
    factors = sources.experts["lora"].factors(UP)
    assert factors is not None
    delta = lora_delta(folder / "lora", UP)
    torch.testing.assert_close((factors.b @ factors.a).double(), delta, rtol=1e-5, atol=1e-6)
    untouched = sources.experts["lora2"].factors(UP)
    assert untouched is not None
    assert (untouched.b.shape[1], untouched.a.shape[0]) == (0, 0)
    assert sources.experts["lora"].factors(NORM) is None
    assert sources.experts["a"].factors(UP) is None


@pytest.mark.parametrize("method", ["task_arithmetic", "tsv_m"])
def test_only_methods_that_are_not_elementwise_get_factors(folder: Path, method: str) -> None:
    both = {"lora": "lora", "lora2": "lora2"}
    path = write(folder / "outer.yaml", base="base", **inner(method, both))
    found = open_merge(load_recipe(path)).context(UP).factors
    assert (found is None) == (method == "task_arithmetic")


def test_experts_are_read_when_asked_for_and_once() -> None:
    read: list[int] = []

    def reader(i: int) -> torch.Tensor:
        read.append(i)
        return torch.full((2,), float(i))

    lazy = Lazy([lambda i=i: reader(i) for i in range(3)])  # type: ignore[misc]
    assert len(lazy) == 3
    assert not read
    assert [t[0].item() for t in lazy] == [0.0, 1.0, 2.0]
    assert lazy[-1][0] == 2
    assert [t[0].item() for t in lazy[1:]] == [1.0, 2.0]
    assert read == [0, 1, 2]


DIRECTIONS = {
    "ties": {"method": "ties"},
    "one": {"method": "linear", "experts": [EXPERTS[0]]},
}


def test_directions_are_searched_over(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "work")
    declared = load_experiment(write_experiment(workspace, directions=DIRECTIONS))
    with pytest.raises(ConfigError, match="have not been made"):
        open_study(declared)
    made: list[str] = []
    experiment = make_directions(declared, tmp_path / "directions", made.append)
    assert made == ["one", "ties"]
    make_directions(declared, tmp_path / "directions", made.append)
    assert made == ["one", "ties"]  # what is there is kept

    study = open_study(experiment)
    assert set(study.space.experts) == set(DIRECTIONS)
    assert [r.name for r in study.references][:2] == ["base", EXPERTS[0]]
    assert [r.name for r in study.references if r.genome is not None] == ["base", "one", "ties"]
    assert space_of(study.body()) == study.space
    assert study.body()["experiment"] == open_study(experiment).body()["experiment"]
    assert "made" not in study.body()["experiment"]

    weights = {g.name: 0.0 for g in study.space.genes}
    alone = {name: float(name.startswith("weight[one]")) for name in weights}
    merge = open_merge(study.space.recipe(study.space.encode(alone)))
    assert torch.equal(merge.tensor(UP), open_checkpoint(workspace / EXPERTS[0]).read(UP))


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({EXPERTS[0]: {"method": "ties"}}, "has the name of an expert"),
        ({"x": {"method": "ties", "experts": ["add"]}}, "'add'; did you mean 'adds'"),
        ({"x": {"metod": "ties"}}, "metod"),
    ],
)
def test_wrong_directions(tmp_path: Path, directions: object, message: str) -> None:
    workspace = make_workspace(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_experiment(write_experiment(workspace, directions=directions))
