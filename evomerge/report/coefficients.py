"""The coefficients of a candidate as grids: experts down, layers across, a block a module kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.grouping import Cell
from evomerge.methods import get_method
from evomerge.space import Gene, Space

EVERYWHERE = "all tensors"


@dataclass(frozen=True)
class Spot:
    """Where a value comes from: between two genes (by index), ``along`` of the way, 0 to 1."""

    first: int
    second: int
    along: float


@dataclass(frozen=True)
class Block:
    """One module kind of one tower: its groups of layers from the first to the last."""

    name: str
    labels: tuple[str, ...]
    spots: tuple[tuple[Spot, ...], ...]  # by row of the grid, then by label


@dataclass(frozen=True)
class Grid:
    """All values of one searched parameter. A row is an expert, or None where they share it."""

    parameter: str
    low: float
    high: float
    whole: bool  # values are rounded to whole numbers
    rows: tuple[str | None, ...]
    blocks: tuple[Block, ...]


def grids(space: Space) -> list[Grid]:
    """One grid for every parameter that the space searches."""
    method = get_method(space.spec.method)
    index = {gene.name: i for i, gene in enumerate(space.genes)}
    found = []
    for name, spec in space.spec.genes.items():
        if spec.fixed is not None:
            continue
        rows: tuple[str | None, ...] = tuple(space.experts) if "expert" in spec.per else (None,)
        columns: dict[str, list[Cell]] = {}
        for cell in space.cells if "group" in spec.per else space.cells[:1]:
            columns.setdefault(cell.column if "group" in spec.per else EVERYWHERE, []).append(cell)
        blocks = tuple(
            Block(
                column,
                tuple(_label(cell) if "group" in spec.per else "all" for cell in cells),
                tuple(tuple(_spot(space, index, name, e, c) for c in cells) for e in rows),
            )
            for column, cells in columns.items()
        )
        gene = space.genes[blocks[0].spots[0][0].first]
        whole = method.parameter(name).integer and None in rows
        found.append(Grid(name, gene.low, gene.high, whole, rows, blocks))
    return found


def value(genes: Sequence[Gene], genome: Sequence[float], spot: Spot) -> float:
    """The parameter's value at a spot, not yet rounded."""
    a, b = (genes[i].decode(genome[i]) for i in (spot.first, spot.second))
    return a + (b - a) * spot.along


def _spot(space: Space, index: dict[str, int], name: str, expert: str | None, cell: Cell) -> Spot:
    first, second, along = space.genes_at(name, expert, cell)
    return Spot(index[first], index[second], along)


def _label(cell: Cell) -> str:
    """The blocks of a group: ``3``, ``0-3``, ``*``."""
    return cell.selector.split("/")[1]
