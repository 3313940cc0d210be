"""PCB-Merging: every entry weighted by its size within the task and its accord with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.masks import kth_largest
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

_OUTLIERS = 1e-4  # share of the magnitudes, at either end, that is brought to the next one


@register(
    "pcb",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ sᵢ ⊙ τ̃ᵢ / Σ sᵢ,  sᵢ = minmax(max(bᵢ, q)),  q = quantile(bᵢ, 1 − d),  "
    "bᵢ = exp(N minmax(|τ̃ᵢ|)²) ⊙ tanh(τᵢ ⊙ Σⱼ τⱼ),  τ̃ᵢ = τᵢ without outliers",
    source="Du et al. 2024, PCB-Merging (arXiv 2410.02396), section 3, as in the authors' "
    "pcb-merging.py; variant: quantiles and ranges per tensor, not of the whole model",
    cost="one pass, and three selections an expert",
    parameters=[
        Parameter(
            "weight",
            "λᵢ on each balanced task vector; 0 leaves it out",
            1.0,
            0.0,
            1.5,
            per_expert=True,
        ),
        Parameter("density", "share of each task vector's entries that is kept", 0.1, 0.01, 1.0),
        SCALE,
    ],
)
def pcb(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    density: float,
    scale: float,
) -> torch.Tensor:
    """Weigh each entry by its size among its own and its accord with the other experts' sum.

    The weights wᵢ act on the numerator only (the λᵢ that the authors search in 0.8 to 1.3); N and
    Σⱼ count the experts whose weight is not 0. In float64.

    The paper writes softmax for both balances; its code has exp within and tanh between tasks
    (another file of the same repository has a sum of tanh of normalised products). The smallest
    entry that is kept gets sᵢ = 0, by the range it is brought to. Where a range is empty the
    published ratio is 0/0: here equal magnitudes count as 1, equal kept scores as 1, and a task
    vector of zeros takes no part.
    """
    import torch

    deltas = [(experts[i] - base, w) for i, w in enumerate(weight) if w != 0]
    together = torch.zeros_like(base, dtype=torch.float64)
    for delta, _ in deltas:
        together += delta
    merged, divisor = torch.zeros_like(together), torch.zeros_like(together)
    for delta, factor in deltas:
        if not delta.any():
            continue
        wide = delta.double()
        magnitude = _without_outliers(wide.abs())
        within = _unit_range(magnitude).square_().mul_(len(deltas)).exp_()
        strength = _keep_largest(within.mul_((wide * together).tanh_()), density)
        divisor += strength
        merged += strength.mul_(magnitude).mul_(wide.sign_()).mul_(factor)
    merged /= divisor.masked_fill_(divisor == 0, 1.0)
    return base + merged.float() * scale


def _without_outliers(magnitude: torch.Tensor) -> torch.Tensor:
    count = magnitude.numel()
    low = int(count * _OUTLIERS)
    high = max(int(count * (1 - _OUTLIERS) - 1), 0)
    return magnitude.clamp(
        kth_largest(magnitude, count - low), kth_largest(magnitude, count - high)
    )


def _unit_range(values: torch.Tensor) -> torch.Tensor:
    """The values brought to 0 … 1; ones where they are all equal."""
    low, high = values.min(), values.max()
    if high == low:
        return values.new_ones(values.shape)
    return (values - low).div_(high - low)


def _keep_largest(score: torch.Tensor, density: float) -> torch.Tensor:
    """The ``density`` share of largest scores brought to 0 … 1, zeros elsewhere."""
    kept = score.numel() - int(score.numel() * (1 - density))
    if kept <= 0:
        return score.new_zeros(score.shape)
    threshold = kth_largest(score, kept)
    if float(score.max()) > threshold:
        return _unit_range(score.clamp(min=threshold))
    return (score >= threshold).double()
