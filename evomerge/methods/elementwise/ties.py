"""TIES: trim, elect sign, disjoint merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE, task_vectors
from evomerge.methods.masks import trim
from evomerge.methods.registry import Parameter, register, single_expert

if TYPE_CHECKING:
    import torch

WEIGHT = Parameter(
    "weight", "coefficient of each trimmed task vector", 1.0, 0.0, 1.5, per_expert=True
)
DENSITY = Parameter(
    "density", "share of each task vector's entries that is kept", 0.2, 0.05, 1.0, per_expert=True
)
NORMALISE = Parameter(
    "normalise",
    "divide by the sum of the agreeing weights (the published mean); without it their plain sum",
    1.0,
    0.0,
    1.0,
    switch=True,
)


@register(
    "ties",
    family="elementwise",
    formula="θ = θ₀ + λ Σ_{i agrees} wᵢ τ̂ᵢ / Σ_{i agrees} |wᵢ|,  τ̂ᵢ = trim(τᵢ),  "
    "sign elected by Σ wᵢ τ̂ᵢ",
    source="Yadav et al. 2023, TIES-Merging (arXiv 2306.01708), algorithm 1; variant: trim per "
    "tensor, weights folded in before the election, sign(0) = +",
    cost="one pass, and one selection an expert",
    parameters=[WEIGHT, DENSITY, SCALE, NORMALISE],
    plain=lambda weights: plain_ties(weights),
    exact=True,
)
def ties(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    scale: float,
    normalise: bool,
) -> torch.Tensor:
    """Trim small entries, elect a sign for each entry, merge the task vectors that agree with it.

    Variant, where published codes differ: the trim is per tensor (the paper's own code trims over
    the whole model); weights are folded in before the sign election, and an election of exactly
    zero counts as positive.
    """
    trimmed = [trim(t, d) for t, d in zip(task_vectors(base, experts), density, strict=True)]
    return base + disjoint_merge(trimmed, weight, normalise) * scale


def plain_ties(weights: tuple[float, ...]) -> dict[str, float | tuple[float, ...]] | None:
    """One untrimmed expert alone wins every election; two would already contest signs."""
    return {"weight": weights, "density": 1.0, "scale": 1.0} if single_expert(weights) else None


def disjoint_merge(
    deltas: Sequence[torch.Tensor], weight: Sequence[float], normalise: bool
) -> torch.Tensor:
    """``Σ wᵢ τ̂ᵢ`` over the non-zero entries that agree with the elected sign, float32.

    With ``normalise`` divided by ``Σ |wᵢ|`` over the same entries. Entries that no expert moves
    are zero.
    """
    weighted = [d * w for d, w in zip(deltas, weight, strict=True)]
    elected = weighted[0].clone()
    for term in weighted[1:]:
        elected += term
    positive = elected >= 0
    total = elected.zero_()
    divisor = total.clone()
    for term, w in zip(weighted, weight, strict=True):
        agrees = ((term > 0) & positive) | ((term < 0) & ~positive)
        total += term * agrees
        if normalise:
            divisor += agrees * abs(w)
    return total / divisor.masked_fill_(divisor == 0, 1.0) if normalise else total
