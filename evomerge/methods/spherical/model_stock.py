"""Model Stock: how far to go from the base towards the experts' average, from their angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.registry import Parameter, register
from evomerge.methods.spherical.gram import combine, cosines

if TYPE_CHECKING:
    import torch


@register(
    "model_stock",
    family="spherical",
    formula="θ = θ₀ + λ t Σ τᵢ / N,  t = N c / (1 + (N−1) c),  c = mean cosine of two task vectors",
    source="Jang et al. 2024, Model Stock (arXiv 2403.19522), the ratio for N models; variant: the "
    "mean over all pairs (mergekit), t = 0 where c < 0",
    cost="one pass, and one inner product a pair of experts",
    parameters=[
        SCALE,
        Parameter("per_row", "an angle of its own for each output row", 0.0, 0.0, 1.0, switch=True),
    ],
    min_experts=2,
)
def model_stock(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    scale: float,
    per_row: bool,
) -> torch.Tensor:
    """The experts' average, drawn towards the base the more their task vectors disagree.

    Identical experts give that expert, task vectors at right angles the base. The paper has one
    angle a layer; here one a tensor, or one a row (the first dimension; a 1-D tensor is one row).
    There are no weights: the formula rests on experts that are equally far from a common centre.
    By the same geometry ``c = ‖centre − θ₀‖² / ‖τ‖²``, so that a negative c says that the centre
    is the base: t = 0. Published codes go on to negative t, without bound for c near −1/(N−1). A
    pair with a task vector of zero has cosine 0.
    """
    return combine(base, experts, context, stock, scale=scale, deltas=True, by_row=per_row)


def stock(gram: torch.Tensor) -> torch.Tensor:
    """(N, R): t / N for every vector."""
    import torch

    count = len(gram)
    above = torch.ones(count, count).triu(1).bool()
    cosine = cosines(gram)[above].mean(dim=0).clamp(min=0)
    ratio = cosine / (1 + (count - 1) * cosine)
    return ratio.expand(count, -1)
