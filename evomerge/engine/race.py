"""The race of a study: the front so far, and whether it dominates what was seen of a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from evomerge.engine.rungs import Rungs
from evomerge.ledger.fold import Candidate, Scores
from evomerge.ledger.results import vector
from evomerge.ledger.seen import Seen
from evomerge.scoring import racing

_EQUAL = 1e-9  # relative; of sums in another order
Form = Literal["mean", "exp", "other"]


@dataclass(frozen=True)
class _Scored:
    """A fully scored candidate; its ``point`` is signed so that more is better.

    The mean of an objective's ``items`` is its value, or (form ``exp``) the logarithm of it.
    """

    candidate: Candidate
    point: tuple[float, ...]
    items: Mapping[str, Any]  # arrays, float64
    forms: Mapping[str, Form]
    weights: Mapping[str, tuple[float, ...]]


@dataclass
class Race:
    """Follows what was fully scored, event by event, and judges by it what was not.

    Candidates are compared with the front of those that the search proposed; all others that were
    scored, reference points too, help to predict the items that are not known yet. So a verdict is
    a function of the candidates that were entered, in their order. ``fitness`` makes of values by
    objective what a search is told.
    """

    rungs: Rungs
    fitness: Callable[[Mapping[str, float]], tuple[float, ...]]
    _front: list[_Scored] = field(default_factory=list)
    _others: list[_Scored] = field(default_factory=list)

    def enter(self, candidate: Candidate) -> None:
        """Takes a fully scored candidate into account."""
        new = self._scored(candidate)
        beaten = candidate.is_reference or any(_dominates(m.point, new.point) for m in self._front)
        if beaten:
            self._others = [*self._others, new][-racing.PREDICTORS :]
            return
        lost = [m for m in self._front if _dominates(new.point, m.point)]
        self._others = [*self._others, *lost][-racing.PREDICTORS :]
        self._front = [*(m for m in self._front if not _dominates(new.point, m.point)), new]

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
        members, others = ([s.items for s in scored] for scored in (self._front, self._others))
        look, looks = len(candidate.rungs) - 1, len(self.rungs.parts) - 1
        winner = racing.verdict(
            seen, self._counts, members, self._aims, look, looks, settings.level, others
        )
        if winner is None:
            return None
        by = self._front[winner].candidate
        estimates = racing.estimate(seen, self._counts, members, others)
        values = {name: self._value(name, float(found.value)) for name, found in estimates.items()}
        return {
            "reason": f"{by.label} dominates it at level {settings.level:g} after "
            f"{candidate.cost} of {self.rungs.size} items",
            "by": by.id,
            "told": list(self.fitness(values)),
        }

    def _scored(self, candidate: Candidate) -> _Scored:
        scores, study = candidate.scores, self.rungs.study
        assert scores is not None
        items = {name: _linear(scores, name) for name in scores.items}
        return _Scored(
            candidate,
            vector(scores, study.experiment.optimise, study.directions),
            {name: np.array(values) for name, values in items.items()},
            {name: _form(scores.values[name].value, items[name]) for name in items},
            scores.weights,
        )

    @cached_property
    def _aims(self) -> tuple[racing.Aim, ...]:
        optimise = self.rungs.study.experiment.optimise
        return racing.aims_of(optimise.names, optimise.signs, self.rungs.study.directions)

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {o.name: len(o.items("search")) or 1 for o in self.rungs.study.objectives}

    def _comparable(self, name: str, rungs: Sequence[Seen], positions: Sequence[int]) -> bool:
        """Whether an objective's items can be compared one by one with those of the others.

        Their weights must be equal, and what is made of their mean must not change an aim.
        """
        scored = [*self._front, *self._others]
        forms = {s.forms[name] for s in scored}
        alone = all(name not in aim.terms or len(aim.terms) == 1 for aim in self._aims)
        weights = {s.weights.get(name) for s in scored}
        if len(weights) > 1 or not (forms == {"mean"} or (forms == {"exp"} and alone)):
            return False
        (known,) = weights
        return _units(name, rungs) == [1.0 if known is None else known[i] for i in positions]

    def _scaled(
        self, name: str, positions: Sequence[int], values: Sequence[float]
    ) -> tuple[float, ...]:
        """A candidate's values in the scale of a member's ``items``."""
        weights = self._front[0].weights.get(name)
        if weights is None:
            return tuple(values)
        scale = len(weights) / math.fsum(weights)
        return tuple(value * weights[i] * scale for i, value in zip(positions, values, strict=True))

    def _value(self, name: str, mean: float) -> float:
        return math.exp(mean) if self._front[0].forms[name] == "exp" else mean


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


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
