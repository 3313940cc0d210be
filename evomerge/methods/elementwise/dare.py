"""DARE: drop entries of the task vectors at random and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import SCALE, WEIGHT, task_vectors
from evomerge.methods.elementwise.ties import NORMALISE, disjoint_merge, plain_ties
from evomerge.methods.elementwise.ties import WEIGHT as TIES_WEIGHT
from evomerge.methods.masks import mask_key, random_keep
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

DENSITY = Parameter(
    "density", "probability that an entry is kept (1 - p)", 0.8, 0.05, 1.0, per_expert=True
)
_SOURCE = (
    "Yu et al. 2024, Language models are Super Mario (arXiv 2311.03099), equations 1 to 3; "
    "variant: kept entries divided by the density"
)


@register(
    "dare_linear",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ mᵢ ⊙ τᵢ / dᵢ,  mᵢ ~ Bernoulli(dᵢ)",
    source=_SOURCE,
    cost="one pass",
    parameters=[WEIGHT, DENSITY, SCALE],
    plain=lambda weights: {"weight": weights, "density": 1.0, "scale": 1.0},
    exact=True,
    smooth=True,
)
def dare_linear(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    scale: float,
) -> torch.Tensor:
    """Task arithmetic on randomly thinned and rescaled task vectors."""
    dropped = drop_and_rescale(task_vectors(base, experts), density, context)
    return base + weighted_sum(dropped, [scale * w for w in weight])


@register(
    "dare_ties",
    family="elementwise",
    formula="θ = θ₀ + λ Σ_{i agrees} wᵢ τ̂ᵢ / Σ_{i agrees} |wᵢ|,  τ̂ᵢ = mᵢ ⊙ τᵢ / dᵢ,  "
    "mᵢ ~ Bernoulli(dᵢ)",
    source=_SOURCE + "; then the sign election and disjoint merge of TIES (arXiv 2306.01708)",
    cost="one pass",
    parameters=[TIES_WEIGHT, DENSITY, SCALE, NORMALISE],
    plain=plain_ties,
    exact=True,
)
def dare_ties(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    scale: float,
    normalise: bool,
) -> torch.Tensor:
    """TIES with DARE's random drop in place of the trim by magnitude."""
    dropped = drop_and_rescale(task_vectors(base, experts), density, context)
    return base + disjoint_merge(dropped, weight, normalise) * scale


def drop_and_rescale(
    deltas: Sequence[torch.Tensor], density: Sequence[float], context: Context
) -> list[torch.Tensor]:
    """Each task vector times its random mask over its density; density 1 leaves it untouched."""
    result = []
    for delta, d, expert in zip(deltas, density, context.experts, strict=True):
        if d >= 1:
            result.append(delta)
        elif d <= 0:
            result.append(delta.new_zeros(delta.shape))
        else:
            mask = random_keep(delta.shape, d, mask_key(context, expert), str(delta.device))
            result.append(delta * mask * (1 / d))
    return result
