"""LiNeS: task vectors scaled by depth, so that shallow blocks stay near the base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from evomerge.errors import CandidateError
from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.sce import WEIGHT
from evomerge.methods.elementwise.task_arithmetic import task_vectors
from evomerge.methods.numerics import dot
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch


@register(
    "lines",
    family="elementwise",
    formula="θ = θ₀ + (α + β l/(L−1)) Σ wᵢ τᵢ in block l of L,  θ₀ + α Σ wᵢ τᵢ outside the blocks",
    source="Wang et al. 2024, LiNeS (arXiv 2410.17146), equation of the layer scaling",
    cost="one pass",
    parameters=[
        Parameter("alpha", "factor at the first block and outside the blocks", 0.2, 0.0, 1.0),
        Parameter("beta", "what the last block's factor has more than the first's", 0.3, 0.0, 1.5),
        WEIGHT,
    ],
    plain=lambda weights: {"weight": weights, "alpha": 1.0, "beta": 0.0},
    exact=True,
    smooth=True,
)
def lines(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    alpha: float,
    beta: float,
    weight: tuple[float, ...],
) -> torch.Tensor:
    """Task arithmetic whose factor grows linearly from the first block to the last.

    With one expert that is itself a merge, this applies LiNeS to that merge, of whatever method;
    with several it is the paper's LiNeS on task arithmetic. Each tower counts its own blocks.

    Published choices: for one fine-tuned model β = 1 − α, so that the last block keeps it whole;
    for a merge of N models β is searched and α = ``published_alpha``, 1/N for task arithmetic. The
    default of α is 1/N for five experts; it cannot follow N by itself, nor the whole model's norm.
    """
    factor = alpha if context.depth is None else alpha + beta * context.depth
    return base + weighted_sum(task_vectors(base, experts), [factor * w for w in weight])


def published_alpha(
    tensors: Iterable[tuple[torch.Tensor, Sequence[torch.Tensor]]], count: int
) -> float:
    """The paper's α for a merge of ``count`` experts: ``‖Σ τᵢ‖₁ / ‖τ_m‖₁ / N`` over the model.

    ``tensors`` goes through the model: the merged task vector and the experts' task vectors of
    each tensor, of the same shape. A method whose task vectors came out small gets a larger α.

    Raises:
        CandidateError: the merged task vector is zero everywhere.
    """
    summed = merged = 0.0
    for one, deltas in tensors:
        together = weighted_sum(deltas, [1.0] * len(deltas))
        summed += dot(together, together.sign())
        merged += dot(one, one.sign())
    if merged == 0:
        raise CandidateError("lines: the merge equals the base, so that no α can match its norm")
    return summed / merged / count
