"""DELLA: drop small entries more often than large ones, and rescale each survivor by its odds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import SCALE, WEIGHT, task_vectors
from evomerge.methods.elementwise.ties import NORMALISE, disjoint_merge, plain_ties
from evomerge.methods.elementwise.ties import WEIGHT as TIES_WEIGHT
from evomerge.methods.masks import mask_key, random_keep, row_ranks, rows
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

DENSITY = Parameter(
    "density", "mean probability that an entry is kept (1 - p)", 0.7, 0.05, 1.0, per_expert=True
)
EPSILON = Parameter(
    "epsilon",
    "half the window of probabilities: from density - epsilon for the smallest entry of a row to "
    "density + epsilon for its largest; narrowed where that would leave (0, 1]",
    0.07,
    0.0,
    0.2,
    per_expert=True,
)
_LEAST = 0.1  # of the density: bounds the factor on a survivor, however wide the window
_SOURCE = (
    "Deep et al. 2024, DELLA-Merging (arXiv 2406.11617), section 3 (MagPrune); variant: ranks per "
    "row, each survivor divided by its own probability"
)


@register(
    "della",
    family="elementwise",
    formula="θ = θ₀ + λ Σ_{i agrees} wᵢ τ̂ᵢ / Σ_{i agrees} |wᵢ|,  τ̂ᵢ = mᵢ ⊙ τᵢ / pᵢ,  "
    "mᵢ ~ Bernoulli(pᵢ),  pᵢ = dᵢ − εᵢ + 2 εᵢ rank|τᵢ| / (n − 1)",
    source=_SOURCE + "; then the sign election and disjoint mean of TIES (arXiv 2306.01708)",
    cost="one sort of each row an expert",
    parameters=[TIES_WEIGHT, DENSITY, EPSILON, replace(SCALE, default=1.1), NORMALISE],
    plain=plain_ties,
    exact=True,
)
def della(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    scale: float,
    normalise: bool,
) -> torch.Tensor:
    """TIES with a random drop that spares large entries in place of the trim by magnitude.

    Defaults are those of the authors' example (drop rate 0.3, window 0.14, factor 1.1). Their code
    divides by each entry's own probability; mergekit's rescales to the 1-norm of the whole tensor.
    """
    pruned = _prune_all(base, experts, context, density, epsilon)
    return base + disjoint_merge(pruned, weight, normalise) * scale


@register(
    "della_linear",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ mᵢ ⊙ τᵢ / pᵢ,  mᵢ ~ Bernoulli(pᵢ),  "
    "pᵢ = dᵢ − εᵢ + 2 εᵢ rank|τᵢ| / (n − 1)",
    source=_SOURCE + "; without the election, as in mergekit",
    cost="one sort of each row an expert",
    parameters=[WEIGHT, DENSITY, EPSILON, SCALE],
    plain=lambda weights: {"weight": weights, "density": 1.0, "scale": 1.0},
    exact=True,
    smooth=True,
)
def della_linear(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    scale: float,
) -> torch.Tensor:
    """Task arithmetic on task vectors thinned at random, large entries less often."""
    pruned = _prune_all(base, experts, context, density, epsilon)
    return base + weighted_sum(pruned, [scale * w for w in weight])


def _prune_all(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    density: Sequence[float],
    epsilon: Sequence[float],
) -> list[torch.Tensor]:
    deltas = task_vectors(base, experts)
    return [
        magprune(delta, d, e, mask_key(context, name))
        for delta, d, e, name in zip(deltas, density, epsilon, context.experts, strict=True)
    ]


def magprune(delta: torch.Tensor, density: float, epsilon: float, key: int) -> torch.Tensor:
    """Each entry over its probability if it is kept, else 0, float32; density 1 keeps all as is.

    The masks come from the hash of ``masks.random_keep``: a higher density never drops an entry
    that a lower one keeps (at the same ``epsilon``).
    """
    if density >= 1:
        return delta
    probability = keep_probability(delta, density, epsilon)
    mask = random_keep(delta.shape, probability, key, str(delta.device))
    return delta * mask / probability


def keep_probability(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """The probability of each entry by the rank of its magnitude in its row, float32.

    A row is all that feeds one output (see ``masks.rows``). ``epsilon`` is narrowed so that
    probabilities stay at or below 1 and at or above a tenth of the density; their mean over a row
    is the density in every case. An entry alone in its row has the density.
    """
    length = rows(delta).shape[1]
    half = min(epsilon, (1 - _LEAST) * density, 1 - density) if length > 1 else 0.0
    step = 2 * half / max(length - 1, 1)
    return (row_ranks(delta.abs()).float() * step + (density - half)).clamp_(max=1.0)
