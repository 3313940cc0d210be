"""A live model whose weights are a differentiable function of a merge's coefficients.

The chain from the loss to a coefficient is cut at the merged weights; see
`evomerge.backends.gradients`. So beside the model there is only one copy of the moved tensors and
their gradients. The weights that the model computes with have, bit for bit, the values of the
merge's own tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from evomerge.backends.gradients import draw_back, merged_with, owners, spots
from evomerge.checkpoints.sources import Expert, Sources
from evomerge.errors import CandidateError
from evomerge.instantiate import Merge
from evomerge.learning.coefficients import Coefficients
from evomerge.space import Space

KEEP = 4 << 30  # bytes of expert weights that are held in memory rather than read at every step


@dataclass(frozen=True)
class _Kept(Expert):
    """An expert whose weights of ``names`` stay in memory once they were read."""

    names: frozenset[str] = frozenset()
    kept: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def read(self, name: str) -> torch.Tensor:
        """As of any expert, but shared: methods do not write into what they are given."""
        if name not in self.names:
            return super().read(name)
        if name not in self.kept:
            self.kept[name] = super().read(name)
        return self.kept[name]


def kept(sources: Sources, space: Space, limit: int = KEEP) -> Sources:
    """The sources, with the experts of a space in memory if what it moves takes ``limit`` bytes."""
    tensors = sources.base.tensors
    moved = space.moves(tensors)
    size = sum(torch.Size(tensors[name].shape).numel() * 4 for name in moved) * len(space.experts)
    if size > limit:
        return sources
    held = {
        name: _Kept(**{f.name: getattr(expert, f.name) for f in fields(Expert)}, names=moved)
        for name, expert in sources.experts.items()
    }
    return replace(sources, experts=held)


class MergedModel:
    """A live model at the weights of a merge; ``gradient`` is that of what was back-propagated."""

    def __init__(
        self,
        model: Any,
        live: Mapping[str, torch.Tensor],
        start: Coefficients,
        space: Space,
        sources: Sources,
        device: str = "cpu",
    ) -> None:
        """``live`` are views into the model's parameters by the names of the base's files. What the
        merge does not move must be in the model already."""
        self._model = model
        self._merge = Merge(start.recipe(space), sources, device)
        self._rows = {s: row for row, selectors in enumerate(start.groups) for s in selectors}
        self._spots = spots(model, live, self._merge.moved)
        parameters = owners(model)
        model.requires_grad_(False)
        self._leaves = {
            name: parameters[name].detach().clone().requires_grad_()
            for name in dict.fromkeys(spot.parameter for spot in self._spots.values())
        }
        self._at = torch.zeros(0)
        self.place(torch.tensor(start.values, dtype=torch.float64))

    def __call__(self, **inputs: Any) -> Any:
        """The model's output with the merged weights in the place of its own."""
        return torch.func.functional_call(self._model, self._leaves, kwargs=inputs)

    def place(self, coefficients: torch.Tensor) -> None:
        """Merges with ``coefficients`` (groups x experts, float64) and forgets gradients.

        Raises:
            CandidateError: a merged weight is not finite.
        """
        self._at = coefficients.detach().clone()
        rows = self._at.tolist()
        with torch.no_grad():
            for name, spot in self._spots.items():
                weight = rows[self._rows[self._merge.moved[name].tensors]]
                merged = merged_with(self._merge, name, tuple(weight))
                merged = merged.to(self._merge.dtype(name))
                if not merged.isfinite().all():
                    raise CandidateError(f"the merged {name} has a value that is not finite")
                spot.of(self._leaves[spot.parameter].detach()).copy_(merged)
        for leaf in self._leaves.values():
            leaf.grad = None

    def gradient(self) -> torch.Tensor:
        """With respect to the coefficients last placed, of all losses back-propagated since."""
        arrived = {
            name: spot.of(gradient)
            for name, spot in self._spots.items()
            if (gradient := self._leaves[spot.parameter].grad) is not None
        }
        weights = {selector: self._at[row] for selector, row in self._rows.items()}
        found = torch.zeros_like(self._at)
        for selector, slopes in draw_back(self._merge, {"loss": arrived}, weights)["loss"].items():
            found[self._rows[selector]] += slopes
        return found
