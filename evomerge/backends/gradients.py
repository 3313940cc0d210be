"""Gradients at a live model's weights, and back from there to the weights of a merge.

The chain from what a model says to a coefficient is cut at the merged tensors. A forward and a
backward pass give the gradient at each of them; then each is merged once more, this time followed
by autograd, and its gradient is drawn back to the coefficients. So beside the model there is only
one copy of the moved tensors' gradients, and task vectors pass one tensor at a time. The last
rounding of a merged tensor counts as the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import ConfigError
from evomerge.instantiate import Merge
from evomerge.methods import get_method
from evomerge.recipe import group_values


@dataclass(frozen=True)
class Spot:
    """Where a tensor of the files lies in a parameter of the live model."""

    parameter: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The tensor within the parameter, or within its gradient."""
        return whole.as_strided(self.size, self.stride, self.offset)


def owners(model: Any) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers by name; tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def spots(model: Any, live: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, Spot]:
    """Where each of ``names`` lies, tied ones once, under the first of their names.

    ``live`` are views into the model's parameters by the names of the base's files.

    Raises:
        ConfigError: the model has no such tensor.
    """
    whole = owners(model)
    ranges = [
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name)
        for name, t in whole.items()
    ]
    found: dict[str, Spot] = {}
    seen: set[tuple[str, int]] = set()
    for name in names:
        if name not in live:
            raise ConfigError(
                f"tensor {name!r} is no part of the running model, so it has no gradient; leave "
                "its group out of the space"
            )
        view = live[name]
        start = view.data_ptr()
        owner = next(owner for low, high, owner in ranges if low <= start < high)
        offset = (start - whole[owner].data_ptr()) // view.element_size()
        if (owner, offset) not in seen:
            seen.add((owner, offset))
            found[name] = Spot(owner, tuple(view.shape), view.stride(), offset)
    return found


@contextmanager
def followed(model: Any, parameters: Set[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The parameters of these names, the only ones that require gradients as long as this lasts.

    Afterwards all is as it was before, and no parameter has a gradient.
    """
    whole = owners(model)
    before = {name: tensor.requires_grad for name, tensor in whole.items()}
    try:
        for name, tensor in whole.items():
            tensor.requires_grad_(name in parameters)
        yield {name: tensor for name, tensor in whole.items() if name in parameters}
    finally:
        for name, tensor in whole.items():
            tensor.requires_grad_(before[name])
            tensor.grad = None


def merged_with(merge: Merge, name: str, weight: Any) -> torch.Tensor:
    """A moved tensor of the merge with another ``weight``, before its rounding.

    That is a number, or one for each of the merge's experts; 0-d tensors are followed by autograd.
    """
    method, experts = get_method(merge.recipe.method), tuple(merge.experts)
    values = group_values(method, merge.moved[name], experts)
    return merge.merged(name, {**values, "weight": weight})


def draw_back(
    merge: Merge,
    gradients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, torch.Tensor],
) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients of several things, by their names, at merged tensors, as those at ``weights``.

    ``weights``, and what is returned of each thing, are by the selectors of the merge's groups:
    0-d, or one entry for each of the merge's experts. Each tensor is merged once for all things.
    """
    followed = {selector: w.detach().clone().requires_grad_() for selector, w in weights.items()}
    drawn = {of: {s: torch.zeros_like(w) for s, w in weights.items()} for of in gradients}
    for name, group in merge.moved.items():
        arrived = {of: by_name[name] for of, by_name in gradients.items() if name in by_name}
        if not arrived:
            continue
        weight = followed[group.tensors]
        merged = merged_with(merge, name, tuple(weight) if weight.ndim else weight)
        if not merged.requires_grad:
            continue
        for of, gradient in arrived.items():
            (found,) = torch.autograd.grad(merged, weight, gradient.to(merged), retain_graph=True)
            drawn[of][group.tensors] += found
    return drawn
