"""EMR-Merging: elect signs, take the largest agreeing changes; masks and rescalers by task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.elementwise.ties import WEIGHT
from evomerge.methods.masks import pack
from evomerge.methods.numerics import dot
from evomerge.methods.registry import register

if TYPE_CHECKING:
    import torch


def emr_extra(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    **_: float,
) -> dict[str, torch.Tensor]:
    """What gives each expert back (see ``task_model``).

    ``unified``: the unified task vector, float32; for each expert ``mask.EXPERT`` (``masks.pack``),
    and the sums of its rescaler, ``magnitude.EXPERT`` and ``kept.EXPERT``, 0-d float64.
    """
    import torch

    unified = unify(_weighted(base, experts, weight), base)
    made = {"unified": unified}
    found = modulators(_weighted(base, experts, weight), unified)
    for expert, modulator in zip(context.experts, found, strict=True):
        made[f"mask.{expert}"] = pack(modulator.mask)
        made[f"magnitude.{expert}"] = torch.tensor(modulator.magnitude, dtype=torch.float64)
        made[f"kept.{expert}"] = torch.tensor(modulator.kept, dtype=torch.float64)
    return made


@register(
    "emr",
    family="elementwise",
    formula="θ = θ₀ + λ γ ⊙ max_i |wᵢ τᵢ ⊙ [wᵢ τᵢ γ > 0]|,  γ = sign(Σ wᵢ τᵢ);  expert t: "
    "θ₀ + ρₜ Mₜ ⊙ τ_uni,  Mₜ = [wₜ τₜ ⊙ τ_uni > 0],  ρₜ = Σ|wₜ τₜ| / Σ|Mₜ ⊙ τ_uni|",
    source="Huang et al. 2024, EMR-Merging (arXiv 2405.17461), section 3.2, algorithm 1",
    cost="one pass",
    parameters=[WEIGHT, SCALE],
    plain=lambda weights: (
        {"weight": weights, "scale": 1.0} if sum(w != 0 for w in weights) <= 1 else None
    ),
    exact=True,
    extra=emr_extra,
)
def emr(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    scale: float,
) -> torch.Tensor:
    """The largest change of each entry among the experts that agree with its elected sign.

    This is the unified model alone: the published method adds a mask and a rescaler for each task
    when it is known which task is asked for; export can write them beside the merged model.
    """
    return base + unify(_weighted(base, experts, weight), base) * scale


def _weighted(
    base: torch.Tensor, experts: Sequence[torch.Tensor], weight: Sequence[float]
) -> Iterator[torch.Tensor]:
    """The weighted task vectors, one in memory at a time."""
    return ((experts[i] - base) * w for i, w in enumerate(weight))


def unify(deltas: Iterator[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """The unified task vector τ_uni, float32; a sum of exactly zero elects minus (authors' code).

    The largest and the smallest value of each entry hold both outcomes of the election, so that
    the task vectors are needed once only.
    """
    import torch

    total = torch.zeros_like(base)
    high, low = total.clone(), total.clone()
    for delta in deltas:
        total += delta
        torch.maximum(high, delta, out=high)
        torch.minimum(low, delta, out=low)
    return torch.where(total > 0, high, low)


@dataclass(frozen=True)
class Modulator:
    """How one task reads the unified task vector of one tensor.

    ``mask``: boolean, M; ``magnitude``: Σ|τ|; ``kept``: Σ|M ⊙ τ_uni|. A task has one rescaler, from
    these sums over all its tensors (``rescaler``).
    """

    mask: torch.Tensor
    magnitude: float
    kept: float


def modulators(deltas: Iterator[torch.Tensor], unified: torch.Tensor) -> Iterator[Modulator]:
    """The modulator of each task vector, in their order."""
    for delta in deltas:
        # τ_uni has the elected sign or is 0; a comparison cannot underflow as a product would
        mask = ((delta > 0) & (unified > 0)) | ((delta < 0) & (unified < 0))
        read = unified * mask
        yield Modulator(mask, dot(delta, delta.sign()), dot(read, read.sign()))


def rescaler(magnitude: float, kept: float) -> float:
    """``Σ|τ| / Σ|M ⊙ τ_uni|`` from both sums over all tensors; 1 where the task keeps nothing.

    This is the paper's ratio; the authors' script for ViTs adds means of tensors, so that small
    tensors weigh as much as large ones.
    """
    return magnitude / kept if kept > 0 else 1.0


def task_model(
    base: torch.Tensor, unified: torch.Tensor, mask: torch.Tensor, factor: float
) -> torch.Tensor:
    """One task's tensor again, ``θ₀ + ρ M ⊙ τ_uni``, float32; ``factor`` is its rescaler ρ."""
    return base + unified * mask * factor
