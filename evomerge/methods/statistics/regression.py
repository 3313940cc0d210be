"""Least squares over the inputs of a linear layer, from the Grams of those inputs.

Weights are (m, n) = (out, in), as they are stored; the papers' equations are for the transpose.
With Grams ``Gᵢ = E[x xᵀ]``, (n, n), the weights that stay nearest to every expert's outputs solve
``W Σ Gᵢ = Σ Wᵢ Gᵢ``. It is solved for task vectors, ``W = θ₀ + T``: the same where ``Σ Gᵢ`` has
full rank, and more exact in float32 files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.methods.context import Context

if TYPE_CHECKING:
    import torch

_FLOAT32_EPS = 2.0**-23


@dataclass(frozen=True)
class Sided:
    """Task vectors ``τᵢ = left @ deltas[i] @ right.T``, float64; None stands for the identity."""

    deltas: list[torch.Tensor]
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None

    def expand(self, core: torch.Tensor) -> torch.Tensor:
        """A matrix in the coordinates of ``deltas`` as one of the weight's shape."""
        core = core if self.left is None else self.left @ core
        return core if self.right is None else core @ self.right.T


def by_rows(base: torch.Tensor, experts: Sequence[torch.Tensor], context: Context) -> Sided:
    """Task vectors with fewer rows where the experts are LoRA adapters; inputs stay as they are.

    ``[B₁ … B_N] = Q R`` gives ``τᵢ = Q (Rᵢ Aᵢ)`` with N·r rows: whatever multiplies task vectors
    from the right may multiply those.
    """
    import torch

    factors = context.factors
    if factors is None or sum(f.a.shape[0] for f in factors) >= base.shape[0]:
        return _dense(base, experts)
    left, mixed = torch.linalg.qr(torch.cat([f.b.double() for f in factors], dim=1))
    ranks = [f.a.shape[0] for f in factors]
    parts = mixed.split(ranks, dim=1)
    return Sided([r @ f.a.double() for r, f in zip(parts, factors, strict=True)], left=left)


def by_columns(base: torch.Tensor, experts: Sequence[torch.Tensor], context: Context) -> Sided:
    """Task vectors with fewer columns where the experts are LoRA adapters (see ``by_rows``)."""
    import torch

    factors = context.factors
    if factors is None or sum(f.a.shape[0] for f in factors) >= base.shape[1]:
        return _dense(base, experts)
    right, mixed = torch.linalg.qr(torch.cat([f.a.double() for f in factors]).T)
    ranks = [f.a.shape[0] for f in factors]
    parts = mixed.split(ranks, dim=1)
    return Sided([f.b.double() @ r.T for r, f in zip(parts, factors, strict=True)], right=right)


def _dense(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> Sided:
    start = base.double()
    return Sided([expert.double() - start for expert in experts])


def combine(terms: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """``Σ wᵢ Xᵢ`` in float64, in the order given."""
    total = terms[0].double() * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total += term.double() * weight
    return total


def normal(
    deltas: Iterable[torch.Tensor], grams: Iterable[torch.Tensor], weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``Σ wᵢ τᵢ Gᵢ`` and ``Σ wᵢ Gᵢ`` in float64, with one Gram at a time in that precision."""
    products, total = None, None
    for delta, gram, weight in zip(deltas, grams, weights, strict=True):
        wide = gram.double() * weight
        product = delta @ wide
        products = product if products is None else products.add_(product)
        total = wide if total is None else total.add_(wide)
    assert products is not None
    assert total is not None
    return products, total


def noise(gram: torch.Tensor) -> float:
    """Eigenvalues up to this are rounding: Grams come in float32, accumulated and then stored.

    Rounding each entry moves an eigenvalue by at most ``2⁻²⁴ ‖G‖_F``; twenty times that leaves room
    for the accumulation.
    """
    return 10 * _FLOAT32_EPS * float(gram.norm())


def divide(numerator: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """``numerator @ gram⁺``, float64: the pseudo-inverse where eigenvalues are rounding noise.

    Cholesky of ``gram − noise`` succeeds just where all eigenvalues are above the noise; a second
    one then solves, at a small part of the cost of the eigenvectors that are needed otherwise.
    """
    import torch

    floor = noise(gram)
    _, failed = torch.linalg.cholesky_ex(gram - floor * _identity(gram))
    if floor > 0 and not int(failed):
        factor = torch.linalg.cholesky(gram)
        solved: torch.Tensor = torch.cholesky_solve(numerator.T, factor).T
        return solved
    values, vectors = torch.linalg.eigh(gram)
    first = int((values <= floor).sum())  # they come in ascending order
    values, vectors = values[first:], vectors[:, first:]
    found: torch.Tensor = numerator @ vectors / values @ vectors.T
    return found


def _identity(gram: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
