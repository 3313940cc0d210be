"""Guided searches in the engine: what a run of probes and scores is, and exact resume."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evomerge.engine.study import Study
from evomerge.ledger.fold import State
from evomerge.ledger.store import read_events
from tests.engine.racing import ITEMS, raced
from tests.engine.test_loop import facts, kill_after, run

SEARCHES: dict[str, dict[str, Any]] = {
    "guided": {"algorithm": "guided", "seed": 2, "options": {"startup": 40, "probes": 5}},
    "guided, raced": {  # far from each other, so that some may be dropped
        "algorithm": "guided",
        "seed": 2,
        "options": {"startup": 14, "probes": 1, "step": 1.0, "radius": 3.0},
        "racing": {"level": 0.9},
    },
    "auto": {"algorithm": "auto", "seed": 2},
    "auto, raced": {"algorithm": "auto", "seed": 2, "racing": {"level": 0.4}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guided")


@pytest.fixture(scope="module", params=SEARCHES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def study(name: str, workspace: Path, folder: Path) -> Study:
    return raced(workspace, folder, search=SEARCHES[name], budget={"candidates": 8})


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    run(study, directory)
    return directory


def folded(directory: Path) -> State:
    state = State()
    for event in read_events(directory):
        state.apply(event)
    return state


def test_probes_see_a_block_and_scores_are_whole(name: str, whole: Path) -> None:
    state = folded(whole)
    found = Counter(c.status for c in state.searched())
    probes = [c for c in state.searched() if c.status == "probed"]

    assert found["probed"] >= 14
    assert found["scored"] >= 3
    assert set(found) <= {"probed", "scored", *(["dropped"] if "raced" in name else [])}
    assert all(c.look is not None and c.look.signal and len(c.look.blocks) == 1 for c in probes)
    assert {c.cost for c in probes} == {2 * ITEMS // 20}
    assert 8 <= state.evaluations < 9


def test_it_goes_where_the_model_expects_the_best(name: str, whole: Path) -> None:
    """What is scored is no reference again, and no point twice."""
    if name == "guided, raced":
        pytest.skip("its first score is wanted before a version of the data has probes")
    state = folded(whole)
    genomes = [c.genome for c in state.candidates.values() if c.look is None and c.genome]

    assert len(set(genomes)) == len(genomes)


@pytest.mark.parametrize("seed", range(2))
def test_killed_it_resumes_to_the_identical_ledger(
    study: Study, whole: Path, tmp_path: Path, seed: int
) -> None:
    """Killed among the first probes, and where the model decides."""
    dice, events = random.Random(seed), len(facts(whole))
    low, high = ((20, 60), (60, events))[seed]
    kill_after(study, tmp_path, after_events=dice.randint(low, high))
    run(study, tmp_path)

    assert facts(tmp_path) == facts(whole)


def test_killed_again_and_again_it_resumes_to_the_identical_ledger(
    study: Study, whole: Path, tmp_path: Path
) -> None:
    for _ in range(4):
        kill_after(study, tmp_path, after_events=35)
    run(study, tmp_path)

    assert facts(tmp_path) == facts(whole)
