"""Localize-and-Stitch without data: the largest entries of each task vector, overlaps averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.sce import WEIGHT
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.masks import trim
from evomerge.methods.registry import Parameter, register, single_expert

if TYPE_CHECKING:
    import torch


@register(
    "localize_and_stitch",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ mᵢ ⊙ τᵢ / max(1, Σ mᵢ),  mᵢ = 1 on the largest |τᵢ|",
    source="He et al. 2024, Localize-and-Stitch (arXiv 2408.13656), dataless version and the "
    "stitching of section 3; variant: the largest entries of each tensor, not of the whole model",
    cost="one pass, and one selection an expert",
    parameters=[
        WEIGHT,
        Parameter(
            "density",
            "share of each task vector's entries that is its region",
            0.05,
            0.01,
            1.0,
            per_expert=True,
        ),
        SCALE,
    ],
    plain=lambda weights: (
        {"weight": weights, "density": 1.0, "scale": 1.0} if single_expert(weights) else None
    ),
    exact=True,
)
def localize_and_stitch(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    scale: float,
) -> torch.Tensor:
    """Each expert moves only its largest entries; where regions overlap, their mean is taken.

    The authors' own code keeps 5 % of the model's entries for language models. Entries equal to
    the smallest one kept are all kept; an entry that an expert does not move is in none of its
    regions, and an expert of weight 0 has none.
    """
    import torch

    merged, overlap = torch.zeros_like(base), torch.zeros_like(base)
    for i, (factor, share) in enumerate(zip(weight, density, strict=True)):
        if factor == 0:
            continue
        region = trim(experts[i] - base, share)
        merged += region * factor
        overlap += region != 0
    return base + merged / overlap.clamp_(min=1) * scale
