"""The race of a study: the front so far, and whether it dominates what was seen of a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from evomerge.engine.rungs import Rungs
from evomerge.ledger.fold import Candidate, Scores
from evomerge.ledger.results import vector
from evomerge.ledger.seen import Seen
from evomerge.scoring import racing

_EQUAL = 1e-9  # relative; of sums in another order
Form = Literal["mean", "exp", "other"]


@dataclass(frozen=True)
class _Member:
    """A candidate on the front; its ``point`` is signed so that more is better.

    The mean of an objective's ``items`` is its value, or (form ``exp``) the logarithm of it.
    """

    candidate: Candidate
    point: tuple[float, ...]
    items: Mapping[str, tuple[float, ...]]
    forms: Mapping[str, Form]


@dataclass
class Race:
    """Follows the front of the proposed candidates, event by event, and judges by it.

    What it says is a function of the candidates that were entered, in their order. ``fitness``
    makes of values by objective what a search is told.
    """

    rungs: Rungs
    fitness: Callable[[Mapping[str, float]], tuple[float, ...]]
    _front: list[_Member] = field(default_factory=list)

    def enter(self, candidate: Candidate) -> None:
        """Takes a fully scored candidate into account."""
        scores = candidate.scores
        assert scores is not None
        study = self.rungs.study
        point = vector(scores, study.experiment.optimise, study.directions)
        if any(_dominates(member.point, point) for member in self._front):
            return
        items = {name: _linear(scores, name) for name in scores.items}
        forms = {name: _form(scores.values[name].value, items[name]) for name in items}
        kept = [member for member in self._front if not _dominates(point, member.point)]
        self._front = [*kept, _Member(candidate, point, items, forms)]

    def verdict(self, candidate: Candidate) -> dict[str, Any] | None:
        """The body of the event that drops a candidate after a rung; None if it goes on.

        ``told`` estimates what it would have been told to the search with.
        """
        settings = self.rungs.study.experiment.search.racing
        if not settings or not self._front:
            return None
        known = self.rungs.known(candidate.rungs)
        seen = {
            name: (positions, self._scaled(name, positions, values))
            for name, (positions, values) in known.items()
            if self._comparable(name, candidate.rungs, positions)
        }
        members = [member.items for member in self._front]
        look, looks = len(candidate.rungs) - 1, len(self.rungs.parts) - 1
        winner = racing.verdict(
            seen, self._counts, members, self._aims, look, looks, settings.level
        )
        if winner is None:
            return None
        by = self._front[winner].candidate
        estimates = racing.estimate(seen, self._counts, members)
        values = {name: self._value(name, found.value) for name, found in estimates.items()}
        return {
            "reason": f"{by.label} dominates it at level {settings.level:g} after "
            f"{candidate.cost} of {self.rungs.size} items",
            "by": by.id,
            "told": list(self.fitness(values)),
        }

    @cached_property
    def _aims(self) -> tuple[racing.Aim, ...]:
        optimise = self.rungs.study.experiment.optimise
        return racing.aims_of(optimise.names, optimise.signs, self.rungs.study.directions)

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {o.name: len(o.items("search")) or 1 for o in self.rungs.study.objectives}

    def _comparable(self, name: str, rungs: Sequence[Seen], positions: Sequence[int]) -> bool:
        """Whether an objective's items can be compared one by one with those of every member.

        Their weights must be equal, and what is made of their mean must not change an aim.
        """
        forms = {member.forms[name] for member in self._front}
        alone = all(name not in aim.terms or len(aim.terms) == 1 for aim in self._aims)
        units = _units(name, rungs)
        return (forms == {"mean"} or (forms == {"exp"} and alone)) and all(
            units == [own[i] if (own := _weights(m.candidate, name)) else 1.0 for i in positions]
            for m in self._front
        )

    def _scaled(
        self, name: str, positions: Sequence[int], values: Sequence[float]
    ) -> tuple[float, ...]:
        """A candidate's values in the scale of a member's ``items``."""
        weights = _weights(self._front[0].candidate, name)
        if weights is None:
            return tuple(values)
        scale = len(weights) / math.fsum(weights)
        return tuple(value * weights[i] * scale for i, value in zip(positions, values, strict=True))

    def _value(self, name: str, mean: float) -> float:
        return math.exp(mean) if self._front[0].forms[name] == "exp" else mean


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _weights(candidate: Candidate, name: str) -> tuple[float, ...] | None:
    """Of all items of an objective; None if they are 1."""
    assert candidate.scores is not None
    return candidate.scores.weights.get(name)


def _units(name: str, rungs: Sequence[Seen]) -> list[float]:
    """The weights of the items that were seen, in their order."""
    if name in rungs[-1].weighed:
        return [1.0]
    return [w for s in rungs for w in s.weights.get(name, (1.0,) * len(s.items[name]))]


def _linear(scores: Scores, name: str) -> tuple[float, ...]:
    """Items whose plain mean is their weighted one."""
    values, weights = scores.items[name], scores.weights.get(name)
    if weights is None:
        return values
    scale = len(weights) / math.fsum(weights)
    return tuple(value * weight * scale for value, weight in zip(values, weights, strict=True))


def _form(value: float, items: Sequence[float]) -> Form:
    mean = math.fsum(items) / len(items)
    if math.isclose(value, mean, rel_tol=_EQUAL, abs_tol=_EQUAL):
        return "mean"
    exponential = value > 0 and math.isclose(math.log(value), mean, abs_tol=_EQUAL)
    return "exp" if exponential else "other"
