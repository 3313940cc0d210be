"""What methods read of a tensor's statistics: checked, since a file may belong to another model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.errors import CandidateError
from evomerge.methods.context import Context

if TYPE_CHECKING:
    import torch


def of_experts(context: Context, kind: str, shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """That statistic of each expert, of the shape wanted and finite, float32."""
    return tuple(of_source(context, expert, kind, shape) for expert in context.experts)


def of_source(context: Context, source: str, kind: str, shape: Sequence[int]) -> torch.Tensor:
    """That statistic of one source, of the shape wanted and finite, float32.

    Raises:
        CandidateError: there is none, or it has another shape, or it holds NaN or Inf.
    """
    found = context.statistic_of(source, kind)
    if tuple(found.shape) != tuple(shape):
        raise CandidateError(
            f"{context.tensor}: statistic {kind!r} of {source!r} has shape {tuple(found.shape)}, "
            f"expected {tuple(shape)}; collect it again from these very sources"
        )
    if not found.isfinite().all():
        raise CandidateError(
            f"{context.tensor}: statistic {kind!r} of {source!r} holds NaN or Inf; collect it "
            "again, in float32 and from items that the model can read"
        )
    return found


def alone(weights: Sequence[float]) -> dict[str, float | tuple[float, ...]] | None:
    """The plain points of a method whose weights are shares: the base, and multiples of one expert.

    With one weight above zero such a method is ``θ₀ + λ τⱼ``, whatever the statistics say.
    """
    used = [w for w in weights if w != 0]
    if not used:
        return {"scale": 0.0}
    if len(used) > 1 or not 0 < used[0] <= 2:
        return None
    return {"weight": tuple(float(w != 0) for w in weights), "scale": used[0]}
