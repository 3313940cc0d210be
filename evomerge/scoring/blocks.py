"""Blocks: the parts in which the items of a search come, the same for all candidates.

The items of each objective are put in the order of a hash of what they ask, and each block takes
its proportional share of every objective. So a block is a stratified random sample, and objectives
over the same data have the same items in the same block: what they ask in common is asked once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.scoring.data import content_key
from evomerge.scoring.objectives import Objective

BLOCKS = 20
SLOPE_PASSES = 3
"""Scored items that an item counts for whose slopes are asked."""

Block = Mapping[str, tuple[int, ...]]
"""By objective, positions among its search items, ascending."""


@dataclass(frozen=True)
class Part:
    """What is asked of a candidate at once: blocks by number, by the metric or by the signal.

    Objectives without a signal are asked for their metric in either case. With ``slopes``, which
    needs the signal of all objectives, its derivatives by the merge's weights are asked too.
    """

    blocks: tuple[int, ...]
    signal: bool = False
    slopes: bool = False

    @property
    def passes(self) -> int:
        """What an item of it counts: a backward pass takes about as much as two forward."""
        return SLOPE_PASSES if self.slopes else 1


def blocks(objectives: Sequence[Objective], count: int = BLOCKS) -> tuple[Block, ...]:
    """The blocks of the search split: every item is in exactly one, and each has all objectives.

    They are ``count``, or as many as the smallest objective has items. Objectives without items
    (sparsity) are in none: what they need is there whenever a candidate is.
    """
    orders = {o.name: _order(o) for o in objectives if o.items("search")}
    count = min([count, *(len(order) for order in orders.values())]) if orders else 0
    return tuple(
        {name: tuple(sorted(_share(order, b, count))) for name, order in orders.items()}
        for b in range(count)
    )


def _order(objective: Objective) -> list[int]:
    keys = [content_key(item) for item in objective.items("search")]
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))


def _share(order: Sequence[int], block: int, count: int) -> Sequence[int]:
    return order[len(order) * block // count : len(order) * (block + 1) // count]
