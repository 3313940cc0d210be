"""Several workers: a guided search's candidates are scored in parts, one for each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import pytest

from evomerge.engine.pools.inline import InlinePool
from evomerge.engine.study import Study
from evomerge.engine.tasks import Outcome, Task
from evomerge.engine.worker import Worker
from evomerge.ledger.fold import Candidate, Scores, State
from evomerge.search.base import Look
from tests.engine.racing import ITEMS, driven_by, guided, raced
from tests.engine.test_loop import facts, run

WORKERS = 4
WHOLE = 2 * ITEMS
PROBE = Look((3,), signal=True)
Fault = Callable[[Outcome], Outcome]


class Several(InlinePool):
    """Room for several tasks, of which the latest ends first, one at a time."""

    def __init__(self, study: Study, workers: int = WORKERS) -> None:
        super().__init__(study)
        self.capacity = workers
        self.asked: list[Task] = []
        self.most = 0
        self.faults: dict[int, Fault] = {}  # of the how-manieth part of a candidate that ends
        self._parts = 0

    def wait(self) -> list[Outcome]:
        self.most = max(self.most, len(Counter(t.candidate for t in self._tasks if t.part)))
        *others, last = self._tasks
        self._tasks = [last]
        (outcome,) = super().wait()
        self._tasks = others
        self.asked.append(last)
        if last.part is not None and not last.part.signal:
            outcome = self.faults.get(self._parts, lambda same: same)(outcome)
            self._parts += 1
        return [outcome]

    def parts(self, id: int) -> list[tuple[int, ...]]:
        return [t.part.blocks for t in self.asked if t.candidate == id and t.part is not None]


@pytest.fixture(scope="module")
def study(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return raced(workspace, tmp_path_factory.mktemp("shares"), None, budget={"candidates": 5})


@pytest.fixture(autouse=True)
def searched(monkeypatch: pytest.MonkeyPatch) -> None:
    driven_by(monkeypatch, guided(None, PROBE))


def scored(state: State) -> list[Candidate]:
    return [c for c in state.searched() if c.status == "scored"]


def at_once(study: Study, candidate: Candidate) -> Scores:
    """What one evaluation of the whole candidate gives."""
    assert candidate.genome is not None
    worker = Worker(study.sources, study.objectives, study.experiment.backend)
    try:
        return worker.score(study.space.recipe(candidate.genome), "search")
    finally:
        worker.close()


def test_parts_over_workers_give_the_score_of_one_evaluation_bit_for_bit(
    study: Study, tmp_path: Path
) -> None:
    pool = Several(study)
    state = run(study, tmp_path, pool)

    assert len(scored(state)) >= 3
    for candidate in scored(state):
        parts = pool.parts(candidate.id)
        assert sorted(parts) == [tuple(range(i, i + 5)) for i in (0, 5, 10, 15)]
        assert candidate.cost == WHOLE
        assert candidate.scores is not None
        assert candidate.scores.body() == at_once(study, candidate).body()
    orders = [pool.parts(c.id) for c in scored(state)]
    assert any(parts != sorted(parts) for parts in orders)
    assert pool.most > 1  # what remains of one candidate and the next are under way together


def test_one_worker_asks_for_all_at_once(study: Study, tmp_path: Path) -> None:
    assert all(not c.seen for c in scored(run(study, tmp_path)))


def test_without_a_guided_search_candidates_stay_whole(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    plain = raced(workspace, tmp_path, None, budget={"candidates": 5})
    pool = Several(plain)
    run(plain, tmp_path / "run", pool)

    assert {task.part for task in pool.asked} == {None}


def test_a_budget_is_kept_with_parts_under_way(study: Study, tmp_path: Path) -> None:
    state = run(study, tmp_path, Several(study, workers=7))

    assert 5 <= state.evaluations < 6
    assert sum(c.cost for c in state.searched()) == state.items


def test_a_lost_worker_costs_its_part(study: Study, tmp_path: Path) -> None:
    pool = Several(study)
    pool.faults[1] = lambda outcome: Outcome(outcome.task, reason="gone", lost=True)
    state = run(study, tmp_path, pool)
    (hit,) = [c for c in state.searched() if c.attempts]

    assert hit.attempts == 1
    assert Counter(Counter(pool.parts(hit.id)).values()) == {1: 3, 2: 1}
    assert (hit.status, hit.cost) == ("scored", WHOLE)


def test_a_part_that_fails_ends_its_candidate_once(study: Study, tmp_path: Path) -> None:
    pool = Several(study)
    pool.faults[0] = lambda outcome: Outcome(outcome.task, reason="CandidateError: not finite")
    state = run(study, tmp_path, pool)
    failed = [c for c in state.searched() if c.status == "failed"]
    kinds = [kind for kind, id, _ in facts(tmp_path) if id == failed[0].id]

    assert [c.reason for c in failed] == ["CandidateError: not finite"]
    assert kinds == ["asked", "failed"]
    assert len(scored(state)) >= 3
    assert 5 <= state.evaluations < 6


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_stopped_among_parts_it_goes_on_with_other_workers(
    study: Study, tmp_path: Path, workers: int
) -> None:
    """What is known is not asked again; the score is that of one evaluation."""

    class Stopped(Exception):
        pass

    known: dict[int, list[int]] = {}

    def stop(state: State, running: int) -> None:
        known.update({c.id: blocks(c) for c in state.pending() if c.rungs})
        if any(len(found) == 10 for found in known.values()):
            raise Stopped

    with pytest.raises(Stopped):
        run(study, tmp_path, Several(study), stop)
    pool = Several(study, workers)
    state = run(study, tmp_path, pool)

    for id, before in known.items():
        after = list(chain.from_iterable(pool.parts(id)))
        assert sorted([*before, *after]) == list(range(20))
        candidate = state.candidates[id]
        assert candidate.cost == WHOLE
        assert candidate.scores is not None
        assert candidate.scores.body() == at_once(study, candidate).body()
    assert facts(tmp_path)[-1][0] == "finished"


def blocks(candidate: Candidate) -> list[int]:
    return [block for rung in candidate.rungs for block in rung.part.blocks]


def test_what_a_worker_leaves_out_is_never_scored_twice(study: Study, tmp_path: Path) -> None:
    """Every other part is lost once."""
    pool = Several(study)
    lose = chain.from_iterable(repeat((True, False)))
    pool.faults = {
        i: (lambda outcome: Outcome(outcome.task, reason="gone", lost=True))
        for i, lost in zip(range(6), lose, strict=False)
        if lost
    }
    state = run(study, tmp_path, pool)

    assert all(c.cost == WHOLE for c in scored(state))
    assert 5 <= state.evaluations < 6
