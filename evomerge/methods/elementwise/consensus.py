"""Consensus merging: keep the entries that several tasks' TALL masks agree to need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import SCALE, task_vectors
from evomerge.methods.elementwise.ties import WEIGHT
from evomerge.methods.masks import pack
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

_THRESHOLD = Parameter(
    "threshold",
    "an expert needs an entry if its own change is above this times the others' together",
    0.4,
    0.2,
    0.6,
    per_expert=True,
)
_AGREEMENT = Parameter(
    "agreement",
    "an entry is kept if at least so many experts need it; 0 keeps all",
    2.0,
    0.0,
    4.0,
    integer=True,
)


def consensus_extra(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    threshold: tuple[float, ...],
    **_: float,
) -> dict[str, torch.Tensor]:
    """What gives each expert back: θ₀ + mask ⊙ unified.

    ``unified``: the multi-task vector τ, float32; ``mask.EXPERT``: its TALL mask (``masks.pack``).
    """
    deltas, total = _weighted(base, experts, weight)
    masks = tall_masks(deltas, total, threshold)
    packed = {f"mask.{e}": pack(m) for e, m in zip(context.experts, masks, strict=True)}
    return {"unified": total, **packed}


@register(
    "consensus_ta",
    family="elementwise",
    formula="θ = θ₀ + λ [Σ mᵢ ≥ k] ⊙ τ,  τ = Σ wᵢ τᵢ,  mᵢ = [|wᵢ τᵢ| > tᵢ |τ − wᵢ τᵢ|]",
    source="Wang et al. 2024, Localizing Task Information for Improved Model Merging and "
    "Compression (arXiv 2405.07813), equations 3 to 5; variant: on task arithmetic's sum",
    cost="two passes",
    parameters=[WEIGHT, _THRESHOLD, _AGREEMENT, replace(SCALE, default=0.3)],
    plain=lambda weights: {"weight": weights, "agreement": 0.0, "scale": 1.0},
    exact=True,
    extra=consensus_extra,
)
def consensus_ta(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    threshold: tuple[float, ...],
    agreement: int,
    scale: float,
) -> torch.Tensor:
    """Task arithmetic on the entries that at least ``agreement`` experts need.

    The authors choose each threshold among 0.2 to 0.6, and the scale, on validation data; the
    defaults are the middle of the former and task arithmetic's 0.3. With fewer experts than
    ``agreement`` nothing is kept and the result is the base.
    """
    import torch

    deltas, total = _weighted(base, experts, weight)
    needed = torch.zeros_like(total, dtype=torch.int32)
    for mask in tall_masks(deltas, total, threshold):
        needed += mask
    return base + total * (needed >= agreement) * scale


def _weighted(
    base: torch.Tensor, experts: Sequence[torch.Tensor], weight: Sequence[float]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    deltas = [t * w for t, w in zip(task_vectors(base, experts), weight, strict=True)]
    return deltas, weighted_sum(deltas, [1.0] * len(deltas))


def tall_masks(
    deltas: Sequence[torch.Tensor], total: torch.Tensor, threshold: Sequence[float]
) -> list[torch.Tensor]:
    """The TALL mask of each task vector, ``|τᵢ| > tᵢ |τ − τᵢ|``, boolean, equation 3.

    ``total`` is the multi-task vector τ: their sum here, but any merged task vector will do.
    """
    return [d.abs() > (total - d).abs() * t for d, t in zip(deltas, threshold, strict=True)]
