"""What a guided search has seen of a candidate."""

from __future__ import annotations

from dataclasses import dataclass, field

from evomerge.search.surrogate import Array


@dataclass
class Row:
    """What was seen of one candidate by one measure: sums over items by objective, and blocks."""

    place: Array
    by_metric: bool
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    blocks: dict[int, int] = field(default_factory=dict)
    slopes: dict[str, Array] = field(default_factory=dict)
    """(d,) in natural units, of the mean over the items; of a probe, which is seen once"""

    def add(self, name: str, values: Array) -> None:
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + float(values.sum()), count + len(values))

    def value(self, name: str) -> float:
        total, count = self.sums[name]
        return total / count

    def copy(self) -> Row:
        return Row(self.place, self.by_metric, dict(self.sums), dict(self.blocks), self.slopes)
