"""Sens-Merging: a coefficient for each layer and expert from gradients and logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import SCALE, WEIGHT, task_vectors
from evomerge.methods.registry import Parameter, register
from evomerge.methods.statistics.reading import of_experts

if TYPE_CHECKING:
    import torch

TEMPERATURE = Parameter(
    "temperature",
    "temperature of the softmax over experts: small lets the most sensitive expert take the layer, "
    "large gives task arithmetic. Search it on a logarithmic scale",
    1.0,
    0.001,
    10.0,
)


@register(
    "sens",
    family="statistics",
    formula="θ = θ₀ + λ N Σ σᵢ wᵢ τᵢ,  σ = softmax(αᵢ gᵢ / Σ gⱼ / T) over experts",
    source="Liu et al. 2025, Sens-Merging (arXiv 2502.12420); its equations as reviews and an "
    "independent implementation give them, since its authors published no code",
    cost="one pass",
    parameters=[WEIGHT, TEMPERATURE, SCALE],
    needs="gradients",
    exact=True,
    statistics=("sensitivity",),
)
def sens(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    temperature: float,
    scale: float,
) -> torch.Tensor:
    """Task arithmetic with coefficients shared out by each layer's sensitivity in each expert.

    ``sensitivity``: (2,) float32 an expert. First α, the same for all tensors of a block: over the
    expert's own items the mean of ``Σ |θ ∇θ L|`` over the block's entries (to first order, what
    removing them costs), divided by the root of the sum of squares over all blocks; a tensor
    outside the blocks counts as a block. Second g, the same for the whole expert: the distance
    ``‖logitsᵢ − logitsⱼ‖₂`` from every other expert j, averaged over tokens and items of j's task,
    summed over j. With equal sensitivities this is task arithmetic with the same weights. Variant:
    the norms (L2 over layers for α, L1 over experts for g) and the factor N are those of the
    independent implementation, in which an expert far from the others gets more, not less.
    """
    pairs = [(float(s[0]), float(s[1])) for s in of_experts(context, "sensitivity", (2,))]
    distances = math.fsum(g for _, g in pairs)
    scores = [alpha * (g / distances if distances > 0 else 1 / len(pairs)) for alpha, g in pairs]
    highest = max(scores)
    raised = [math.exp((score - highest) / temperature) for score in scores]
    total = math.fsum(raised)
    shares = [len(pairs) * r / total for r in raised]
    coefficients = [scale * s * w for s, w in zip(shares, weight, strict=True)]
    return base + weighted_sum(task_vectors(base, experts), coefficients)
