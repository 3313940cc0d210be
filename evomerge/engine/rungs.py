"""Rungs, probes and signals: which part of a candidate is asked next, and what parts add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import exp

from evomerge.backends import has_gradients
from evomerge.engine.study import Study
from evomerge.engine.tasks import values_of
from evomerge.errors import IntegrityError
from evomerge.ledger.fold import Candidate, Scores
from evomerge.ledger.seen import Seen
from evomerge.scoring.blocks import Block, Part, blocks
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import Generate
from evomerge.scoring.statistics import ItemScore
from evomerge.search.base import Evidence, Look

SHARES = (10, 25, 50, 100)  # per cent of the blocks that are known after each rung
_LARGEST = 700.0  # whose exponential is finite


@dataclass(frozen=True)
class Rungs:
    """How the candidates of a study are measured."""

    study: Study
    _positions: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return blocks(self.study.objectives)

    @cached_property
    def signals(self) -> frozenset[str]:
        """The objectives whose items have a signal."""
        return frozenset(o.name for o in self.study.objectives if o.has_signal)

    @cached_property
    def slopes(self) -> bool:
        """Whether probes may be asked for slopes.

        That takes a backend with gradients (which serves candidates one by one), genes in which the
        merged weights are differentiable, and no objective but such that log-probabilities give.
        """
        objectives = self.study.objectives
        return (
            has_gradients(self.study.experiment.backend)
            and self.study.space.smooth
            and all(o.has_signal and bool(o.items("search")) for o in objectives)
            and not any(
                isinstance(request, Generate)
                for o in objectives
                for item in o.items("search")
                for request in o.signal_requests(item)
            )
        )

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What a candidate in a race is asked, one after the other; together the whole."""
        total = len(self.blocks)
        ends = sorted({-(-total * share // 100) for share in SHARES} | {0})
        return tuple(Part(tuple(range(a, b))) for a, b in pairwise(ends))

    @cached_property
    def size(self) -> int:
        """How many items the blocks hold."""
        return sum(len(positions) for block in self.blocks for positions in block.values())

    @cached_property
    def _exponential(self) -> frozenset[str]:
        described = {o.name: o.describe() for o in self.study.objectives}
        return frozenset(
            name
            for name, what in described.items()
            if what["kind"] == "perplexity" or what.get("exponential")
        )

    def value(self, name: str, mean: float) -> float:
        """What the mean of an objective's items makes its value."""
        return exp(min(mean, _LARGEST)) if name in self._exponential else mean

    def part_of(self, look: Look) -> Part:
        """What a search asks of a probe; by the metric where no objective has a signal, and without
        slopes where there are none."""
        signal = look.signal and bool(self.signals)
        return Part(tuple(look.blocks), signal, look.slopes and signal and self.slopes)

    def next(self, candidate: Candidate, workers: int = 1) -> tuple[Part | None, ...]:
        """What may now be asked of a candidate on the search split; None: all at once.

        In a race that is the next rung. Otherwise it is what is left, in parts such that each of
        ``workers`` takes its share of a whole candidate.
        """
        if candidate.look is not None:
            return (candidate.look,)
        if candidate.is_reference or not self.blocks:
            return (None,)
        if self.study.experiment.search.racing:
            return (self.parts[len(candidate.rungs)],)
        known = {block for seen in candidate.rungs for block in seen.part.blocks}
        if workers == 1 and not known:
            return (None,)
        left = [block for block in range(len(self.blocks)) if block not in known]
        share = -(-len(self.blocks) // workers)
        return tuple(Part(tuple(left[i : i + share])) for i in range(0, len(left), share))

    def promised(self, candidates: Iterable[Candidate], whole: int) -> int:
        """Items that candidates under way may still take, where a full evaluation has ``whole``."""
        return sum(
            whole - c.cost
            if c.look is None
            else c.look.passes * sum(len(found) for found in self.positions(c.look).values())
            for c in candidates
            if c.status == "pending"
        )

    def completed(self, candidate: Candidate, seen: Seen) -> Scores | None:
        """The whole score, if only this part of it was still missing; parts come in any order.

        Raises:
            IntegrityError: the parts are not of the same weights.
            CandidateError: an objective's value is not finite.
        """
        digests = {s.digest for s in (*candidate.seen, seen)}
        if candidate.scores is not None:
            digests.add(candidate.scores.digest)
        if len(digests) > 1:
            raise IntegrityError(
                f"{candidate.label} has other weights than when its first items were scored "
                f"({', '.join(sorted(d[:12] for d in digests))}): workers differ in versions, "
                f"device or dtype; make them equal and start a new run"
            )
        if candidate.look is not None or seen.part.signal:
            return None
        rungs = [*candidate.rungs, seen]
        if sum(len(rung.part.blocks) for rung in rungs) < len(self.blocks):
            return None
        return assembled(self.study.objectives, self.blocks, rungs)

    def positions(self, part: Part) -> dict[str, tuple[int, ...]]:
        """By objective the positions of a part's items, in the order of its values."""
        if part.blocks not in self._positions:
            self._positions[part.blocks] = positions(self.blocks, part)
        return self._positions[part.blocks]

    def evidence(self, genome: Sequence[float], seen: Seen) -> list[Evidence]:
        """A candidate's part as a search reads it: what is signal apart from what is metric."""
        where = self.positions(seen.part)
        items = {name: (where[name], values) for name, values in seen.items.items()}
        signals = self.signals if seen.part.signal else frozenset()
        by_signal = {name: found for name, found in items.items() if name in signals}
        by_metric = {name: found for name, found in items.items() if name not in signals}
        by_metric |= {name: ((0,), (value,)) for name, value in seen.weighed.items()}
        space = self.study.space
        slopes = {name: space.slopes(genome, found) for name, found in seen.slopes.items()}
        both = (Evidence(True, by_signal, slopes), Evidence(False, by_metric))
        return [evidence for evidence in both if evidence.items]

    def rest(self, candidate: Candidate) -> Evidence:
        """What a whole score adds to the rungs before it: all items, if there were none."""
        assert candidate.scores is not None
        before = self.known(candidate.rungs)
        found = {}
        for name, values in candidate.scores.items.items():
            by_weights = not self.blocks or name not in self.blocks[0]
            old = set() if by_weights or name not in before else set(before[name][0])
            kept = tuple(i for i in range(len(values)) if i not in old)
            found[name] = (kept, tuple(values[i] for i in kept))
        return Evidence(False, found)

    def known(self, rungs: Sequence[Seen]) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
        """By objective the positions and values of all rungs together."""
        found: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {}
        for seen in rungs:
            where = self.positions(seen.part)
            for name, values in seen.items.items():
                at, before = found.get(name, ((), ()))
                found[name] = (at + where[name], before + values)
            found |= {name: ((0,), (value,)) for name, value in seen.weighed.items()}
        return found


def positions(blocks: Sequence[Block], part: Part) -> dict[str, tuple[int, ...]]:
    """By objective the positions of a part's items, ascending."""
    found: dict[str, set[int]] = {}
    for number in part.blocks:
        for name, at in blocks[number].items():
            found.setdefault(name, set()).update(at)
    return {name: tuple(sorted(at)) for name, at in found.items()}


def assembled(
    objectives: Sequence[Objective], blocks: Sequence[Block], rungs: Sequence[Seen]
) -> Scores:
    """The score of a candidate of which all blocks are known; as if it had been asked at once.

    Raises:
        CandidateError: an objective's value is not finite.
    """
    found = {o.name: _joined(o.name, blocks, rungs) for o in objectives}
    timing: dict[str, float] = {}
    for seen in rungs:
        for name, seconds in seen.timing.items():
            timing[name] = timing.get(name, 0.0) + seconds
    return Scores(
        digest=rungs[-1].digest,
        values=values_of(objectives, found),
        items={name: tuple(s.value for s in scores) for name, scores in found.items()},
        tokens=sum(seen.tokens for seen in rungs),
        timing=timing,
        weights={
            name: tuple(s.weight for s in scores)
            for name, scores in found.items()
            if any(s.weight != 1 for s in scores)
        },
    )


def _joined(name: str, blocks: Sequence[Block], rungs: Sequence[Seen]) -> list[ItemScore]:
    """Scores of an objective's items in their order."""
    if name in rungs[-1].weighed:
        return [ItemScore(rungs[-1].weighed[name])]
    found: dict[int, ItemScore] = {}
    for seen in rungs:
        values = seen.items[name]
        weights: Mapping[str, Sequence[float]] = seen.weights
        units = weights.get(name, (1.0,) * len(values))
        for at, value, unit in zip(positions(blocks, seen.part)[name], values, units, strict=True):
            found[at] = ItemScore(value, unit)
    return [found[at] for at in sorted(found)]
