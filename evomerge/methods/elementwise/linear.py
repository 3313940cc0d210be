"""Weighted average of the experts (model soup)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.errors import CandidateError
from evomerge.methods.context import Context
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

WEIGHT = Parameter(
    "weight", "share of each expert; only ratios matter", 1.0, 0.0, 1.0, per_expert=True
)


@register(
    "linear",
    family="elementwise",
    formula="θ = Σ wᵢ θᵢ / Σ wᵢ",
    source="Wortsman et al. 2022, Model soups (arXiv 2203.05482), uniform and weighted soup",
    cost="one pass",
    parameters=[WEIGHT],
    plain=lambda weights: {"weight": weights} if abs(sum(weights) - 1) < 1e-12 else None,
    exact=True,
    smooth=True,
    shares=True,
)
def linear(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
) -> torch.Tensor:
    """Weighted average of the experts; equal weights give the weight average.

    The weights are normalised in float64 before they touch a tensor, so a single non-zero weight
    returns that expert bit for bit.

    Raises:
        CandidateError: the weights sum to zero.
    """
    total = sum(weight)
    if total == 0:
        raise CandidateError(
            f"linear: the weights of {context.tensor} sum to 0; at least one must be above 0"
        )
    return weighted_sum(experts, [w / total for w in weight])


def weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """``Σ wᵢ xᵢ`` from left to right in float32, each product rounded before it is added.

    Separate multiplication and addition (never a fused one) give the same bits on every device.
    Terms of weight 0 are left out: added, they would turn -0 into +0. Only those of a weight that
    is being learned stay, since its gradient is not 0.
    """
    terms = [
        (t, w)
        for t, w in zip(tensors, weights, strict=True)
        if w != 0 or getattr(w, "requires_grad", False)
    ]
    if not terms:
        return tensors[0].new_zeros(tensors[0].shape)
    result = terms[0][0] * terms[0][1]
    for tensor, weight in terms[1:]:
        result += tensor * weight
    return result
