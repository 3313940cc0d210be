"""Task vectors in a common basis: small square cores where the experts are LoRA adapters.

With ``τᵢ = Bᵢ Aᵢ``, ``[B₁ … B_N] = Q_B R_B`` and ``[A₁ᵀ … A_Nᵀ] = Q_A R_A`` (thin QR), every task
vector is ``τᵢ = Q_B Cᵢ Q_Aᵀ`` with a core ``Cᵢ`` of at most N·r rows and columns. Singular values,
inner products, Grams and sums of the cores are those of the task vectors, turned: a method that
uses nothing else may work on the cores and turn its result back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.methods.context import Context

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cores:
    """Task vectors in common coordinates.

    ``deltas``: float64, one an expert; ``shape``: (m, n) of the weight itself, from which published
    ranks are counted; ``expand`` turns a matrix in the coordinates of ``deltas`` into one of
    ``shape``.
    """

    deltas: list[torch.Tensor]
    shape: tuple[int, int]
    expand: Callable[[torch.Tensor], torch.Tensor]


def cores(base: torch.Tensor, experts: Sequence[torch.Tensor], context: Context) -> Cores:
    """The task vectors of a matrix: as cores if that is smaller, else as they are."""
    import torch

    m, n = base.shape
    factors = context.factors
    rank = sum(f.a.shape[0] for f in factors) if factors is not None else min(m, n)
    if factors is None or rank >= min(m, n):
        start = base.double()
        return Cores([e.double() - start for e in experts], (m, n), lambda merged: merged)
    left, r_left = torch.linalg.qr(torch.cat([f.b.double() for f in factors], dim=1))
    right, r_right = torch.linalg.qr(torch.cat([f.a.double() for f in factors]).T)
    small = []
    at = 0
    for f in factors:
        until = at + f.a.shape[0]
        small.append(r_left[:, at:until] @ r_right[:, at:until].T)
        at = until
    return Cores(small, (m, n), lambda merged: left @ merged @ right.T)
