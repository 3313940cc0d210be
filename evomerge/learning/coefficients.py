"""The coefficients that are learned: one for each expert in each group of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from evomerge.recipe import Group, Recipe
from evomerge.space import Space


@dataclass(frozen=True)
class Coefficients:
    """Everything that a recipe needs beside its sources.

    ``groups`` are tensor selectors, several where one weight serves a set of tensors that no single
    selector names; ``values`` hold, for each group, a weight of each of ``experts``, which stand in
    the order in which a recipe gives them to its method. ``constants`` are the method's other
    parameters.
    """

    method: str
    constants: Mapping[str, Any]
    groups: tuple[tuple[str, ...], ...]
    experts: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    def at(self, values: list[list[float]]) -> Coefficients:
        """The same groups with other values."""
        return replace(self, values=tuple(tuple(row) for row in values))

    def recipe(self, space: Space) -> Recipe:
        """The merged model, of the sources and in the dtype of a space."""
        return Recipe(
            base=space.base,
            experts=dict(space.experts),
            method=self.method,
            parameters=tuple(
                Group.model_validate(
                    {
                        "tensors": selector,
                        "weight": dict(zip(self.experts, row, strict=True)),
                        **self.constants,
                    }
                )
                for selectors, row in zip(self.groups, self.values, strict=True)
                for selector in selectors
            ),
            seed=space.seed,
            dtype=space.spec.dtype,
        )


def uniform(
    space: Space,
    method: str,
    constants: Mapping[str, Any],
    value: float,
    groups: tuple[tuple[str, ...], ...] | None = None,
) -> Coefficients:
    """The same value everywhere, in the space's own groups where no others are given."""
    groups = tuple((cell.selector,) for cell in space.cells) if groups is None else groups
    experts = tuple(sorted(space.experts))
    return Coefficients(
        method, constants, groups, experts, ((value,) * len(experts),) * len(groups)
    )
