"""NuSLERP: the arc between two experts, by their weights, of whole tensors or row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import WEIGHT
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.registry import Parameter, register
from evomerge.methods.spherical.gram import TASK_VECTORS, combine, cosines, norms, shares

if TYPE_CHECKING:
    import torch

Point = dict[str, float | tuple[float, ...]]

_PARALLEL = 1e-8  # sines below it: the arc is a straight line
_OPPOSITE = -0.9995  # cosines below it: sin Ω is too small to divide vectors of unequal length by


def one_expert(weights: tuple[float, ...]) -> Point | None:
    """The points of a method that averages by shares: the base, and each expert alone."""
    if not any(weights):
        return {"scale": 0.0}
    return (
        {"weight": weights, "scale": 1.0} if sorted(weights)[-2:] in ([1.0], [0.0, 1.0]) else None
    )


@register(
    "nuslerp",
    family="spherical",
    formula="θ = θ₀ + λ (sin((1−t)Ω)/sin Ω · θ₁ + sin(tΩ)/sin Ω · θ₂ − θ₀),  t = w₂ / (w₁ + w₂),  "
    "cos Ω = ⟨θ₁, θ₂⟩ / ‖θ₁‖‖θ₂‖",
    source="mergekit, method nuslerp; Shoemake 1985, section 3.3. Variant: linear where the "
    "vectors point the same way (sin Ω < 1e-8) or nearly opposite ways (cos Ω < −0.9995), or one "
    "is zero",
    cost="two passes",
    parameters=[
        WEIGHT,
        SCALE,
        TASK_VECTORS,
        Parameter(
            "row_wise",
            "an arc of its own for each output row of a matrix",
            0.0,
            0.0,
            1.0,
            switch=True,
        ),
    ],
    plain=one_expert,
    shares=True,
    min_experts=2,
    max_experts=2,
)
def nuslerp(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    scale: float,
    task_vectors: bool,
    row_wise: bool,
) -> torch.Tensor:
    """Walk along the arc between two experts, as far as their weights say.

    ``task_vectors`` walks from one task vector to the other (mergekit: a ``base_model``).
    ``row_wise`` takes each index of the first dimension as a vector of its own, in PyTorch's layout
    an output of a linear layer (mergekit: ``nuslerp_flatten: false`` with
    ``nuslerp_row_wise: false``; its ``nuslerp_row_wise: true`` takes the columns).

    Published codes take t = ½ where the weights sum to 0; here they are refused, as in ``linear``.
    A weight of 0 gives the other expert, bit for bit unless ``task_vectors``.

    Raises:
        CandidateError: the weights sum to zero.
    """
    if scale == 0:
        return base.clone()
    _, t = shares(weight, "nuslerp", context)
    return combine(
        base,
        experts,
        context,
        lambda gram: arc(gram, t),
        scale=scale,
        deltas=task_vectors,
        by_row=row_wise,
    )


def arc(gram: torch.Tensor, t: float) -> torch.Tensor:
    """(2, R): the coefficients of two vectors, t of the way from the first to the second."""
    import torch

    cosine = cosines(gram)[0, 1]
    omega = cosine.acos()
    sine = omega.sin()
    straight = (sine < _PARALLEL) | (cosine < _OPPOSITE) | (norms(gram) == 0).any(dim=0)
    divisor = torch.where(straight, 1.0, sine)
    return torch.stack(
        [torch.where(straight, share, (share * omega).sin() / divisor) for share in (1 - t, t)]
    )
