"""Layer Swapping: the outer blocks of one expert around the middle blocks of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch


@register(
    "layer_swapping",
    family="elementwise",
    formula="θ = θ₁ in the first b and the last u blocks and outside the blocks, (θ₁ + θ₂)/2 in "
    "the t blocks next to them, θ₂ between",
    source="Bandarkar et al. 2025, Layer Swapping (arXiv 2410.01335), algorithm 1; variant: one "
    "width for both transitions, their shares equal, outside the blocks the first expert",
    cost="one read",
    parameters=[
        Parameter("lower", "blocks at the bottom from the first expert", 5, 0, 16, integer=True),
        Parameter("upper", "blocks at the top from the first expert", 2, 0, 16, integer=True),
        Parameter("transition", "averaged blocks at either seam", 1, 0, 4, integer=True),
    ],
    min_experts=2,
    max_experts=2,
    ordered=True,
)
def layer_swapping(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    lower: int,
    upper: int,
    transition: int,
) -> torch.Tensor:
    """The first expert's outer blocks around the second one's inner blocks.

    The first is the language expert of the paper, the second its task expert; the defaults are a
    configuration reported for 32 blocks. Averaged blocks are taken from the second
    expert's part. Where ``lower`` and ``upper`` meet, nothing is left of it. Each tower counts its
    own blocks; embeddings, head and final norm are the first expert's, next to whose blocks they
    stand (which expert gives them is our choice).
    """
    if context.block is None:
        return experts[0].clone()
    inside = min(context.block - lower, context.blocks - upper - 1 - context.block)
    if inside < 0:
        return experts[0].clone()
    if inside >= transition:
        return experts[1].clone()
    return (experts[0] + experts[1]) / 2
