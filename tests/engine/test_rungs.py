"""Rungs and probes: what is asked, what is written, what a search hears, and exact resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from evomerge.engine import rescore
from evomerge.engine.pools.inline import InlinePool
from evomerge.engine.study import Study
from evomerge.engine.tasks import Outcome
from evomerge.engine.worker import Worker
from evomerge.errors import CandidateError, IntegrityError
from evomerge.ledger.events import Event
from evomerge.ledger.fold import State
from evomerge.ledger.results import front
from evomerge.ledger.store import open_ledger, read_events
from evomerge.search.base import Look, Search
from evomerge.search.testing import EchoGuided, EchoSearch, FakeSearch
from tests.engine.racing import ITEMS, driven_by, echo, guided, listed, raced
from tests.engine.test_loop import Breaking, facts, kill_after, run

PROBE = Look((3, 7), signal=True)
METRIC = Look((0,), signal=False)
KINDS: dict[str, tuple[float | None, Callable[[], Search]]] = {
    "racing": (0.4, echo),
    "probes": (None, guided(PROBE, None, METRIC)),
    "both": (0.4, guided(None, PROBE, None)),
}
GOOD, BAD = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raced")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def study(kind: str, workspace: Path, folder: Path) -> Study:
    return raced(workspace, folder, KINDS[kind][0], budget={"candidates": 8})


@pytest.fixture
def searches(kind: str, monkeypatch: pytest.MonkeyPatch) -> list[Search]:
    return driven_by(monkeypatch, KINDS[kind][1])


@pytest.fixture(scope="module")
def whole(kind: str, study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(kind)
    with pytest.MonkeyPatch.context() as patch:
        driven_by(patch, KINDS[kind][1])
        run(study, directory)
    return directory


def test_every_way_to_end_occurs(kind: str, whole: Path) -> None:
    found = Counter(c.status for c in folded(whole).searched())

    expected = {
        "racing": {"scored", "dropped"},
        "probes": {"scored", "probed"},
        "both": {"scored", "dropped", "probed"},
    }
    assert set(found) == expected[kind]


@pytest.mark.parametrize("after", [21, 24, 29, 34, 38])
def test_killed_it_resumes_to_the_identical_ledger(
    study: Study, whole: Path, searches: list[Search], tmp_path: Path, after: int
) -> None:
    kill_after(study, tmp_path, after)
    run(study, tmp_path)

    assert facts(tmp_path) == facts(whole)


def test_from_every_event_on_it_resumes_to_the_identical_ledger(
    study: Study, whole: Path, searches: list[Search], tmp_path: Path
) -> None:
    events = read_events(whole)
    cuts = [n for n, event in enumerate(events, 1) if event.kind in ("seen", "dropped", "asked")]
    judged = [n for n, event in enumerate(events) if event.kind == "dropped"]
    pool = InlinePool(study)
    for cut in cuts[::8] + judged[:2]:
        directory = tmp_path / str(cut)
        if not directory.exists():
            write(directory, events[:cut])
            run(study, directory, pool)
            assert facts(directory) == facts(whole), f"cut after {cut} events"


def test_a_resumed_search_has_heard_the_same(
    study: Study, whole: Path, searches: list[Search], tmp_path: Path
) -> None:
    run(study, tmp_path / "again")
    write(tmp_path / "cut", read_events(whole)[:30])
    run(study, tmp_path / "cut")

    first, second = searches
    assert isinstance(first, EchoSearch)
    assert isinstance(second, EchoSearch)
    assert first.calls == second.calls


def test_only_whole_scores_reach_the_front_and_the_held_out_split(
    study: Study, whole: Path
) -> None:
    state = folded(whole)

    on_front = front(state.searched(), study.experiment.optimise, study.directions)
    assert on_front
    assert {c.status for c in on_front} == {"scored"}
    held = {c.id for c in state.searched() if c.held_out is not None}
    assert held == {c.id for c in on_front}


def test_a_budget_of_candidates_is_one_of_their_items(study: Study, whole: Path) -> None:
    state = folded(whole)

    whole_one = 2 * ITEMS
    assert state.whole == whole_one
    assert len(state.searched()) > 8
    assert 8 * whole_one <= state.items < 9 * whole_one
    assert state.items == sum(c.cost for c in state.searched())
    assert state.evaluations == state.items / whole_one
    assert state.finished == "budget of 8 candidates is spent"


def folded(directory: Path) -> State:
    state = State()
    for event in read_events(directory):
        state.apply(event)
    return state


def write(directory: Path, events: list[Event]) -> None:
    ledger = open_ledger(directory)
    for event in events:
        ledger.append(event)
    ledger.close()


@pytest.fixture
def alone(workspace: Path, folder: Path) -> Study:
    return raced(workspace, folder, 0.4, budget={"candidates": 8})


def test_rungs_give_the_score_of_one_evaluation_bit_for_bit(
    workspace: Path, folder: Path, alone: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genomes = [(0.1 * i, 0.5, 1 - 0.1 * i) for i in range(8)]
    driven_by(monkeypatch, listed(genomes))
    parts = run(alone, tmp_path / "parts")
    at_once = run(raced(workspace, folder, None, budget={"candidates": 8}), tmp_path / "at once")

    scored = [c for c in parts.searched() if c.status == "scored"]
    assert len(scored) > 2
    for candidate in scored:
        other = at_once.candidates[candidate.id]
        assert candidate.scores is not None
        assert other.scores is not None
        assert candidate.scores.body() == other.scores.body()
        assert [s.part.blocks[-1] for s in candidate.seen] == [1, 4, 9]
        assert candidate.tokens == other.tokens


def test_a_dropped_candidate_costs_its_rungs_and_is_told_as_estimated(
    workspace: Path, folder: Path, alone: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = driven_by(monkeypatch, listed([GOOD, BAD]))
    state = run(alone, tmp_path / "raced")

    good, bad = state.searched()
    assert (good.status, bad.status) == ("scored", "dropped")
    assert bad.reason == f"#{good.id} dominates it at level 0.4 after 24 of 240 items"
    assert bad.scores is None
    assert state.items == 2 * ITEMS + 24
    (fake,) = searches
    assert isinstance(fake, FakeSearch)
    told = fake.calls[-1]
    assert (told.kind, told.candidate, told.genome) == ("tell", bad.id, BAD)
    right, surprise = told.scores
    assert good.scores is not None
    assert right < good.scores.values["right"].value
    assert -surprise > good.scores.values["surprise"].value
    true = run(raced(workspace, folder, None, budget={"candidates": 2}), tmp_path / "true")
    scores = true.candidates[bad.id].scores
    assert scores is not None
    assert right == pytest.approx(scores.values["right"].value, abs=0.1)
    assert -surprise == pytest.approx(scores.values["surprise"].value, rel=0.1)


class Counting(InlinePool):
    """Counts what the model is asked; changes the weights' digest at a chosen part."""

    def __init__(self, study: Study, other: int = -1) -> None:
        super().__init__(study)
        self.parts: list[tuple[int, Any]] = []
        self.other = other

    def wait(self) -> list[Outcome]:
        self.parts += [(task.candidate, task.part) for task in self._tasks]
        outcomes = super().wait()
        if len(self.parts) != self.other:
            return outcomes
        return [replace(o, seen=o.seen and replace(o.seen, digest="0" * 64)) for o in outcomes]


@pytest.mark.parametrize("rung", [1, 2, 3])
def test_parts_of_other_weights_are_refused(
    alone: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rung: int
) -> None:
    driven_by(monkeypatch, listed([GOOD]))
    with pytest.raises(IntegrityError, match=r"#6 has other weights than when its first items"):
        run(alone, tmp_path, Counting(alone, other=6 + rung + 1))

    assert [kind for kind, id, _ in facts(tmp_path) if id == 6] == ["asked"] + rung * ["seen"]


def test_a_lost_worker_costs_one_rung(
    alone: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven_by(monkeypatch, listed([GOOD]))
    pool = Counting(alone)
    whole = pool.wait
    lost = chain([False] * 7, [True], repeat(False))

    def wait() -> list[Outcome]:
        outcomes = whole()
        return [Outcome(outcomes[0].task, reason="gone", lost=True)] if next(lost) else outcomes

    monkeypatch.setattr(pool, "wait", wait)
    run(alone, tmp_path, pool)

    assert [kind for kind, id, _ in facts(tmp_path) if id == 6] == [
        *("asked", "seen", "lost", "seen", "seen", "scored", "held_out")
    ]
    asked = [part.blocks for id, part in pool.parts if id == 6 and part is not None]
    assert asked == [(0, 1), (2, 3, 4), (2, 3, 4), (5, 6, 7, 8, 9), tuple(range(10, 20))]


def test_a_guided_search_sees_every_item_once_and_hears_of_each_end(
    kind: str, study: Study, searches: list[Search], tmp_path: Path
) -> None:
    if kind == "racing":
        pytest.skip("no guided search")
    state = run(study, tmp_path)
    (search,) = searches
    assert isinstance(search, EchoGuided)

    for candidate in state.candidates.values():
        calls = [call for call in search.calls if call.candidate == candidate.id]
        by_metric: Counter[tuple[str, int]] = Counter()
        by_signal: Counter[tuple[str, int]] = Counter()
        for call in calls:
            if call.evidence is not None:
                for name, (positions, values) in call.evidence.items.items():
                    assert len(positions) == len(values)
                    counter = by_signal if call.evidence.signal else by_metric
                    counter.update((name, i) for i in positions)
        kinds = [call.kind for call in calls]
        everything = {(n, i) for n in ("right", "surprise") for i in range(ITEMS)}
        if candidate.genome is None:
            assert kinds == []
        elif candidate.is_reference:
            assert kinds == ["observe", "tell"]
            assert by_metric == Counter(everything)
        elif candidate.status == "scored":
            assert kinds[-2:] == ["observe", "tell"]
            assert by_metric == Counter(everything)
        elif candidate.status == "dropped":
            assert kinds == ["ask", *["observe"] * len(candidate.seen), "fail"]
            assert sum(by_metric.values()) == candidate.cost
        else:
            assert kinds == ["ask", *["observe"] * (1 + candidate.seen[0].part.signal)]
            assert sum((by_metric + by_signal).values()) == candidate.cost


def test_a_probe_that_cannot_be_built_has_failed(
    workspace: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = raced(workspace, folder, None, budget={"candidates": 2})
    made = driven_by(monkeypatch, guided(PROBE, None))
    state = run(study, tmp_path, Breaking(study, fails={6: "ValueError: broken"}))

    assert state.candidates[6].status == "failed"
    assert state.failed == 1
    (search,) = made
    assert isinstance(search, EchoGuided)
    assert search.calls[-1].kind == "tell"
    assert [c.kind for c in search.calls if c.candidate == 6] == ["ask", "fail"]
    assert state.evaluations == 2  # the failed one and the next, which was scored


def test_the_signals_of_a_reference_may_be_missing(
    workspace: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = raced(workspace, folder, None, budget={"candidates": 1})
    driven_by(monkeypatch, guided(None))
    pool = InlinePool(study)
    assert isinstance(pool._worker, Worker)
    evaluate = pool._worker._evaluate

    def without(task: Any) -> Outcome:
        if task.part is not None:
            raise CandidateError("no signal")
        return evaluate(task)

    monkeypatch.setattr(pool._worker, "_evaluate", without)
    state = run(study, tmp_path / "run", pool)

    assert all(c.status == "scored" for c in state.candidates.values())
    before = facts(tmp_path / "run")
    run(study, tmp_path / "run", pool)
    assert facts(tmp_path / "run") == before


def test_scoring_again_asks_the_parts_that_were_asked(
    alone: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven_by(monkeypatch, listed([GOOD]))
    pool = Counting(alone)
    state = run(alone, tmp_path, pool)
    candidate = state.candidates[6]
    asked: list[Any] = []
    assert isinstance(pool._worker, Worker)
    evaluate = pool._worker._evaluate

    def counted(task: Any) -> Outcome:
        asked.append(task.part)
        return evaluate(task)

    monkeypatch.setattr(pool._worker, "_evaluate", counted)
    assert candidate.genome is not None
    recipe = alone.space.recipe(candidate.genome)
    parts = [seen.part for seen in candidate.rungs]
    found = rescore.scored_in(pool._worker, recipe, alone.objectives, parts)

    assert candidate.scores is not None
    assert found.body() == candidate.scores.body()
    assert [part.blocks for part in asked] == [
        part.blocks for id, part in pool.parts if id == 6 and part is not None
    ]
