"""Activation-informed merging: channels that the base uses most keep most of the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import BASE, Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import SCALE, WEIGHT, task_vectors
from evomerge.methods.registry import Parameter, register
from evomerge.methods.statistics.reading import of_source

if TYPE_CHECKING:
    import torch

OMEGA = Parameter(
    "omega", "what is kept of the task vector at the base's strongest input channel", 0.4, 0.0, 1.0
)


@register(
    "aim",
    family="statistics",
    formula="θ = θ₀ + λ (Σ wᵢ τᵢ) diag(1 − (1 − ω) s / max s),  s = E|x| of the base",
    source="Nobari et al. 2025, Activation-Informed Merging of Large Language Models "
    "(arXiv 2502.02421), and its code: importance by mean magnitude over the layer's largest",
    cost="one pass",
    parameters=[WEIGHT, OMEGA, SCALE],
    plain=lambda weights: plain_aim(weights),
    needs="activations",
    matrices=True,
    exact=True,
    base_statistics=("magnitude",),
)
def aim(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    omega: float,
    scale: float,
) -> torch.Tensor:
    """Task arithmetic, held back in the input channels on which the base relies.

    ``magnitude``: (n,) float32 of the base, E|x| of each of the layer's input channels on
    task-agnostic text. The paper's ω is 0.4 (0.2 to 0.6 advised), and 1 changes nothing. It is a
    wrapper there, applied to any finished merge: give that merge as the only expert, of weight 1.
    Variant: the published code also scales norms' weights; here those follow the common policy.
    """
    size = of_source(context, BASE, "magnitude", base.shape[1:]).abs()
    largest = float(size.max())
    importance = size / largest if largest > 0 else size
    merged = weighted_sum(task_vectors(base, experts), [scale * w for w in weight])
    return base + merged * (1 - (1 - omega) * importance)


def plain_aim(weights: tuple[float, ...]) -> dict[str, float | tuple[float, ...]] | None:
    """The base, and one expert unprotected; of several, tensors without statistics get the mean."""
    if not any(weights):
        return {"scale": 0.0}
    return {"weight": weights, "omega": 1.0, "scale": 1.0} if len(weights) == 1 else None
