"""A run whose search asks for slopes: what it costs, what it hears, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.config import load_experiment
from evomerge.engine.pools.inline import InlinePool
from evomerge.engine.rungs import Rungs
from evomerge.engine.study import Study, open_study
from evomerge.engine.tasks import Task
from evomerge.ledger.fold import State, fold
from evomerge.ledger.store import read_events
from evomerge.report.history import history
from evomerge.scoring.blocks import Part
from evomerge.scoring.signals import soft
from evomerge.search.base import Look, Search
from evomerge.search.testing import EchoGuided
from tests.engine.racing import driven_by
from tests.engine.test_loop import facts, kill_after, run
from tests.studies import EXPERTS, make_workspace, write_experiment

SLOPES = Look((3,), signal=True, slopes=True)
SIGNAL = Look((3,), signal=True)
DATA = {"search": "search.jsonl", "held_out": "held_out.jsonl"}
RIGHT = {"kind": "answer", "metric": "exact_match", "max_new_tokens": 2, "data": DATA}
SPACE: dict[str, Any] = {
    "method": "task_arithmetic",
    "groups": {"depth": "each", "modules": ["attention", "mlp"]},
    "genes": {"weight": {"per": ["expert", "group"], "anchors": 2, "low": 0.1, "high": 0.9}},
}
DIMENSION = 2 * 2 * len(EXPERTS)
TRANSFORMERS = {"name": "transformers", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("slopes") / "study")


def opened(folder: Path, name: str = "slopes", **changes: Any) -> Study:
    settings = {
        "objectives": [{"name": "first", **RIGHT}, {"name": "second", **RIGHT}],
        "optimise": {"maximise": ["first", "second"]},
        "space": SPACE,
        "search": {"algorithm": "random", "seed": 1},
        "budget": {"candidates": 3},
        "backend": TRANSFORMERS,
        **changes,
    }
    return open_study(load_experiment(write_experiment(folder, f"{name}.yaml", **settings)))


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return opened(folder)


def search() -> Search:
    return EchoGuided(DIMENSION, [SLOPES, SIGNAL, SLOPES, None])


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Search]:
    return driven_by(monkeypatch, search)


@pytest.fixture(scope="module")
def heard(study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EchoGuided]:
    """A run, and its search."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        made = driven_by(patch, search)
        run(study, directory)
    [found] = made
    assert isinstance(found, EchoGuided)
    return directory, found


@pytest.fixture(scope="module")
def whole(heard: tuple[Path, EchoGuided]) -> Path:
    return heard[0]


def folded(directory: Path) -> State:
    return fold(read_events(directory))


def test_a_probe_with_slopes_costs_three_of_its_items(study: Study, whole: Path) -> None:
    state = folded(whole)
    probes = [c for c in state.searched() if c.look is not None]
    (size,) = {len(positions) for positions in Rungs(study).positions(Part((3,))).values()}

    assert {c.look.slopes for c in probes if c.look} == {True, False}
    for probe in probes:
        assert probe.look is not None
        assert probe.cost == 2 * size * (3 if probe.look.slopes else 1)
    assert state.items == sum(c.cost for c in state.searched())
    found = history(read_events(whole), study.experiment.optimise, study.directions)
    assert found.stages["candidates"].items == state.items


def test_the_search_hears_the_slopes_of_soft_scores_by_genes(
    study: Study, heard: tuple[Path, EchoGuided]
) -> None:
    """The mean soft score at a point moved along them grows by their squared norm."""
    looks = {c.id: c.look for c in folded(heard[0]).searched()}
    calls = [call for call in heard[1].calls if call.evidence and looks.get(call.candidate)]
    assert {bool(c.evidence.slopes) for c in calls if c.evidence} == {True, False}
    call = next(c for c in calls if c.evidence is not None and c.evidence.slopes)
    assert call.evidence is not None
    assert {len(slopes) for slopes in call.evidence.slopes.values()} == {DIMENSION}

    worker = InlinePool(study)._worker
    for name, slopes in call.evidence.slopes.items():
        norm = float(np.linalg.norm(slopes))
        step = 0.05 * np.array(slopes) / norm

        def mean(at: Any, name: str = name) -> float:
            recipe = study.space.recipe(np.clip(at, 0, 1).tolist())
            exact = recipe.model_copy(update={"dtype": "float32"})  # the base is bfloat16
            [outcome] = worker.run([Task(0, exact, "search", Part((3,), True))])
            assert outcome.seen is not None
            return float(np.mean(soft(outcome.seen.items[name])))

        genome = np.array(call.genome)
        grown = (mean(genome + step) - mean(genome - step)) / 0.1
        assert grown == pytest.approx(norm, rel=0.05)


@pytest.mark.parametrize("after", [15, 18, 22])
def test_killed_it_resumes_to_the_identical_ledger(
    study: Study, whole: Path, searches: list[Search], tmp_path: Path, after: int
) -> None:
    assert sum("by_weight" in body for _, _, body in facts(whole)[after:]) >= 2
    kill_after(study, tmp_path, after)
    run(study, tmp_path)

    assert facts(tmp_path) == facts(whole)


def test_slopes_that_nobody_can_measure_are_not_asked_for(folder: Path) -> None:
    surprise = {"name": "second", "kind": "perplexity", "data": DATA}
    sparse = {"name": "second", "kind": "sparsity"}
    first = {"name": "first", **RIGHT}
    by_scale = {**SPACE, "genes": {**SPACE["genes"], "scale": {}}}
    less = {"maximise": ["first"], "minimise": ["second"], "reference": {"second": 9}}
    cases: dict[str, dict[str, Any]] = {
        "fake": {"backend": {"name": "fake"}},
        "surprise": {"objectives": [first, surprise], "optimise": less},
        "sparse": {"objectives": [first, sparse]},
        "scale": {"space": by_scale},
        "ties": {"space": {**SPACE, "method": "ties"}},
    }
    for name, changes in cases.items():
        rungs = Rungs(opened(folder, name, **changes))
        assert not rungs.slopes, name
        assert rungs.part_of(SLOPES) == Part((3,), True), name


def test_where_they_can_be_they_are(study: Study) -> None:
    rungs = Rungs(study)
    assert rungs.slopes
    assert rungs.part_of(SLOPES) == Part((3,), True, True)
    assert rungs.part_of(Look((3,), signal=False, slopes=True)) == Part((3,))


@pytest.fixture(scope="module")
def learning(folder: Path) -> Study:
    """Whose own search asks for slopes; steps so short that scores are near each other."""
    options = {"startup": 8, "probes": 3, "radius": 0.3}
    search = {"algorithm": "guided", "seed": 2, "options": options}
    return opened(folder, "learning", search=search, budget={"candidates": 6})


@pytest.fixture(scope="module")
def learnt(learning: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("learnt")
    run(learning, directory)
    return directory


def test_a_guided_search_probes_by_slopes_where_it_can(learning: Study, learnt: Path) -> None:
    state = folded(learnt)
    looks = [c.look for c in state.searched()]

    assert [look is None for look in looks] == [
        turn >= 8 and (turn - 8) % 4 == 0 for turn in range(len(looks))
    ]
    assert looks.count(None) >= 3
    assert [look for look in looks if look] == [
        Part((n % 20,), signal=True, slopes=True) for n in range(len(looks) - looks.count(None))
    ]


@pytest.mark.parametrize("part", [0.35, 0.55, 0.7])
def test_killed_a_guided_search_resumes_to_the_identical_ledger(
    learning: Study, learnt: Path, tmp_path: Path, part: float
) -> None:
    """Among the first probes, where the model decides, and where scores correct it."""
    after = int(part * len(facts(learnt)))
    assert sum("by_weight" in body for _, _, body in facts(learnt)[after:]) >= 1
    kill_after(learning, tmp_path, after)
    run(learning, tmp_path)

    assert facts(tmp_path) == facts(learnt)
