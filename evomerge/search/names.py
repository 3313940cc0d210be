"""What the names of genes say, ``weight[vqa] language/0/mlp``, and what unit they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evomerge.space import Gene


def parameter_of(gene: Gene) -> str:
    """``weight``."""
    return gene.name.split(" ")[0].split("[")[0]


def expert_of(gene: Gene) -> str:
    """``vqa``; nothing where one gene is for all experts."""
    return gene.name.partition("[")[2].partition("]")[0]


def place_of(gene: Gene) -> str:
    """``language/0/mlp``; nothing where one gene is for all groups."""
    return gene.name.partition(" ")[2]


def unit_of(gene: Gene) -> float:
    """What of its range a gene's natural unit is: a weight of 1, or else the range."""
    if parameter_of(gene) == "weight" and not gene.log:
        return min(1.0, 1.0 / (gene.high - gene.low))
    return 1.0
