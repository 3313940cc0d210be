"""WIDEN: weights taken apart into magnitudes and directions of columns, merged by their change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch


@register(
    "widen",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ ½ (score(Δmᵢ) + score(Δdᵢ)) ⊙ τᵢ by column,  Δmᵢ = | ‖θᵢ‖ − ‖θ₀‖ |,  "
    "Δdᵢ = 1 − cos(θᵢ, θ₀),  score = c where rank > r · mean rank, else softmax over i of the rank",
    source="Yu et al. 2024, Extend model merging via weight disentanglement (arXiv 2408.03092), "
    "section 3; variant: linear weights only, equal changes share the lowest rank",
    cost="two passes, and two sorts of the columns an expert",
    parameters=[
        Parameter(
            "weight", "factor on each task vector; 0 leaves it out", 1.0, 0.0, 1.5, per_expert=True
        ),
        Parameter("ratio", "times the mean rank from which on a column is calibrated", 1.0, 0, 2),
        Parameter("calibration", "score of the calibrated columns", 1.0, 0.0, 1.5),
        SCALE,
    ],
    plain=lambda weights: (
        {"weight": weights, "calibration": 1.0, "scale": 1.0} if _alone(weights) else None
    ),
    matrices=True,
)
def widen(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    ratio: float,
    calibration: float,
    scale: float,
) -> torch.Tensor:
    """Weigh each column of each expert by how much its length and its direction changed.

    A column belongs to one input of the layer. A rank is the share of the expert's own columns that
    changed less, in [0, 1); the softmax is over the experts. One expert alone has the softmax 1,
    so that it is returned whole where ``calibration`` is 1.

    The published code ranks equal changes by their position; columns that an expert does not move
    all have rank 0 here. Published codes also treat norms and biases (by |Δ| itself) and embeddings
    (by token): here they follow the policy for all methods of matrices. The direction of a column
    of zeros has cosine 0 with any other (published: NaN). In float64.
    """
    import torch

    taking_part = [(experts[i], w) for i, w in enumerate(weight) if w != 0]
    if not taking_part:
        return base.clone()
    start = base.double()
    changes = [_changes(start, e.double()) for e, _ in taking_part]
    scores = [
        _scores(torch.stack([_ranks(change[kind]) for change in changes]), ratio, calibration)
        for kind in (0, 1)
    ]
    strength = (scores[0] + scores[1]) / 2
    merged = torch.zeros_like(start)
    for (expert, factor), column in zip(taking_part, strength, strict=True):
        merged += (expert.double() - start) * column * factor
    return base + merged.float() * scale


def _alone(weights: tuple[float, ...]) -> bool:
    return sum(w != 0 for w in weights) <= 1


def _changes(start: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By column, float64 (n,): the change of length, and one minus the cosine of the turn."""
    import torch

    before, after = start.norm(dim=0), weights.norm(dim=0)
    product = before * after
    cosine = (start * weights).sum(dim=0) / torch.where(product > 0, product, 1.0)
    moved = (start != weights).any(dim=0)  # else rounding would turn columns that are the same
    return (after - before).abs(), (1 - cosine) * moved


def _ranks(change: torch.Tensor) -> torch.Tensor:
    """For every column the number of columns that changed less: a whole number, float64."""
    import torch

    return torch.searchsorted(change.sort().values, change).double()


def _scores(ranks: torch.Tensor, ratio: float, calibration: float) -> torch.Tensor:
    """(N, n): the softmax over experts, and ``calibration`` where an expert's rank is high.

    Compared as whole numbers: one rank of an odd number of columns is the mean itself.
    """
    columns = ranks.shape[1]
    high = ranks * columns > ranks.sum(dim=1, keepdim=True) * ratio
    return (ranks / columns).softmax(dim=0).masked_fill(high, calibration)
