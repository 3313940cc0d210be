"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

WEIGHT = Parameter(
    "weight", "coefficient of each expert's task vector", 0.3, 0.0, 1.0, per_expert=True
)
SCALE = Parameter("scale", "factor on the merged task vector", 1.0, 0.0, 2.0)


@register(
    "task_arithmetic",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ τᵢ,  τᵢ = θᵢ − θ₀",
    source="Ilharco et al. 2023, Editing models with task arithmetic (arXiv 2212.04089), section 2",
    cost="one pass",
    parameters=[WEIGHT, SCALE],
    plain=lambda weights: {"weight": weights, "scale": 1.0},
    exact=True,
    smooth=True,
)
def task_arithmetic(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    scale: float,
) -> torch.Tensor:
    """The base plus a weighted sum of the experts' task vectors."""
    return base + weighted_sum(task_vectors(base, experts), [scale * w for w in weight])


def task_vectors(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``τᵢ = θᵢ − θ₀`` for each expert, float32."""
    return [expert - base for expert in experts]
