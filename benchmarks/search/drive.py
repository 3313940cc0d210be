"""One search on one bed: what an engine does, on a simulated clock, with its cost counted.

References are told first. Then free workers ask, items arrive at their time (one unit an item),
and the search learns of them in that order. A candidate is a probe (the blocks of its look), or it
is scored: at once, or with racing in rungs, after each of which it may be dropped. Only fully
scored candidates enter the front. Cost is one for each item scored, by the metric or the signal.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from benchmarks.search.bed import Bed, Positions, Values, all_positions, fitness
from evomerge.front import front_order, hypervolume, knee
from evomerge.scoring import racing
from evomerge.scoring.blocks import BLOCKS
from evomerge.search.base import Evidence, Genome, Look, Measured, Search

MakeSearch = Callable[[Measured], Search]

T = TypeVar("T")

SHARES = (0.1, 0.25, 0.5, 1.0)
"""Of the blocks, after each of which a race may end."""

LEVEL = 0.05
"""Chance at most with which a race ends for a candidate that belongs on the front."""

AIMS = ("mean", "min")


@dataclass(frozen=True)
class Scored:
    """A fully scored candidate, and the items scored by then (by everybody)."""

    cost: int
    genome: Genome
    values: Mapping[str, float]


@dataclass(frozen=True)
class Dropped:
    """A candidate that lost its race: after how many items, and how many were fully scored then."""

    genome: Genome
    items: int
    before: int


@dataclass
class Record:
    """What one search did with its budget."""

    references: list[Scored] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    probes: int = 0
    cost: int = 0
    tokens: float = 0.0
    clock: float = 0.0
    """Simulated time at the end, in items of one worker."""
    proposing: float = 0.0
    """Seconds in the search, all its calls."""
    scoring: float = 0.0
    """Seconds in the bed."""


@dataclass(frozen=True)
class Curve:
    """Values reached by cost: steps, the first at cost 0 by the references."""

    cost: tuple[int, ...]
    hypervolume: tuple[float, ...]
    best: tuple[float, ...]
    """Best mean."""

    def at(self, cost: float, what: str = "hypervolume") -> float:
        values: tuple[float, ...] = getattr(self, what)
        return values[int(np.searchsorted(self.cost, cost, side="right")) - 1]

    def reaches(self, level: float, what: str = "hypervolume") -> float:
        """The cost at which a level is reached; infinite where it is not."""
        values: tuple[float, ...] = getattr(self, what)
        return next((c for c, v in zip(self.cost, values, strict=True) if v >= level), np.inf)

    def area(self, budget: int, what: str = "hypervolume") -> float:
        """The mean of the curve over the budget."""
        values = getattr(self, what)
        ends = [*self.cost[1:], budget]
        steps = zip(self.cost, ends, values, strict=True)
        return float(sum(max(min(b, budget) - a, 0) * v for a, b, v in steps) / budget)


def blocks_of(bed: Bed, count: int = BLOCKS) -> tuple[Positions, ...]:
    """The items in blocks, stratified over the objectives, in the bed's own order of items."""
    count = min(count, *bed.counts.values())
    return tuple(
        {name: tuple(range(n * b // count, n * (b + 1) // count)) for name, n in bed.counts.items()}
        for b in range(count)
    )


def rungs_of(count: int, shares: Sequence[float] = SHARES) -> list[range]:
    """The blocks that each rung adds."""
    ends = [0, *(round(share * count) for share in shares)]
    return [range(a, b) for a, b in pairwise(ends) if b > a]


def join(blocks: Sequence[Positions], which: Sequence[int]) -> Positions:
    """The positions of several blocks, ascending."""
    return {
        name: tuple(sorted(i for b in which for i in blocks[b][name]))
        for name in blocks[0]
        if any(blocks[b][name] for b in which)
    }


@dataclass
class _Job:
    candidate: int
    genome: Genome
    parts: list[Positions]
    """What is still to be asked of it, the part on the way included."""
    signal: bool = False
    probe: bool = False
    seen: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return sum(len(at) for part in self.parts for at in part.values())


class Run:
    """The state of one simulated run."""

    def __init__(
        self, bed: Bed, make: MakeSearch, budget: int, workers: int, level: float | None
    ) -> None:
        self.bed, self.budget, self.workers, self.level = bed, budget, workers, level
        self.blocks = blocks_of(bed)
        self.record = Record()
        measured = Measured(self.blocks, frozenset(bed.objectives), fitness)
        self.search: Any = self._timed(lambda: make(measured))  # a Search, perhaps a Guided one
        self.guided = hasattr(self.search, "observe")
        self.clock: list[tuple[float, int, _Job]] = []
        self.now = 0.0
        self.order = 0
        self.number = 0
        self.committed = 0
        self.held: list[_Job] = []
        self.raced: list[tuple[tuple[float, float], racing.Scored]] = []

    def references(self) -> None:
        for genome in self.bed.references.values():
            job = _Job(self._number(), genome, [all_positions(self.bed)])
            self._see(job, self.bed.metric(genome, job.parts[0]))
            self.record.references.append(self._finish(job, cost=0))

    def loop(self) -> None:
        while True:
            self.fill()
            if not self.next():
                return

    def next(self) -> bool:
        """The next items arrive; False where none are on their way."""
        if not self.clock:
            return False
        self.now, _, job = heapq.heappop(self.clock)
        self._arrive(job)
        return True

    def fill(self) -> None:
        """Starts jobs on free workers, as long as the budget has room for all of a job."""
        while len(self.clock) < self.workers:
            if not self.held:
                self.held = self._ask(self.workers - len(self.clock))
            if not self.held or self.committed + self.held[0].items > self.budget:
                return
            job = self.held.pop(0)
            self.committed += job.items
            self._schedule(job)

    def _ask(self, count: int) -> list[_Job]:
        if self.committed >= self.budget:
            return []
        numbers = [self._number() for _ in range(count)]
        genomes = self._timed(lambda: self.search.ask(numbers))
        jobs = []
        for number, genome in zip(numbers, genomes, strict=False):
            look = self._look(number)
            if look is not None:
                blocks = join(self.blocks, look.blocks)
                jobs.append(_Job(number, genome, [blocks], look.signal, probe=True))
            elif self.level is None:
                jobs.append(_Job(number, genome, [all_positions(self.bed)]))
            else:
                rungs = rungs_of(len(self.blocks))
                jobs.append(_Job(number, genome, [join(self.blocks, r) for r in rungs]))
        return jobs

    def _look(self, candidate: int) -> Look | None:
        if not self.guided:
            return None
        look: Look | None = self._timed(lambda: self.search.look(candidate))
        return look

    def _arrive(self, job: _Job) -> None:
        ask = self.bed.signal if job.signal else self.bed.metric
        start = time.perf_counter()
        values = ask(job.genome, job.parts[0])
        self.record.scoring += time.perf_counter() - start
        for name, found in values.items():
            self.record.cost += len(found)
            self.record.tokens += len(found) * self.bed.tokens[name][job.signal]
        self._see(job, values)
        if job.probe:
            self.record.probes += 1
        elif not job.parts:
            self.record.scored.append(self._finish(job, self.record.cost))
        elif self._loses(job):
            self.committed -= job.items
            items = sum(len(at) for at, _ in job.seen.values())
            self.record.dropped.append(Dropped(job.genome, items, len(self.record.scored)))
            self._drop(job)
        else:
            self._schedule(job)

    def _schedule(self, job: _Job) -> None:
        self.order += 1
        items = sum(len(at) for at in job.parts[0].values())
        heapq.heappush(self.clock, (self.now + items, self.order, job))

    def _see(self, job: _Job, values: Values) -> None:
        part = job.parts.pop(0)
        for name, found in values.items():
            at, seen = job.seen.setdefault(name, ([], []))
            at += part[name]
            seen += found
        if self.guided:
            items = {name: (tuple(part[name]), tuple(found)) for name, found in values.items()}
            evidence = Evidence(job.signal, items)
            self._timed(lambda: self.search.observe(job.candidate, job.genome, evidence))

    def _finish(self, job: _Job, cost: int) -> Scored:
        values = {name: float(np.mean(job.seen[name][1])) for name in self.bed.objectives}
        scores = fitness(values)
        if self.level is not None:
            self._enter(job, scores)
        self._timed(lambda: self.search.tell(job.candidate, job.genome, scores))
        return Scored(cost, job.genome, values)

    def _enter(self, job: _Job, scores: tuple[float, float]) -> None:
        items = {}
        for name, (at, seen) in job.seen.items():
            items[name] = np.array(seen)[np.argsort(at)].tolist()
        self.raced.append((scores, items))

    def _front(self) -> tuple[list[racing.Scored], list[racing.Scored]]:
        """Items of the front's members, and of the others that are fully scored."""
        order = front_order([scores for scores, _ in self.raced])
        rest = [items for i, (_, items) in enumerate(self.raced) if i not in order]
        return [self.raced[i][1] for i in order], rest

    def _loses(self, job: _Job) -> bool:
        assert self.level is not None
        names = self.bed.objectives
        aims = racing.aims_of(AIMS, (1.0, 1.0), dict.fromkeys(names, "maximise"))
        looks = len(rungs_of(len(self.blocks))) - 1
        look = looks - len(job.parts)
        members, rest = self._front()
        lost = racing.verdict(
            job.seen, self.bed.counts, members, aims, look, looks, self.level, rest
        )
        return lost is not None

    def _drop(self, job: _Job) -> None:
        """A guided search has observed it all; another is told what the score would be."""
        if self.guided:
            self._timed(lambda: self.search.fail(job.candidate))
            return
        values = racing.estimate(job.seen, self.bed.counts, *self._front())
        scores = fitness({name: value.value for name, value in values.items()})
        self._timed(lambda: self.search.tell(job.candidate, job.genome, scores))

    def _number(self) -> int:
        self.number += 1
        return self.number - 1

    def _timed(self, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        found = call()
        self.record.proposing += time.perf_counter() - start
        return found


def drive(
    bed: Bed, make: MakeSearch, budget: int, workers: int = 1, level: float | None = None
) -> Record:
    """Searches until the budget, in scored items, has no room for another candidate.

    `level` is that of racing; None: every candidate that is not a probe is fully scored.
    """
    run = Run(bed, make, budget, workers, level)
    run.references()
    run.record.proposing = 0.0
    run.loop()
    run.record.clock = run.now
    return run.record


def curve(bed: Bed, record: Record) -> Curve:
    """Hypervolume of (mean, min) and best mean, at every cost at which one of them rose."""
    points = [fitness(s.values) for s in record.references]
    steps = [(0, hypervolume(points, bed.reference_point), max(p[0] for p in points))]
    front = [points[i] for i in front_order(points)]
    for s in record.scored:
        front.append(fitness(s.values))
        front = [front[i] for i in front_order(front)]
        found = (hypervolume(front, bed.reference_point), max(p[0] for p in front))
        if found != steps[-1][1:]:
            steps.append((s.cost, *found))
    cost, volume, best = zip(*steps, strict=True)
    return Curve(cost, volume, best)


def chosen(record: Record) -> dict[str, Scored]:
    """The knee of the front and the candidate of the best mean, on the search items."""
    every = [*record.references, *record.scored]
    points = [fitness(s.values) for s in every]
    best = max(range(len(every)), key=lambda i: points[i])
    return {"knee": every[knee(points)], "best": every[best]}
