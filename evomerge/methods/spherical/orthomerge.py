"""OrthoMerge: rotations of the base averaged in their Lie algebra, what is no rotation added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.registry import Parameter, register
from evomerge.methods.spectral.decompositions import svd

if TYPE_CHECKING:
    import torch

_ZERO = 1e-12  # of the largest singular value, in float64: below, no direction is determined
_HALF_TURN = 1e-10  # 1 + cos of an angle: below, a turn of 180 degrees up to rounding
_SAME = 1e-9  # cosines that differ by less are equal
_CANCELLED = 1e-5  # of the sum of norms: what float32 weights leave of generators that cancel

WEIGHT = Parameter(
    "weight", "factor on each expert's rotation and residual", 1.0, 0.0, 1.5, per_expert=True
)
RESIDUAL = Parameter("residual", "factor on the sum of what is no rotation", 0.2, 0.0, 1.0)
SCALE = Parameter("scale", "factor on the merged rotation's generator and residual", 1.0, 0.0, 2.0)
_FORMULA = (
    "θ = θ₀ C(λ A) + λ ρ Σ wᵢ (θᵢ − θ₀ C(Aᵢ)),  C(A) = (I − A)⁻¹ (I + A),  C(Aᵢ) = argmin_R "
    "‖θ₀ R − {target}‖,  A = (Σ wᵢ‖Aᵢ‖ / N) Σ wᵢ Aᵢ / ‖Σ wᵢ Aᵢ‖"
)
_SOURCE = (
    "Yang et al. 2026, Orthogonal model merging (arXiv 2602.05943), orthogonal-residual decoupling "
)
_VARIANT = (
    "residuals merged by task arithmetic; variant: of several best rotations the one nearest to I, "
    "reflected directions left to the residual"
)
_COST = "N SVDs and eigendecompositions and N + 1 solves of n × n (m + N·rank for a wide LoRA)"


@register(
    "orthomerge",
    family="spherical",
    formula=_FORMULA.format(target="θᵢ"),
    source=_SOURCE + "('G' in its code), " + _VARIANT,
    cost=_COST,
    parameters=[WEIGHT, RESIDUAL, SCALE],
    matrices=True,
)
def orthomerge(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    residual: float,
    scale: float,
) -> torch.Tensor:
    """Rotate the base by the magnitude-corrected mean of the experts' rotations, add residuals.

    Each expert's rotation (n, n) acts from the right and is the orthogonal Procrustes solution. The
    published factor on the summed residuals is 0.2. The paper has no weights: here they multiply
    the generators Aᵢ and the residuals, so that no decomposition depends on them. A generator grows
    with the tangent of half its angles, so a base with nearly no weight in some directions gets
    large ones there that mean little.
    """
    rows = _coordinates(base, experts, context)
    return _merge(base, rows, rows.deltas, weight, residual, scale)


@register(
    "orthomerge_conflict",
    family="spherical",
    formula=_FORMULA.format(target="θ̃ᵢ") + ",  row r of θ̃ᵢ: that of θᵢ if cos(τᵢᵣ, mean τᵣ) < t, "
    "else that of θ₀",
    source=_SOURCE + "with conflict-aware targets ('C' in its code), " + _VARIANT,
    cost=_COST,
    parameters=[
        WEIGHT,
        RESIDUAL,
        SCALE,
        Parameter(
            "threshold",
            "rows whose cosine with the mean task vector is below it take part in the rotation",
            0.0,
            -1.0,
            1.0,
        ),
    ],
    matrices=True,
)
def orthomerge_conflict(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    residual: float,
    scale: float,
    threshold: float,
) -> torch.Tensor:
    """OrthoMerge whose rotations follow only the rows that conflict with the mean task vector.

    The rows that do not conflict are left to the residual. The mean is the plain one, whatever the
    weights; a row of zeros has cosine 0.
    """
    rows = _coordinates(base, experts, context)
    targets = _conflicting(rows.deltas, threshold)
    return _merge(base, rows, targets, weight, residual, scale)


def orthomerge_skew(skews: Sequence[torch.Tensor], weight: Sequence[float]) -> torch.Tensor:
    """The mean of skew matrices, float64 (..., d, d), with the mean of their norms.

    ``(Σ |wᵢ| ‖Qᵢ‖ / N) · Σ wᵢ Qᵢ / ‖Σ wᵢ Qᵢ‖`` with Frobenius norms over all dimensions. OFT
    adapters hold such matrices, one a block of columns: stacked, they are merged by this alone.
    Matrices that cancel, up to the rounding of float32 weights, give zeros: their direction would
    be noise at full length.
    """
    import torch

    total = torch.zeros_like(skews[0])
    norms = 0.0
    for skew, w in zip(skews, weight, strict=True):
        total += w * skew
        norms += abs(w) * float(torch.linalg.vector_norm(skew))
    norm = float(torch.linalg.vector_norm(total))
    if norm <= _CANCELLED * norms:
        return torch.zeros_like(total)
    return total * (norms / len(skews) / norm)


@dataclass(frozen=True)
class _Rows:
    """The base and the task vectors, float64 (m, p), in coordinates of a space of rows.

    ``basis`` (n, p) holds the coordinates' axes; None if they are the n columns themselves.
    """

    base: torch.Tensor
    deltas: list[torch.Tensor]
    basis: torch.Tensor | None


def _coordinates(base: torch.Tensor, experts: Sequence[torch.Tensor], context: Context) -> _Rows:
    """Everything in a basis of the space that the rows of the base and of the experts span.

    Rotations nearest to I leave the rest of the n dimensions alone. The space has at most
    m (N + 1) dimensions, for LoRA experts m + N·r: a gain for wide matrices. Elsewhere the
    rotation is n × n, however low the rank of the task vectors.
    """
    import torch

    start = base.double().contiguous()
    factors = context.factors
    if factors is None:
        spans = [expert.double().contiguous() - start for expert in experts]
    else:
        spans = [f.a.double() for f in factors]
    basis = None
    stacked = torch.cat([start, *spans])
    if stacked.shape[0] < stacked.shape[1]:
        basis, _ = torch.linalg.qr(stacked.T)
        start, spans = start @ basis, [span @ basis for span in spans]
    if factors is not None:
        spans = [f.b.double() @ span for f, span in zip(factors, spans, strict=True)]
    return _Rows(start, spans, basis)


def _conflicting(deltas: Sequence[torch.Tensor], threshold: float) -> list[torch.Tensor]:
    """Each task vector without the rows that agree with the mean task vector."""
    import torch

    mean = torch.stack(list(deltas)).mean(dim=0)
    result = []
    for delta in deltas:
        norms = delta.norm(dim=1) * mean.norm(dim=1)
        cosines = (delta * mean).sum(dim=1) / norms.masked_fill(norms == 0, 1.0)
        result.append(delta * (cosines < threshold - _SAME).unsqueeze(1))
    return result


def _merge(
    base: torch.Tensor,
    rows: _Rows,
    targets: Sequence[torch.Tensor],
    weight: tuple[float, ...],
    residual: float,
    scale: float,
) -> torch.Tensor:
    """``targets``: the task vectors, or parts of them, that the rotations follow."""
    import torch

    gram = rows.base.T @ rows.base
    skews = []
    left_over = torch.zeros_like(rows.base)
    for delta, target, w in zip(rows.deltas, targets, weight, strict=True):
        skew = torch.zeros_like(gram)
        if target.any():
            skew = _procrustes_skew(gram + rows.base.T @ target)
        left_over += w * (delta - _turn(rows.base, skew))
        skews.append(skew)
    moved = _turn(rows.base, scale * orthomerge_skew(skews, weight))
    moved += scale * residual * left_over
    if rows.basis is not None:
        moved = moved @ rows.basis.T
    return (base.double() + moved).float()


def _turn(matrix: torch.Tensor, skew: torch.Tensor) -> torch.Tensor:
    """``matrix @ R − matrix`` with ``R = (I − A)⁻¹ (I + A)``, so R − I = 2 A (I − A)⁻¹."""
    import torch

    identity = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
    turned: torch.Tensor = torch.linalg.solve(identity - skew, 2 * matrix @ skew, left=False)
    return turned


def _procrustes_skew(product: torch.Tensor) -> torch.Tensor:
    """The Cayley transform A of the orthogonal R that maximises ``trace(Rᵀ product)``, float64.

    - Where singular values are zero, many R do; this is the one nearest to I (the published code
      takes whatever vectors LAPACK returns there).
    - A has no finite value in a direction that R turns by 180 degrees, as every reflection does
      (the published code solves the singular system all the same). It is zero there: that
      direction is not turned, and the expert's residual, which is taken from A, holds the rest.
    """
    import torch

    u, s, vh = svd(product)
    rank = int((s > _ZERO * s[0]).sum())
    if rank < len(s):
        p, _, qh = torch.linalg.svd(u[:, rank:].T @ vh[rank:].T)
        vh = torch.cat([vh[:rank], p @ qh @ vh[rank:]])
    rotation = u @ vh
    cosines, vectors = torch.linalg.eigh((rotation + rotation.T) / 2)
    closed = 1 + cosines <= _HALF_TURN
    inverse = (1 / (1 + cosines)).masked_fill(closed, 0.0)
    skew: torch.Tensor = (rotation - rotation.T) / 2 @ (vectors * inverse) @ vectors.T
    return (skew - skew.T) / 2
