"""Rounds: when one begins, what it is planned from, and that a replay plans nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from evomerge.errors import IntegrityError
from evomerge.search.planned import (
    FloatArray,
    Known,
    PlannedSearch,
    Rounds,
    favourites,
    growing,
    spread,
)
from evomerge.search.testing import Call, apply, record


class Planner:
    """Counts its calls; point i of round r is (r + 1) / 10 + i / 100, design points are 0.9."""

    def __init__(self, samples: int = 2, size: int = 3) -> None:
        self.seen: list[list[Known]] = []
        rounds = Rounds(lambda i: (0.9 + i / 1000,), samples, 2, lambda r, t: size, self.plan)
        self.search = PlannedSearch(rounds)

    def plan(self, history: Sequence[Known]) -> FloatArray:
        self.seen.append(list(history))
        known = history[-1]
        return np.array([[(known.round + 1) / 10 + i / 100] for i in range(known.size)])


def asked(search: PlannedSearch, first: int, count: int) -> list[float]:
    return [round(genome[0], 4) for genome in search.ask(range(first, first + count))]


def test_an_ask_never_waits() -> None:
    planner = Planner()
    assert asked(planner.search, 0, 4) == [0.9, 0.901, 0.902, 0.903]  # nothing is told
    planner.search.tell(0, (0.9,), (1.0,))
    assert asked(planner.search, 4, 1) == [0.904]  # too little
    planner.search.fail(1)
    planner.search.tell(2, (0.902,), (2.0,))
    assert asked(planner.search, 5, 4) == [0.1, 0.11, 0.12, 0.905]  # nothing new since the round
    planner.search.tell(5, (0.1,), (3.0,))
    assert asked(planner.search, 9, 2) == [0.2, 0.21]
    assert len(planner.seen) == 2


def test_a_round_knows_what_was_told_awaited_and_failed_when_it_began() -> None:
    planner = Planner()
    planner.search.ask([0, 1, 2, 3])
    planner.search.tell(0, (0.9,), (1.0,))
    planner.search.fail(1)
    planner.search.tell(2, (0.902,), (2.0,))
    planner.search.ask([4])
    planner.search.tell(4, (0.1,), (3.0,))
    (known,) = planner.seen[0]
    assert known.genomes.tolist() == [[0.9], [0.902]]
    assert known.scores.tolist() == [[1.0], [2.0]]
    assert sorted(known.taken.tolist()) == [[0.901], [0.903]]
    planner.search.ask([5, 6, 7])
    assert [len(past.genomes) for past in planner.seen[1]] == [2, 3]


def test_references_count_as_told() -> None:
    planner = Planner(samples=0)
    for candidate in range(2):
        planner.search.tell(candidate, (0.5,), (1.0,))
    planner.search.fail(7)
    assert asked(planner.search, 10, 1) == [0.1]


def test_a_replay_plans_nothing_and_its_round_is_planned_as_it_was() -> None:
    first = Planner()
    calls = record(first.search, 1, 1, asks=12)
    assert first.seen
    for cut in range(len(calls)):
        resumed = Planner()
        for call in calls[:cut]:
            apply(resumed.search, call)
        assert not resumed.seen
        rest = [call for call in calls[cut:] if call.kind == "ask"][:1]
        for call in calls[cut : calls.index(rest[0])] if rest else []:
            apply(resumed.search, call)
        assert [resumed.search.ask([call.candidate]) for call in rest] == [[c.genome] for c in rest]


def test_a_replay_of_another_design_is_refused() -> None:
    with pytest.raises(IntegrityError, match="candidate 0"):
        apply(Planner().search, Call("ask", 0, (0.4,)))


def test_rounds_grow_with_what_is_told() -> None:
    assert [growing(10)(0, told) for told in (4, 500, 2000)] == [10, 10, 40]


def test_spread_takes_the_ends_first_and_keeps_away() -> None:
    points = np.array([[0.0, 1.0], [0.1, 0.9], [0.5, 0.6], [1.0, 0.0]])
    assert spread(points, 3, np.empty((0, 2)))[0] == 2  # the largest sum
    assert spread(points, 2, np.array([[0.0, 1.0]])) == [3, 2]
    assert sorted(spread(points, 9, np.empty((0, 2)))) == [0, 1, 2, 3]


def test_favourites_are_each_taken_once_from_the_best() -> None:
    predicted = np.arange(20.0)[:, None]
    told = np.array([[0.0], [1.0]])
    random = np.random.default_rng(0)
    assert favourites(random, predicted, told, 3, best=1) == [19, 18, 17]
    many = favourites(random, predicted, told, 10, best=5)
    assert len(set(many)) == 10
    assert min(many) >= 20 - 10 - 4
