"""Ways to descend on a quadratic loss: as functions of its eigenvalues, and Adam.

A response φ takes the eigenvalues of the curvature C (float64, ascending, not negative) to the
factors on ``D − M₀ C``, see ``quadratic``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evomerge.methods.optimised.truncation import count_with_ties
from evomerge.methods.spectral.decompositions import rank_of

if TYPE_CHECKING:
    import torch

Response = Callable[["torch.Tensor"], "torch.Tensor"]


def adam(
    gradient: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    iterations: int,
    rate: float,
) -> torch.Tensor:
    """M after that many steps of Adam (Kingma & Ba 2015, algorithm 1) with its usual constants."""
    import torch

    merged = start.clone()
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, iterations + 1):
        slope = gradient(merged)
        mean.mul_(0.9).add_(slope, alpha=0.1)
        square.mul_(0.999).addcmul_(slope, slope, value=0.001)
        spread = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
        merged.addcdiv_(mean, spread, value=-rate / (1 - 0.9**step))
    return merged


def flow(time: float) -> Response:
    """Gradient flow ``dM/dt = D − M C`` until ``time``: ``φ(λ) = (1 − e^{−λt}) / λ``.

    A gradient step of rate η is a time of 2η.
    """

    def response(values: torch.Tensor) -> torch.Tensor:
        import torch

        rising = -torch.expm1(-values * time)
        return torch.where(values > 0, rising / values.clamp(min=1e-300), time)

    return response


def heavy_ball(iterations: int, rate: float, momentum: float) -> Response:
    """Gradient steps with momentum: exactly what iterating would give, by its recurrence.

    ``Mₖ = M₀ + (D − M₀ C) pₖ(C)``, so that the gradient is ``−2 (D − M₀ C)(1 − C pₖ(C))`` and the
    step acts on the polynomial pₖ alone, eigenvalue by eigenvalue.
    """

    def response(values: torch.Tensor) -> torch.Tensor:
        import torch

        reached, velocity = torch.zeros_like(values), torch.zeros_like(values)
        for _ in range(iterations):
            velocity = velocity * momentum + 2 * (1 - values * reached)
            reached = reached + rate * velocity
        return reached

    return response


def minimum(shape: tuple[int, int]) -> Response:
    """Descent to its end, ``φ(λ) = 1/λ``; 0 where λ is but rounding (``rank_of`` its root)."""

    def response(values: torch.Tensor) -> torch.Tensor:
        import torch

        nothing = len(values) - rank_of(values.sqrt().flip(0), shape)
        return torch.cat([torch.zeros_like(values[:nothing]), 1 / values[nothing:]])

    return response


def of_largest(count: int, response: Response) -> Response:
    """``response`` for the ``count`` largest eigenvalues (and their equals), 0 for the others."""

    def largest(values: torch.Tensor) -> torch.Tensor:
        kept = count_with_ties(values.flip(0), max(1, count))
        out = response(values)
        out[: len(values) - kept] = 0
        return out

    return largest
