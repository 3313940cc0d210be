from __future__ import annotations

import pytest

from evomerge.config import Optimise
from evomerge.ledger.fold import Candidate, Scores
from evomerge.ledger.results import best, front, front_hypervolume, front_knee, value_of, vector
from evomerge.scoring.statistics import Value

DIRECTIONS = {"acc": "maximise", "recall": "maximise", "ppl": "minimise"}


def scores(acc: float, recall: float, ppl: float) -> Scores:
    values = {"acc": acc, "recall": recall, "ppl": ppl}
    return Scores("d", {n: Value(v, None, 1) for n, v in values.items()}, {}, 0)


def candidate(id: int, *numbers: float) -> Candidate:
    return Candidate(id, genome=(0.5,), status="scored", scores=scores(*numbers))


CANDIDATES = [
    candidate(0, 0.2, 0.9, 10.0),
    candidate(1, 0.6, 0.7, 12.0),
    candidate(2, 0.5, 0.5, 12.0),  # dominated by 1
    candidate(3, 0.8, 0.1, 30.0),
    Candidate(4, genome=(0.1,)),
]


def test_aggregates_leave_out_what_is_minimised() -> None:
    one = scores(0.2, 0.9, 10.0)
    found = {name: value_of(one, name, DIRECTIONS) for name in ("mean", "min", "ppl")}
    assert {name: v.value for name, v in found.items() if v} == pytest.approx(
        {"mean": 0.55, "min": 0.2, "ppl": 10.0}
    )


def test_what_was_not_scored_has_no_value_and_no_aggregate() -> None:
    held_out = scores(0.2, 0.9, 10.0)
    partly = Scores("d", {n: v for n, v in held_out.values.items() if n != "recall"}, {}, 0)
    assert value_of(partly, "recall", DIRECTIONS) is None
    assert value_of(partly, "mean", DIRECTIONS) is None
    assert value_of(partly, "min", DIRECTIONS) is None
    assert value_of(partly, "acc", DIRECTIONS) == held_out.values["acc"]


def test_the_vector_is_signed() -> None:
    optimise = Optimise(maximise=("min",), minimise=("ppl",), reference={"ppl": 100.0})
    assert vector(scores(0.2, 0.9, 10.0), optimise, DIRECTIONS) == (0.2, -10.0)


def test_front_and_hypervolume() -> None:
    optimise = Optimise(maximise=("acc",), minimise=("ppl",), reference={"ppl": 20.0})
    assert [c.id for c in front(CANDIDATES, optimise, DIRECTIONS)] == [3, 1, 0]
    # boxes below (0.6, 12) and (0.2, 10) against (0, 20); (0.8, 30) is worse than the reference
    expected = 0.6 * (20 - 12) + 0.2 * (12 - 10)
    assert front_hypervolume(CANDIDATES, optimise, DIRECTIONS) == pytest.approx(expected)


def test_the_knee_is_on_the_front() -> None:
    optimise = Optimise(maximise=("acc", "recall"))
    assert front_knee(CANDIDATES, optimise, DIRECTIONS).id == 1


def test_nothing_scored() -> None:
    optimise = Optimise(maximise=("acc",))
    assert front([Candidate(0)], optimise, DIRECTIONS) == []
    assert front_hypervolume([Candidate(0)], optimise, DIRECTIONS) == 0.0
    assert best([], "acc", DIRECTIONS) is None


def test_best_of_one_objective() -> None:
    found = [best(CANDIDATES, name, DIRECTIONS) for name in ("acc", "ppl", "min")]
    assert [c.id for c in found if c is not None] == [3, 0, 1]
