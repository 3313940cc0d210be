"""Merges that are a weighted sum whose weights follow from the vectors' inner products alone.

Angles and lengths are all that the methods on arcs look at. So one Gram matrix says with which
coefficients the vectors are added, and LoRA experts can be merged as small cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from evomerge.errors import CandidateError
from evomerge.methods.context import Context
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import task_vectors
from evomerge.methods.lowrank import cores
from evomerge.methods.masks import rows
from evomerge.methods.numerics import dot
from evomerge.methods.registry import Parameter

if TYPE_CHECKING:
    import torch

Coefficients = Callable[["torch.Tensor"], "torch.Tensor"]
"""From inner products, float64 (N, N, R), to the coefficients of the N vectors, float64 (N, R).

R counts the rows that are merged apart from each other; it is 1 for a tensor as one vector.
"""

TASK_VECTORS = Parameter(
    "task_vectors",
    "work on the task vectors (angles seen from the base) instead of the experts' weights",
    0.0,
    0.0,
    1.0,
    switch=True,
)
_CHUNK = 1 << 20  # entries multiplied at a time: bounds the float64 temporaries to 8 MiB each


def combine(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    coefficients: Coefficients,
    *,
    scale: float,
    deltas: bool,
    by_row: bool = False,
) -> torch.Tensor:
    """``θ₀ + λ (θ' − θ₀)``, ``θ' = Σ cᵢ θᵢ`` or with ``deltas`` ``θ₀ + Σ cᵢ τᵢ``; float32.

    At scale 1 the sum of whole weights is returned as it is: a single coefficient of 1 gives that
    expert bit for bit. A LoRA expert's task vector is never formed unless ``by_row``.
    """
    if scale == 0:
        return base.clone()
    if not deltas:
        merged = _sum(list(experts), coefficients, by_row)
        return merged if scale == 1 else base + (merged - base) * scale
    if context.factors is not None and base.ndim == 2 and not by_row:
        common = cores(base, experts, context)
        merged = common.expand(_sum(common.deltas, coefficients, by_row)).float()
    else:
        merged = _sum(task_vectors(base, experts), coefficients, by_row)
    return base + merged * scale


def shares(weight: Sequence[float], method: str, context: Context) -> list[float]:
    """The weights over their sum, in float64.

    Raises:
        CandidateError: they sum to zero.
    """
    total = sum(weight)
    if total == 0:
        raise CandidateError(
            f"{method}: the weights of {context.tensor} sum to 0; at least one must be above 0"
        )
    return [w / total for w in weight]


def cosines(gram: torch.Tensor) -> torch.Tensor:
    """(N, N, R): cosines of the angles, exactly 1 of a vector with itself, 0 with a zero vector."""
    import torch

    lengths = norms(gram)
    products = lengths[:, None] * lengths[None]
    cosine = (gram / torch.where(products > 0, products, 1.0)).clamp(-1, 1)
    own = torch.eye(len(gram), dtype=torch.bool)[:, :, None]
    return torch.where(own, (lengths > 0).double()[None], cosine)


def norms(gram: torch.Tensor) -> torch.Tensor:
    """(N, R): the vectors' lengths."""
    return gram.diagonal().T.sqrt()


def _sum(vectors: Sequence[torch.Tensor], coefficients: Coefficients, by_row: bool) -> torch.Tensor:
    """``Σ cᵢ xᵢ`` in the vectors' own dtype."""
    if not by_row:
        return weighted_sum(vectors, coefficients(_gram(vectors))[:, 0].tolist())
    matrices = [rows(v) for v in vectors]
    merged = matrices[0].new_zeros(matrices[0].shape)
    for matrix, factor in zip(matrices, coefficients(_gram_of_rows(matrices)), strict=True):
        merged += matrix * factor.to(matrix)[:, None]
    return merged.reshape(vectors[0].shape)


def _gram(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    gram = torch.empty(len(vectors), len(vectors), 1, dtype=torch.float64)
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors[: i + 1]):
            gram[i, j] = gram[j, i] = dot(a, b)
    return gram


def _gram_of_rows(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    count, width = matrices[0].shape
    gram = torch.empty(len(matrices), len(matrices), count, dtype=torch.float64)
    step = max(1, _CHUNK // max(width, 1))
    for i, a in enumerate(matrices):
        for j, b in enumerate(matrices[: i + 1]):
            for at in range(0, count, step):
                part = (a[at : at + step].double() * b[at : at + step].double()).sum(dim=1)
                gram[i, j, at : at + step] = gram[j, i, at : at + step] = part.cpu()
    return gram
