"""A live model whose weights are a differentiable function of a merge's coefficients.

The chain from the loss to a coefficient is cut at the merged weights. A forward and backward pass
gives the loss's gradient at each merged weight; then each tensor is merged once more, this time
followed by autograd, and its gradient is drawn back to the coefficients. So beside the model there
is only one copy of the moved tensors and their gradients, and task vectors pass one at a time. The
weights that the model computes with have, bit for bit, the values of the merge's own tensors; their
last rounding counts as the identity in the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from evomerge.checkpoints.sources import Expert, Sources
from evomerge.errors import CandidateError, ConfigError
from evomerge.instantiate import Merge
from evomerge.learning.coefficients import Coefficients
from evomerge.methods import get_method
from evomerge.recipe import group_values
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


@dataclass(frozen=True)
class _Spot:
    """Where a tensor of the files lies in a parameter of the live model, and its coefficients."""

    parameter: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    group: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        return whole.as_strided(self.size, self.stride, self.offset)


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
        self._method = get_method(start.method)
        self._spots = _spots(model, live, self._merge, start)
        parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
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
                merged = self._merged(name, tuple(rows[spot.group]))
                merged = merged.to(self._merge.dtype(name))
                if not merged.isfinite().all():
                    raise CandidateError(f"the merged {name} has a value that is not finite")
                spot.of(self._leaves[spot.parameter].detach()).copy_(merged)
        for leaf in self._leaves.values():
            leaf.grad = None

    def gradient(self) -> torch.Tensor:
        """With respect to the coefficients last placed, of all losses back-propagated since."""
        at = self._at.clone().requires_grad_()
        for name, spot in self._spots.items():
            gradient = self._leaves[spot.parameter].grad
            if gradient is not None:
                merged = self._merged(name, tuple(at[spot.group]))
                torch.autograd.backward(merged, spot.of(gradient).to(merged))
        return torch.zeros_like(self._at) if at.grad is None else at.grad

    def _merged(self, name: str, weight: tuple[Any, ...]) -> torch.Tensor:
        merge = self._merge
        constants = group_values(self._method, merge.moved[name], tuple(merge.experts))
        return merge.merged(name, {**constants, "weight": weight})


def _spots(
    model: Any, live: Mapping[str, torch.Tensor], merge: Merge, start: Coefficients
) -> dict[str, _Spot]:
    """Each moved tensor once, tied ones under the first of their names."""
    group_of = {selector: i for i, selectors in enumerate(start.groups) for selector in selectors}
    owners = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ranges = [
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name)
        for name, t in owners.items()
    ]
    spots: dict[str, _Spot] = {}
    seen: set[tuple[str, int]] = set()
    for name, group in merge.moved.items():
        if name not in live:
            raise ConfigError(
                f"tensor {name!r} is no part of the running model, so nothing can be learned about "
                "it; leave its group out of the space"
            )
        view = live[name]
        start_at = view.data_ptr()
        owner = next(owner for low, high, owner in ranges if low <= start_at < high)
        offset = (start_at - owners[owner].data_ptr()) // view.element_size()
        if (owner, offset) not in seen:
            seen.add((owner, offset))
            spots[name] = _Spot(
                owner, tuple(view.shape), view.stride(), offset, group_of[group.tensors]
            )
    return spots
