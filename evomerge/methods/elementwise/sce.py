"""SCE: select the entries that vary, calculate a weight a tensor, erase the minority's entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.masks import kth_largest
from evomerge.methods.numerics import dot
from evomerge.methods.registry import Parameter, register, single_expert

if TYPE_CHECKING:
    import torch

WEIGHT = Parameter(
    "weight", "factor on each task vector before anything else", 1.0, 0.0, 1.5, per_expert=True
)


@register(
    "sce",
    family="elementwise",
    formula="θ = θ₀ + λ Σ_{i agrees} cᵢ τ̂ᵢ / Σ_{i agrees} cᵢ,  cᵢ = ‖τ̂ᵢ‖²,  τ̂ᵢ = wᵢ τᵢ where the "
    "variance over i is among the largest, sign elected by Σ τ̂ᵢ",
    source="Wan et al. 2024, FuseChat (arXiv 2408.07990), section 3.3; variant: as in mergekit the "
    "share counts entries of non-zero variance, without its floor on the squares",
    cost="two passes and one selection",
    parameters=[
        WEIGHT,
        Parameter(
            "density", "share of the entries on which experts differ that is kept", 1.0, 0.05, 1.0
        ),
        SCALE,
    ],
    plain=lambda weights: (
        {"weight": weights, "density": 1.0, "scale": 1.0} if single_expert(weights) else None
    ),
    exact=True,
)
def sce(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: float,
    scale: float,
) -> torch.Tensor:
    """Keep the entries on which experts differ most; average those that agree in sign.

    Each expert counts by the sum of squares of what is selected of its task vector in this tensor.
    Below density 1 identical experts, or one alone, vary nowhere and give the base, as published.
    At density 1 nothing is selected, and they give that expert.

    mergekit takes equal coefficients where the mean squares sum to less than 1e-6, which is the
    rule for task vectors of usual size; here they are always the squares. Entries whose variance
    equals the last selected one are all kept. An election of exactly zero counts as positive.
    """
    import torch

    deltas = [(experts[i] - base) * w for i, w in enumerate(weight) if w != 0]
    if deltas and density < 1:
        selected = most_varied(deltas, density)
        deltas = [d * selected for d in deltas]
    squares = [dot(d, d) for d in deltas]
    if not any(squares):
        return base.clone()
    elected = torch.zeros_like(base)
    for delta in deltas:
        elected += delta
    positive = elected >= 0
    merged, divisor = elected.zero_(), torch.zeros_like(base)
    for delta, square in zip(deltas, squares, strict=True):
        share = square / sum(squares)
        agrees = ((delta > 0) & positive) | ((delta < 0) & ~positive)
        merged += delta * agrees * share
        divisor += agrees * share
    return base + merged / divisor.masked_fill_(divisor == 0, 1.0) * scale


def most_varied(deltas: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """A boolean mask of the ``density`` share, rounded down, of the entries that vary at all.

    ``N Σ x² − (Σ x)²`` is N² times the population variance. In float64, so that entries that one
    expert alone moves by the same amount tie exactly, whichever expert it is.
    """
    total = deltas[0].double().clone()
    squares = total * total
    for delta in deltas[1:]:
        wide = delta.double()
        total += wide
        squares += wide * wide
    variance = (squares * len(deltas) - total * total).clamp_(min=0)
    keep = math.floor(int((variance > 0).sum()) * density)
    if keep == 0:
        return variance < 0
    return variance >= kth_largest(variance, keep)
