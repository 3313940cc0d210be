"""OTA merging with Fast Fisher Grafting: curvature read from saved Adam states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.masks import trim
from evomerge.methods.registry import Parameter, register
from evomerge.methods.statistics.reading import alone, of_experts
from evomerge.methods.statistics.regmean import WEIGHT

if TYPE_CHECKING:
    import torch

POWER = Parameter(
    "power", "power of the second moments: 0.5 weighs as Adam does, 1 as Fisher", 0.5, 0.1, 1.0
)
DENSITY = Parameter(
    "density",
    "share of each task vector's entries that is grafted, those of largest v τ²; 1 grafts nothing "
    "away",
    0.4,
    0.05,
    1.0,
    per_expert=True,
)
_EPSILON = 1e-26


@register(
    "ota",
    family="statistics",
    formula="θ = θ₀ + λ Σ wᵢ Pᵢ Mᵢ τᵢ / Σ wᵢ Pᵢ Mᵢ,  Pᵢ = vᵢᵖ + 10⁻²⁶,  Mᵢ = top share of vᵢ τᵢ²",
    source="Mahdavinia et al. 2025, Harnessing Optimization Dynamics for Curvature-Informed Model "
    "Merging (arXiv 2509.11167); defaults after its code",
    cost="one pass over experts and optimiser states, and one selection an expert",
    parameters=[WEIGHT, DENSITY, POWER, SCALE],
    plain=lambda weights: plain_ota(weights),
    needs="optimiser states",
    shares=True,
    statistics=("second_moment",),
)
def ota(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    power: float,
    scale: float,
) -> torch.Tensor:
    """The mean of grafted task vectors, weighted by the curvature that Adam saw in training.

    ``second_moment``: float32 of the tensor's shape an expert, Adam's ``exp_avg_sq`` at the end of
    its training. Variant: the published mask has one threshold on ``v τ²`` for a whole model, found
    by grafting at several densities; here ``density`` is the share kept in each tensor, entries
    that tie with the last kept are kept too, and entries of zero saliency never are, unless density
    is 1, which is OTA without grafting. Entries that every mask drops stay at base. The code's
    optional rescaling to the experts' operator norms is left out.
    """
    second_moments = of_experts(context, "second_moment", base.shape)
    start = base.double()
    numerator = start.new_zeros(start.shape)
    denominator = start.new_zeros(start.shape)
    for i, (v, share, w) in enumerate(zip(second_moments, density, weight, strict=True)):
        if w == 0:
            continue
        curvature = v.double()
        delta = experts[i].double() - start
        importance = (curvature.pow(power) + _EPSILON) * w
        if share < 1:
            importance *= trim(curvature * delta * delta, share) > 0
        numerator += importance * delta
        denominator += importance
    merged = numerator / denominator.masked_fill_(denominator == 0, 1.0)
    return (start + merged * scale).float()


def plain_ota(weights: tuple[float, ...]) -> dict[str, float | tuple[float, ...]] | None:
    """One expert alone is itself once nothing is grafted away."""
    found = alone(weights)
    return found if found is None else {**found, "density": 1.0}
