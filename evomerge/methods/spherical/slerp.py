"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.numerics import dot
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

_NEARLY_PARALLEL = 0.9995  # above this cosine sin Ω is too small to divide by: interpolate linearly


@register(
    "slerp",
    family="spherical",
    formula="θ = sin((1−t)Ω)/sin Ω · θₐ + sin(tΩ)/sin Ω · θ_b,  cos Ω = ⟨θₐ, θ_b⟩ / ‖θₐ‖‖θ_b‖",
    source="Shoemake 1985, Animating rotation with quaternion curves, section 3.3; variant: each "
    "tensor as one vector, lengths kept (not normalised), linear where |cos Ω| > 0.9995",
    cost="two passes",
    parameters=[Parameter("t", "0 gives the first model, 1 the second", 0.5, 0.0, 1.0)],
    plain=lambda weights: _ends(weights),
    exact=True,
    max_experts=2,
    ordered=True,
)
def slerp(
    base: torch.Tensor, experts: Sequence[torch.Tensor], context: Context, *, t: float
) -> torch.Tensor:
    """Walk along the arc from one model to another: two experts, or the base and one expert."""
    first, second = experts if len(experts) == 2 else (base, experts[0])
    return weighted_sum([first, second], arc_weights(t, cosine(first, second)))


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """The cosine between two tensors as vectors; 1 if one of them is zero."""
    return cosine_of(dot(first, first), dot(first, second), dot(second, second))


def cosine_of(first: float, both: float, second: float) -> float:
    """The cosine from ``⟨a, a⟩``, ``⟨a, b⟩`` and ``⟨b, b⟩``."""
    norms = math.sqrt(first) * math.sqrt(second)
    return both / norms if norms > 0 else 1.0


def arc_weights(t: float, cosine: float) -> list[float]:
    """The weights of the two ends at ``t`` on the arc between vectors of that cosine."""
    if abs(cosine) > _NEARLY_PARALLEL:
        return [1 - t, t]
    omega = math.acos(cosine)
    return [math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)]


def _ends(weights: tuple[float, ...]) -> dict[str, float | tuple[float, ...]] | None:
    """The two ends of the arc; with one expert it starts at the base."""
    arc = (1 - sum(weights), *weights) if len(weights) == 1 else weights
    return {"t": arc[1]} if arc in ((1.0, 0.0), (0.0, 1.0)) else None
