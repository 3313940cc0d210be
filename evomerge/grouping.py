"""Which tensors of a model share their values: the groups of a search space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from evomerge.checkpoints.layout import Place
from evomerge.recipe import Selector


class Grouping(BaseModel):
    """Which tensors a space moves, and which of them share their values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    towers: tuple[str, ...] = ("language",)
    depth: Literal["each"] | int = "each"
    modules: tuple[str | tuple[str, ...], ...] = ("attention", "mlp")

    @field_validator("depth")
    @classmethod
    def _positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected 'each' or a number of depth groups of at least 1")
        return value

    @model_validator(mode="after")
    def _disjoint(self) -> Grouping:
        kinds = [k for m in self.modules for k in ((m,) if isinstance(m, str) else m)]
        for names in (self.towers, kinds):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{name!r} is named twice; groups must not overlap")
        for tower in self.towers:
            Selector.parse(f"{tower}/*/{','.join(kinds)}")
        return self


@dataclass(frozen=True)
class Cell:
    """One group of tensors: its selector, and its place along the depth of its column."""

    selector: str
    column: str
    position: float  # 0 at the first block group, 1 at the last


def column(
    tower: str, module: str | tuple[str, ...], depth: str | int, places: Mapping[str, Place]
) -> list[Cell]:
    """The groups of one tower and module kind, from the first block to the last."""
    kind = module if isinstance(module, str) else ",".join(module)
    column = f"{tower}/{kind}"
    blocks = sorted({p.block for p in places.values() if p.tower == tower and p.block is not None})
    count = len(blocks) if depth == "each" else min(int(depth), len(blocks))
    if count <= 1:
        return [Cell(f"{tower}/*/{kind}", column, 0.0)]
    cuts = [round(i * len(blocks) / count) for i in range(count + 1)]
    return [
        Cell(f"{tower}/{_range(blocks[a:b])}/{kind}", column, i / (count - 1))
        for i, (a, b) in enumerate(pairwise(cuts))
    ]


def _range(blocks: Sequence[int]) -> str:
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}"
