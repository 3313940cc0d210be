"""Reference points of every study: base, each expert, weight average, task arithmetic 0.3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.sources import Sources
from evomerge.errors import ConfigError
from evomerge.recipe import Group, Recipe, Source
from evomerge.space import Genome, Space


@dataclass(frozen=True)
class Reference:
    """A static merge to compare with; ``genome`` places it in the search space where it lies in it.

    The genome gives the same model up to float32 rounding, so its scores can be told to a search.
    """

    name: str
    recipe: Recipe
    genome: Genome | None


def references(
    space: Space, sources: Sources, experts: Mapping[str, Source]
) -> tuple[Reference, ...]:
    """All reference points of a study, base first.

    They are merges of the experts, also where the space is over directions; each direction that is
    a static merge is a reference point itself, with weight 1 on the tensors that the space moves.

    An expert is the whole expert, with every tensor it changes. The average and task arithmetic
    merge the tensors that the space moves, which is how the published multimodal comparisons
    define them (towers, embeddings, norms and biases stay at base).
    """
    names = sorted(experts)
    everything = [Group(tensors="*/*/*")]
    moved = [cell.selector for cell in space.cells]
    average = dict.fromkeys(names, 1 / len(names))
    arithmetic = dict.fromkeys(names, 0.3)

    merges = {name: source for name, source in space.experts.items() if name not in experts}
    nothing = dict.fromkeys(space.experts, 0.0)

    def place(weights: Mapping[str, float]) -> Genome | None:
        needed = {name for name, weight in weights.items() if weight}
        return space.plain({**nothing, **weights}) if needed <= space.experts.keys() else None

    return (
        Reference("base", _recipe(space, {}, "linear", []), place({})),
        *(
            Reference(
                name,
                _recipe(space, {name: experts[name]}, "linear", everything),
                place({e: float(e == name) for e in names})
                if _covers(space, sources, name)
                else None,
            )
            for name in names
        ),
        Reference(
            "weight average",
            _recipe(space, experts, "linear", [Group(tensors=t) for t in moved]),
            place(average),
        ),
        Reference(
            "task arithmetic 0.3",
            _recipe(
                space,
                experts,
                "task_arithmetic",
                [Group.model_validate({"tensors": t, "weight": arithmetic}) for t in moved],
            ),
            place(arithmetic),
        ),
        *(
            Reference(
                name,
                _recipe(space, {name: source}, "linear", [Group(tensors=t) for t in moved]),
                place({name: 1.0}),
            )
            for name, source in merges.items()
        ),
    )


def starts(space: Space, genomes: Mapping[str, Sequence[float]]) -> Iterator[Reference]:
    """Points of the space that a search starts from, such as the best of another run.

    Raises:
        ConfigError: a genome is not one of this space.
    """
    for name, genome in genomes.items():
        try:
            yield Reference(name, space.recipe(genome), tuple(genome))
        except ValueError as error:
            raise ConfigError(f"start {name!r} is no point of the space: {error}") from None


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
