"""Reference points of every study: base, each expert, weight average, task arithmetic 0.3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.sources import Sources
from evomerge.recipe import Group, Recipe
from evomerge.space import Genome, Space


@dataclass(frozen=True)
class Reference:
    """A static merge to compare with; ``genome`` places it in the search space where it lies in it.

    The genome gives the same model up to float32 rounding, so its scores can be told to a search.
    """

    name: str
    recipe: Recipe
    genome: Genome | None


def references(space: Space, sources: Sources) -> tuple[Reference, ...]:
    """All reference points of a study, base first.

    An expert is the whole expert, with every tensor it changes. The average and task arithmetic
    merge the tensors that the space moves, which is how the published multimodal comparisons
    define them (towers, embeddings, norms and biases stay at base).
    """
    experts = sorted(space.experts)
    everything = [Group(tensors="*/*/*")]
    moved = [cell.selector for cell in space.cells]
    average = dict.fromkeys(experts, 1 / len(experts))
    arithmetic = dict.fromkeys(experts, 0.3)
    return (
        Reference("base", _recipe(space, {}, "linear", []), space.plain(dict.fromkeys(experts, 0))),
        *(
            Reference(
                name,
                _recipe(space, {name: space.experts[name]}, "linear", everything),
                space.plain({e: float(e == name) for e in experts})
                if _covers(space, sources, name)
                else None,
            )
            for name in experts
        ),
        Reference(
            "weight average",
            _recipe(space, space.experts, "linear", [Group(tensors=t) for t in moved]),
            space.plain(average),
        ),
        Reference(
            "task arithmetic 0.3",
            _recipe(
                space,
                space.experts,
                "task_arithmetic",
                [Group.model_validate({"tensors": t, "weight": arithmetic}) for t in moved],
            ),
            space.plain(arithmetic),
        ),
    )


def _recipe(space: Space, experts: Any, method: str, groups: list[Group]) -> Recipe:
    return Recipe(
        base=space.base,
        experts=dict(experts),
        method=method,
        parameters=tuple(groups),
        dtype=space.spec.dtype,
    )


def _covers(space: Space, sources: Sources, expert: str) -> bool:
    """Whether the space moves every tensor that the expert changes."""
    return sources.experts[expert].changed <= space.moves(sources.base.tensors)
