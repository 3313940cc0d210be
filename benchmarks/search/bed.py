"""What a search is measured on: genes, objectives, and the values of single items.

Every bed has the same two aims, both maximised: the mean and the smallest of its objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evomerge.search.base import Genome
from evomerge.space import Gene

Positions = Mapping[str, tuple[int, ...]]
"""By objective, positions of items among its search items."""

Values = Mapping[str, tuple[float, ...]]
"""By objective, one value an item, in the order of the positions asked for."""

Slopes = Mapping[str, tuple[float, ...]]
"""By objective, one derivative a gene, each in the unit box."""


@dataclass(frozen=True)
class Bed:
    """One problem. `metric`, `signal` and `slopes` are pure functions of genome and items."""

    name: str
    genes: tuple[Gene, ...]
    """Named as a real space names them: ``weight[vqa] language/0/attention``."""
    objectives: tuple[str, ...]
    """Values in [0, 1], to be maximised."""
    counts: Mapping[str, int]
    """Search items by objective."""
    references: Mapping[str, Genome]
    """Static merges that lie in the space, told to every search first; their cost is not counted,
    as it is the same for all."""
    metric: Callable[[Genome, Positions], Values]
    """Per-item scores, 0 or 1."""
    signal: Callable[[Genome, Positions], Values]
    """Per-item natural-log probabilities of the right answer."""
    slopes: Callable[[Genome, Positions], tuple[Values, Slopes]]
    """The signals, and the slopes of the mean soft score (`evomerge.scoring.signals.soft`) over the
    items of each objective that are asked for."""
    held_out: Callable[[Genome], Mapping[str, float]]
    """By objective, the value that search items stand for: an exact expectation where the bed is a
    formula, else the accuracy on held-out items."""
    tokens: Mapping[str, tuple[int, int]]
    """By objective, mean generated tokens of a metric item and of a signal item."""
    reference_point: tuple[float, ...]
    """Of the hypervolume, in (mean, min)."""

    @property
    def items(self) -> int:
        """Scored items of one full evaluation."""
        return sum(self.counts.values())


def fitness(values: Mapping[str, float]) -> tuple[float, float]:
    """The two aims of the values by objective: mean and minimum."""
    return sum(values.values()) / len(values), min(values.values())


def all_positions(bed: Bed) -> dict[str, tuple[int, ...]]:
    """Every search item of every objective."""
    return {name: tuple(range(bed.counts[name])) for name in bed.objectives}
