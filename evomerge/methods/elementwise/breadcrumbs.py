"""Model Breadcrumbs: leave out the largest and the smallest entries of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import SCALE, task_vectors
from evomerge.methods.elementwise.ties import NORMALISE, WEIGHT, disjoint_merge
from evomerge.methods.masks import row_ranks, rows, share
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

_DENSITY = Parameter(
    "density", "share of each row's entries that is kept", 0.15, 0.05, 1.0, per_expert=True
)
_GAMMA = Parameter(
    "gamma",
    "share of each row's entries, its largest, that is left out first",
    0.006,
    0.0,
    0.1,
    per_expert=True,
)
_SCALE = replace(SCALE, default=0.2)
_SOURCE = (
    "Davari & Belilovsky 2024, Model Breadcrumbs (arXiv 2312.06795), section 3; variant: row by "
    "row and the largest removed first, as in the authors' code (mergekit's takes whole tensors)"
)


@register(
    "breadcrumbs",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ mᵢ ⊙ τᵢ,  mᵢ = the density share of each row below its γ largest "
    "entries",
    source=_SOURCE,
    cost="one sort of each row an expert",
    parameters=[WEIGHT, _DENSITY, _GAMMA, _SCALE],
    plain=lambda weights: {"weight": weights, "density": 1.0, "gamma": 0.0, "scale": 1.0},
    exact=True,
    smooth=True,
)
def breadcrumbs(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    scale: float,
) -> torch.Tensor:
    """Task arithmetic without the outliers and the small entries of each row.

    Defaults are the point from which the authors' own search starts.
    """
    kept = _keep_all(base, experts, density, gamma)
    return base + weighted_sum(kept, [scale * w for w in weight])


@register(
    "breadcrumbs_ties",
    family="elementwise",
    formula="θ = θ₀ + λ Σ_{i agrees} wᵢ mᵢ ⊙ τᵢ,  mᵢ = the density share of each row below its γ "
    "largest entries,  sign elected by Σ wᵢ mᵢ ⊙ τᵢ",
    source=_SOURCE + "; then the sign election of TIES (arXiv 2306.01708), as in mergekit",
    cost="one sort of each row an expert",
    parameters=[WEIGHT, _DENSITY, _GAMMA, _SCALE, replace(NORMALISE, default=0.0)],
    plain=lambda weights: _plain_alone(weights),
    exact=True,
)
def breadcrumbs_ties(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    scale: float,
    normalise: bool,
) -> torch.Tensor:
    """Model Breadcrumbs, then only the entries that agree with an elected sign.

    As in mergekit the agreeing entries are summed, not averaged, unless ``normalise`` is set.
    """
    kept = _keep_all(base, experts, density, gamma)
    return base + disjoint_merge(kept, weight, normalise) * scale


def _plain_alone(weights: tuple[float, ...]) -> dict[str, float | tuple[float, ...]] | None:
    """An expert alone wins every election with its own signs."""
    if sum(w != 0 for w in weights) > 1:
        return None
    return {"weight": weights, "density": 1.0, "gamma": 0.0, "scale": 1.0, "normalise": 0.0}


def _keep_all(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    density: Sequence[float],
    gamma: Sequence[float],
) -> list[torch.Tensor]:
    deltas = task_vectors(base, experts)
    return [middle(delta, d, g) for delta, d, g in zip(deltas, density, gamma, strict=True)]


def middle(delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """``delta`` with all but the middle magnitudes of each row (see ``masks.rows``) set to zero.

    Of n entries, the ``round(gamma * n)`` largest go; of the rest, the ``round(density * n)``
    largest stay, or as many as there are (both half up). Of equal magnitudes the one further right
    counts as larger.
    """
    length = rows(delta).shape[1]
    below = length - share(gamma, length)
    kept = min(share(density, length), below)
    if kept == length:
        return delta
    ranks = row_ranks(delta.abs())
    return delta * ((ranks < below) & (ranks >= below - kept))
