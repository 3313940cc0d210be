"""Multi-SLERP: barycentric interpolation of several experts on a sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import WEIGHT
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.registry import register
from evomerge.methods.spherical.gram import TASK_VECTORS, combine, cosines, norms, shares
from evomerge.methods.spherical.nuslerp import one_expert

if TYPE_CHECKING:
    import torch

BALANCED = 1e-6  # a mean of unit vectors shorter than this has no direction to speak of


@register(
    "multislerp",
    family="spherical",
    formula="θ = θ₀ + λ (Σ wᵢ‖θᵢ‖ · m/‖m‖ − θ₀),  m = Σ wᵢ θᵢ/‖θᵢ‖,  Σ wᵢ = 1",
    source="Goddard 2025, multislerp (goddard.blog/posts/multislerp-wow-what-a-cool-idea) and "
    "mergekit; variant: closed form, linear where the directions cancel out",
    cost="one pass, and one inner product a pair of experts",
    parameters=[WEIGHT, SCALE, TASK_VECTORS],
    plain=one_expert,
    shares=True,
)
def multislerp(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    scale: float,
    task_vectors: bool,
) -> torch.Tensor:
    """The experts' mean direction at their mean length.

    Published as three steps: the weighted mean μ of the unit vectors uᵢ, brought to the sphere;
    the mean r of the uᵢ projected to the tangent space at μ; the exponential map of r at μ. But
    r = Σ wᵢ uᵢ − ⟨Σ wᵢ uᵢ, μ⟩ μ = 0, because μ points along Σ wᵢ uᵢ: the last two steps change
    nothing, and this is the whole formula. (``karcher`` takes logarithms instead of projections,
    and gives SLERP for two experts; this gives it for two equal shares only.)

    Each tensor is one vector. Zero vectors count for the length, not for the direction. Where the
    directions cancel out (‖m‖ < 1e-6), the linear average is taken; published for two experts.

    Raises:
        CandidateError: the weights sum to zero.
    """
    if scale == 0:
        return base.clone()
    share = shares(weight, "multislerp", context)
    return combine(
        base,
        experts,
        context,
        lambda gram: mean_direction(gram, share),
        scale=scale,
        deltas=task_vectors,
    )


def mean_direction(gram: torch.Tensor, share: Sequence[float]) -> torch.Tensor:
    """(N, 1): the coefficients of the vectors in ``Σ wᵢ‖xᵢ‖ · m/‖m‖``."""
    import torch

    lengths: list[float] = norms(gram)[:, 0].tolist()
    cosine: list[list[float]] = cosines(gram)[:, :, 0].tolist()
    size = length(share, cosine)
    if size < BALANCED:
        return torch.tensor(share, dtype=torch.float64)[:, None]
    radius = math.fsum(s * n for s, n in zip(share, lengths, strict=True))
    found = [s * radius / (size * n) if n else 0.0 for s, n in zip(share, lengths, strict=True)]
    return torch.tensor(found, dtype=torch.float64)[:, None]


def length(coefficients: Sequence[float], cosine: Sequence[Sequence[float]]) -> float:
    """``‖Σ cᵢ uᵢ‖`` of unit vectors, given the cosines between them."""
    rows = zip(coefficients, cosine, strict=True)
    terms = [c * d * x for c, row in rows for d, x in zip(coefficients, row, strict=True)]
    return math.sqrt(max(math.fsum(terms), 0.0))
