"""Searches that plan: a design first, then rounds of points that a model of the scores proposes.

A round is planned from what is known when it begins: the told points, and those that are awaited
or have failed. It is planned only when one of its points is asked for, so that a replay, which is
given the points, fits nothing; and all of it from that one snapshot, so that a resumed search plans
the same. A new round begins when the last one is used up and something was told since; until then,
and while too little is told, points of the design are proposed: an ask never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.search.base import Genome, check_replay
from evomerge.search.threads import one_thread

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """What a round is planned from: n told points of d genes with m scores, float64.

    ``taken`` (t, d) are the points that are awaited or have failed; ``round`` counts from 0, and
    ``size`` points are wanted.
    """

    genomes: FloatArray
    scores: FloatArray
    taken: FloatArray
    round: int
    size: int


Plan = Callable[[Sequence[Known]], FloatArray]
"""From the snapshots of all rounds so far, oldest first: the points (size, d) of the last one."""


@dataclass(frozen=True)
class Rounds:
    """How a planned search proceeds.

    ``design(i)`` is point i of the design, of which ``samples`` are proposed first. A round needs
    ``least`` told points and has ``size(round, told)`` points.
    """

    design: Callable[[int], Genome]
    samples: int
    least: int
    size: Callable[[int, int], int]
    plan: Plan


@dataclass(frozen=True)
class _Snapshot:
    told: int
    taken: tuple[Genome, ...]
    size: int


class PlannedSearch:
    """Adapter between the search seam and a `Plan`."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self._told: list[tuple[Genome, tuple[float, ...]]] = []
        self._taken: dict[int, Genome] = {}  # awaited or failed, by candidate
        self._designed = 0
        self._snapshots: list[_Snapshot] = []
        self._used = 0  # points of the last round
        self._points: list[Genome] | None = None  # of the last round, once planned

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        return [self._ask(candidate, None) for candidate in candidates]

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        self._taken.pop(candidate, None)
        self._told.append((genome, scores))

    def fail(self, candidate: int) -> None:
        """Its point stays taken: it would only fail again."""

    def replay(self, candidate: int, genome: Genome) -> None:
        self._ask(candidate, genome)

    def _ask(self, candidate: int, recorded: Genome | None) -> Genome:
        genome = self._next(recorded)
        if recorded is not None:
            check_replay(candidate, recorded, genome)
        self._taken[candidate] = genome
        return genome

    def _next(self, recorded: Genome | None) -> Genome:
        if self._designed >= self._rounds.samples and self._planning():
            self._used += 1
            if recorded is not None and self._points is None:
                return recorded
            if self._points is None:
                self._points = self._plan()
            return self._points[self._used - 1]
        self._designed += 1
        return self._rounds.design(self._designed - 1)

    def _planning(self) -> bool:
        """Whether the next point is one of a round; begins a new one where it is time."""
        last = self._snapshots[-1] if self._snapshots else _Snapshot(-1, (), 0)
        if self._used < last.size:
            return True
        told = len(self._told)
        if told < self._rounds.least or told == last.told:
            return False
        size = self._rounds.size(len(self._snapshots), told)
        self._snapshots.append(_Snapshot(told, tuple(self._taken.values()), size))
        self._used, self._points = 0, None
        return True

    def _plan(self) -> list[Genome]:
        genomes = np.array([genome for genome, _ in self._told], dtype=np.float64)
        scores = np.array([scores for _, scores in self._told], dtype=np.float64)
        history = [
            Known(
                genomes[: at.told],
                scores[: at.told],
                np.array(at.taken, dtype=np.float64).reshape(-1, genomes.shape[1]),
                number,
                at.size,
            )
            for number, at in enumerate(self._snapshots)
        ]
        with one_thread():
            points = self._rounds.plan(history)
        return [tuple(point) for point in np.clip(points, 0.0, 1.0).tolist()]


def growing(batch: int) -> Callable[[int, int], int]:
    """Rounds of ``batch`` points, and of a fiftieth of what is told once that is more.

    A round then costs the less a point the more there is to fit.
    """
    return lambda number, told: max(batch, told // 50)


def generator(seed: int, *path: int) -> np.random.Generator:
    """A generator of its own for each use, a function of the search's seed and the path."""
    return np.random.default_rng([seed, *path])


def spread(points: FloatArray, count: int, avoid: FloatArray) -> list[int]:
    """Which ``count`` of the points to take so that they cover them: the farthest next.

    ``points`` (n, k) and ``avoid`` (a, k), whose places count as taken, are scaled by the range of
    the points. Without anything to avoid it begins with the largest sum of coordinates.
    """
    low, width = points.min(axis=0), np.ptp(points, axis=0)
    width = np.where(width > 0, width, 1.0)
    scaled, far = (points - low) / width, np.full(len(points), np.inf)
    for place in (avoid - low) / width:
        far = np.minimum(far, ((scaled - place) ** 2).sum(axis=1))
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        first = not len(avoid) and not chosen
        index = int(np.argmax(scaled.sum(axis=1) if first else far))
        chosen.append(index)
        far = np.minimum(far, ((scaled - scaled[index]) ** 2).sum(axis=1))
        far[chosen] = -1.0
    return chosen


def favourites(
    random: np.random.Generator, predicted: FloatArray, told: FloatArray, count: int, best: int
) -> list[int]:
    """Which points to take for their predicted scores (n, m): ``count`` of them, each once.

    Each is drawn from the ``best`` by a sum of the scores with weights of its own, even on the
    simplex, the scores in units of the range of the told ones (t, m).
    """
    width = np.ptp(told, axis=0)
    scaled = predicted / np.where(width > 0, width, 1.0)
    chosen: list[int] = []
    for weights in random.dirichlet(np.ones(scaled.shape[1]), size=min(count, len(predicted))):
        value = scaled @ weights
        value[chosen] = -np.inf
        top = np.argsort(-value, kind="stable")[: min(best, len(value) - len(chosen))]
        chosen.append(int(random.choice(top)))
    return chosen
