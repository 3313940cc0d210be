"""SWUDI and ASWUDI: WUDI's descent as a filter on the spectrum of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.optimised.descent import Response, flow, minimum, of_largest
from evomerge.methods.optimised.wudi import WEIGHT, at_rest, descended, one_alone
from evomerge.methods.registry import Parameter, register
from evomerge.methods.spectral.decompositions import rank_of

if TYPE_CHECKING:
    import torch

TIME = Parameter(
    "t", "how long the gradient flow runs; a gradient step of rate η is a time of 2η", 300, 0, 2000
)
SHARE = Parameter(
    "share", "share of the n eigendirections in which the flow moves, K/n", 0.65, 0.01, 1.0
)
START = Parameter(
    "start",
    "c of the starting point c Σ wᵢ τᵢ: 1 is the sum of the task vectors, 1/N their mean",
    1.0,
    0.0,
    1.0,
)


@register(
    "swudi",
    family="optimised",
    formula="θ = θ₀ + λ (M₀ + (D − M₀ C) V diag(hₖ/λₖ) Vᵀ), hₖ = 1[k ≤ K] (1 − e^{−λₖ t}), C and D "
    "of WUDI, M₀ = c Σ wᵢ τᵢ",
    source="SWUDI (arXiv 2606.07289), its published code; knobs that are neutral by default are "
    "left out",
    cost="one eigendecomposition (n × n) a matrix",
    parameters=[WEIGHT, SCALE, TIME, SHARE, START],
    matrices=True,
    plain=lambda weights: at_rest(weights, start=1.0),
)
def swudi(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    scale: float,
    t: float,
    share: float,
    start: float,
) -> torch.Tensor:
    """WUDI's loss descended for a time t, in its K = ⌈share · n⌉ steepest directions only.

    Defaults are those for full fine-tunes of CLIP. The published code also lists, for language
    models, share 0.85, for InternVL scale 0.1, and for LoRA experts of Qwen2-VL t = 1300, share
    0.01, scale 0.2. Variant: eigenvalues are not raised to a floor of 1e-8; the filter has its
    limit t at 0 instead.
    """
    kept = math.ceil(share * base.shape[1] - 1e-9)  # not one more for the rounding of a product
    response = of_largest(kept, flow(t))
    return descended(base, experts, context, weight, scale, start, response)


@register(
    "aswudi",
    family="optimised",
    formula="θ = θ₀ + λ (M₀ + (D − M₀ C) V diag(1[k ≤ K]/λₖ) Vᵀ), K = ⌈(Σ √λₖ)² / Σ λₖ⌉, C and D "
    "of WUDI, M₀ = c Σ wᵢ τᵢ",
    source="ASWUDI (arXiv 2606.07289), its published code with the default rule "
    "`participation_sqrt`",
    cost="one eigendecomposition (n × n) a matrix",
    parameters=[WEIGHT, SCALE, START],
    matrices=True,
    plain=lambda weights: one_alone(weights, start=1.0),
)
def aswudi(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    scale: float,
    start: float,
) -> torch.Tensor:
    """The minimum of WUDI's loss in as many directions as its spectrum effectively has.

    K is the participation ratio of the roots of the eigenvalues. Variant: eigenvalues within
    rounding of zero are left out of it, where the published code raises them to 1e-8. The published
    runs on vision-language models scale the result by about 1/N (0.2 and 0.1).
    """
    m, n = base.shape
    return descended(base, experts, context, weight, scale, start, participating((m, n)))


def participating(shape: tuple[int, int]) -> Response:
    """``φ(λ) = 1/λ`` for the largest eigenvalues, as many as take part in the spectrum."""

    def response(values: torch.Tensor) -> torch.Tensor:
        roots = values.sqrt().flip(0)
        roots = roots[: rank_of(roots, shape)]
        ratio = float(roots.sum()) ** 2 / float((roots**2).sum())
        return of_largest(math.ceil(ratio - 1e-9), minimum(shape))(values)

    return response
