"""Fisher merging: each entry a mean of the experts, weighted by how much their task needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.numerics import dot
from evomerge.methods.registry import Parameter, register
from evomerge.methods.statistics.reading import alone, of_experts
from evomerge.methods.statistics.regmean import WEIGHT

if TYPE_CHECKING:
    import torch

FLOOR = Parameter(
    "floor",
    "added to every Fisher value, in root mean squares of the tensor's; large values give the "
    "plain mean. Search it on a logarithmic scale",
    1e-6,
    1e-8,
    10.0,
)
NORMALISE = Parameter(
    "normalise",
    "give every expert's Fisher values the same root mean square, so that none wins by confidence",
    1.0,
    0.0,
    1.0,
    switch=True,
)


@register(
    "fisher",
    family="statistics",
    formula="θ = θ₀ + λ Σ wᵢ Pᵢ τᵢ / Σ wᵢ Pᵢ,  Pᵢ = Fᵢ / rms(Fᵢ) + floor",
    source="Matena and Raffel 2022, Merging Models with Fisher-Weighted Averaging "
    "(arXiv 2111.09832): its closed form for diagonal Fisher; floor and norm after MergeLM's code",
    cost="one pass over experts and statistics",
    parameters=[WEIGHT, FLOOR, NORMALISE, SCALE],
    plain=alone,
    needs="gradients",
    shares=True,
    exact=True,
    statistics=("fisher",),
)
def fisher(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    floor: float,
    normalise: bool,
    scale: float,
) -> torch.Tensor:
    """The mean of the experts, entry by entry weighted by their diagonal Fisher information.

    ``fisher``: float32 of the tensor's shape an expert, the squared gradient of the log-likelihood,
    averaged over items. Variant: published code normalises by the norm over the whole model and
    adds 1e-6 as it is; here both refer to the root mean square in this tensor (without
    ``normalise`` to that over all experts), since squared gradients of large models are far below
    1e-6 and would all drown in it. Entries that nobody's task uses get the plain weighted mean.
    """
    values = of_experts(context, "fisher", base.shape)
    sizes = [math.sqrt(dot(f, f) / f.numel()) for f in values]
    if not normalise:
        sizes = [math.sqrt(math.fsum(s * s for s in sizes) / len(sizes))] * len(sizes)
    numerator = base.new_zeros(base.shape)
    denominator = base.new_zeros(base.shape)
    for i, (value, size, w) in enumerate(zip(values, sizes, weight, strict=True)):
        importance = (value / size if size > 0 else value) + floor
        importance *= w
        numerator += importance * (experts[i] - base)
        denominator += importance
    return base + numerator / denominator.masked_fill_(denominator == 0, 1.0) * scale
