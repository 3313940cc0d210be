"""Karcher mean: the point of the sphere from which the experts' directions average to nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import WEIGHT
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.registry import register
from evomerge.methods.spherical.gram import TASK_VECTORS, combine, cosines, norms, shares
from evomerge.methods.spherical.multislerp import BALANCED, length
from evomerge.methods.spherical.nuslerp import one_expert

if TYPE_CHECKING:
    import torch

_TOLERANCE = 1e-12  # on the coefficients of the mean
_STEPS = 200  # five task vectors at right angles, in unequal shares, take about 30
_SAME, _OPPOSITE = 1e-8, 1e-4  # sines below which two directions are the same, or opposite


@register(
    "karcher",
    family="spherical",
    formula="θ = θ₀ + λ (Σ wᵢ‖θᵢ‖ · μ − θ₀),  μ on the unit sphere with Σ wᵢ log_μ(θᵢ/‖θᵢ‖) = 0,  "
    "Σ wᵢ = 1",
    source="Karcher 1977, Riemannian center of mass and mollifier smoothing; as a merge: Wang et "
    "al. 2026, Functionality-oriented LLM merging (arXiv 2603.04972) and mergekit, method karcher; "
    "variant: with weights, iterated to convergence",
    cost="one pass, and one inner product a pair of experts",
    parameters=[WEIGHT, SCALE, TASK_VECTORS],
    plain=one_expert,
    shares=True,
)
def karcher(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    scale: float,
    task_vectors: bool,
) -> torch.Tensor:
    """The Riemannian mean of the experts' directions at their mean length.

    For two experts of equal length this is SLERP. Each tensor is one vector.

    From the normalised mean, steps ``μ ← exp_μ(Σ wᵢ log_μ uᵢ)`` as published; every iterate is a
    combination of the uᵢ, so the steps move N coefficients and cost nothing beside the inner
    products. They go on until no coefficient moves by more than 1e-12, at most 200 (published: 10
    steps or 1e-5, on the whole vectors). Zero vectors count for the length, not for the direction.
    Where the directions cancel out the mean is not defined, and the linear average is taken
    (published: the steps start at the first expert). A direction opposite to μ (within
    1e-4) has no logarithm and is left out of that step.

    Raises:
        CandidateError: the weights sum to zero.
    """
    if scale == 0:
        return base.clone()
    share = shares(weight, "karcher", context)
    return combine(
        base,
        experts,
        context,
        lambda gram: karcher_mean(gram, share),
        scale=scale,
        deltas=task_vectors,
    )


def karcher_mean(gram: torch.Tensor, share: Sequence[float]) -> torch.Tensor:
    """(N, 1): the coefficients of the vectors in ``Σ wᵢ‖xᵢ‖ · μ``."""
    import torch

    lengths: list[float] = norms(gram)[:, 0].tolist()
    cosine: list[list[float]] = cosines(gram)[:, :, 0].tolist()
    pointing = math.fsum(s for s, n in zip(share, lengths, strict=True) if n)
    weights = [s / pointing if n and pointing else 0.0 for s, n in zip(share, lengths, strict=True)]
    size = length(weights, cosine)
    if size < BALANCED:
        return torch.tensor(share, dtype=torch.float64)[:, None]
    mean = [w / size for w in weights]
    for _ in range(_STEPS):
        moved = _step(mean, weights, cosine)
        distance = max(abs(a - b) for a, b in zip(mean, moved, strict=True))
        mean = moved
        if distance < _TOLERANCE:
            break
    radius = math.fsum(s * n for s, n in zip(share, lengths, strict=True))
    found = [c * radius / n if n else 0.0 for c, n in zip(mean, lengths, strict=True)]
    return torch.tensor(found, dtype=torch.float64)[:, None]


def _step(
    mean: Sequence[float], weights: Sequence[float], cosine: Sequence[Sequence[float]]
) -> list[float]:
    """The coefficients of ``exp_μ(Σ wᵢ log_μ uᵢ)``, ``log_μ u = Ω/sin Ω (u − cos Ω μ)``."""
    towards = []
    along = 0.0
    for weight, row in zip(weights, cosine, strict=True):
        inner = math.fsum(c * x for c, x in zip(mean, row, strict=True))
        towards.append(weight * _stretch(inner))
        along += towards[-1] * inner
    tangent = [g - along * c for g, c in zip(towards, mean, strict=True)]
    size = length(tangent, cosine)
    rest, go = math.cos(size), math.sin(size) / size if size else 1.0
    moved = [rest * c + go * g for c, g in zip(mean, tangent, strict=True)]
    norm = length(moved, cosine)
    return [c / norm for c in moved]


def _stretch(cosine: float) -> float:
    """``Ω/sin Ω``; 1 at Ω = 0, and 0 at the opposite point, where no direction is the shortest."""
    omega = math.acos(min(max(cosine, -1.0), 1.0))
    sine = math.sin(omega)
    if cosine > 0:
        return omega / sine if sine > _SAME else 1.0
    return omega / sine if sine > _OPPOSITE else 0.0
