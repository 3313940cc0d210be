"""What the front is over: objective values of candidates, the front, its hypervolume and knee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from evomerge.config import Optimise
from evomerge.front import front_order, hypervolume, knee
from evomerge.ledger.fold import Candidate, Scores, State
from evomerge.scoring.statistics import Value, aggregate_mean, aggregate_min

Split = Literal["search", "held_out"]


def scores_on(candidate: Candidate, split: Split) -> Scores | None:
    """The candidate's scores on a split, or None."""
    return candidate.scores if split == "search" else candidate.held_out


def value_of(scores: Scores, name: str, directions: Mapping[str, str]) -> Value:
    """An objective's value, or ``mean`` / ``min`` over the objectives that are maximised."""
    if name in scores.values:
        return scores.values[name]
    maximised = [v for n, v in scores.values.items() if directions[n] == "maximise"]
    return aggregate_mean(maximised) if name == "mean" else aggregate_min(maximised)


def vector(scores: Scores, optimise: Optimise, directions: Mapping[str, str]) -> tuple[float, ...]:
    """The values that the front is over, signed so that more is better."""
    return tuple(
        sign * value_of(scores, name, directions).value
        for name, sign in zip(optimise.names, optimise.signs, strict=True)
    )


def front(
    candidates: Sequence[Candidate],
    optimise: Optimise,
    directions: Mapping[str, str],
    split: Split = "search",
) -> list[Candidate]:
    """The candidates that none dominates on a split, best first objective first."""
    held = [(c, s) for c in candidates if (s := scores_on(c, split)) is not None]
    if not held:
        return []
    points = [vector(s, optimise, directions) for _, s in held]
    return [held[i][0] for i in front_order(points)]


def front_hypervolume(
    candidates: Sequence[Candidate], optimise: Optimise, directions: Mapping[str, str]
) -> float:
    """Hypervolume of all scored candidates against the declared reference, search split."""
    points = [vector(c.scores, optimise, directions) for c in candidates if c.scores is not None]
    reference = [
        sign * value for sign, value in zip(optimise.signs, optimise.reference_point, strict=True)
    ]
    return hypervolume(points, reference) if points else 0.0


def front_knee(
    candidates: Sequence[Candidate], optimise: Optimise, directions: Mapping[str, str]
) -> Candidate:
    """The knee of the front on the search split (never chosen by held-out scores)."""
    on_front = front(candidates, optimise, directions)
    points = [vector(c.scores, optimise, directions) for c in on_front if c.scores is not None]
    return on_front[knee(points)]


def best(state: State, name: str, directions: Mapping[str, str], sign: float) -> Candidate | None:
    """The scored candidate with the best search-split value of one objective or aggregate."""
    scored = [(c, c.scores) for c in state.scored() if c.scores is not None]
    if not scored:
        return None
    return max(scored, key=lambda pair: sign * value_of(pair[1], name, directions).value)[0]
