"""What the front is over: objective values of candidates, the front, its hypervolume and knee."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from evomerge.config import Optimise
from evomerge.front import front_order, hypervolume, knee
from evomerge.ledger.fold import Candidate, Scores
from evomerge.scoring.statistics import Value, aggregate_mean, aggregate_min

Split = Literal["search", "held_out"]


def scores_on(candidate: Candidate, split: Split) -> Scores | None:
    """The candidate's scores on a split, or None."""
    return candidate.scores if split == "search" else candidate.held_out


def value_of(scores: Scores, name: str, directions: Mapping[str, str]) -> Value | None:
    """An objective's value, or ``mean`` / ``min`` over the objectives that are maximised.

    None where it was not scored: an objective may have no held-out items, and an aggregate without
    one of its parts could not be compared with itself on another split.
    """
    if name in directions:
        return scores.values.get(name)
    maximised = [n for n, direction in directions.items() if direction == "maximise"]
    if any(n not in scores.values for n in maximised):
        return None
    values = [scores.values[n] for n in maximised]
    return aggregate_mean(values) if name == "mean" else aggregate_min(values)


def vector(scores: Scores, optimise: Optimise, directions: Mapping[str, str]) -> tuple[float, ...]:
    """The search-split values that the front is over, signed so that more is better."""
    values = [value_of(scores, name, directions) for name in optimise.names]
    return tuple(
        sign * value.value
        for sign, value in zip(optimise.signs, values, strict=True)
        if value is not None  # every objective has items to search
    )


def front(
    candidates: Iterable[Candidate], optimise: Optimise, directions: Mapping[str, str]
) -> list[Candidate]:
    """The candidates that none dominates on the search split, best first objective first."""
    scored = [(c, c.scores) for c in candidates if c.scores is not None]
    if not scored:
        return []
    points = [vector(scores, optimise, directions) for _, scores in scored]
    return [scored[i][0] for i in front_order(points)]


def front_hypervolume(
    candidates: Iterable[Candidate], optimise: Optimise, directions: Mapping[str, str]
) -> float:
    """Hypervolume of all scored candidates against the declared reference, search split."""
    points = [vector(c.scores, optimise, directions) for c in candidates if c.scores is not None]
    reference = [
        sign * value for sign, value in zip(optimise.signs, optimise.reference_point, strict=True)
    ]
    return hypervolume(points, reference) if points else 0.0


def front_knee(
    candidates: Iterable[Candidate], optimise: Optimise, directions: Mapping[str, str]
) -> Candidate:
    """The knee of the front on the search split (never chosen by held-out scores)."""
    on_front = front(candidates, optimise, directions)
    points = [vector(c.scores, optimise, directions) for c in on_front if c.scores is not None]
    return on_front[knee(points)]


def best(
    candidates: Iterable[Candidate], name: str, directions: Mapping[str, str]
) -> Candidate | None:
    """The candidate with the best search-split value of one objective or aggregate; the first."""
    sign = -1.0 if directions.get(name) == "minimise" else 1.0
    found: tuple[float, Candidate] | None = None
    for candidate in candidates:
        value = value_of(candidate.scores, name, directions) if candidate.scores else None
        if value is not None and (found is None or sign * value.value > found[0]):
            found = (sign * value.value, candidate)
    return found[1] if found else None
