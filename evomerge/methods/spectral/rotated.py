"""Selections of entries in rotated coordinates, where equal and zero entries are so up to rounding.

A trim by magnitude or an election of signs is a choice between entries. In the coordinates of the
weights, entries that are equal are equal to the last bit; after a rotation their last bits are
accidents. What is chosen here does not depend on those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.masks import kth_largest, share

if TYPE_CHECKING:
    import torch

_NOISE = 2.0**-23  # of the longest column: twice the rounding of float32 weights
_EQUAL = 1e-9  # relative: magnitudes that are no further apart are equal
_CANCELLED = 1e-12  # of the terms' magnitudes: a sum that is no larger is zero


def without_noise(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with zeros for entries that are zero up to rounding, float64.

    Else they would vote, and count as one of those who agree: where experts move different
    directions, disjoint means would be divided by all experts instead of by the one who moves it.
    """
    return matrix * (matrix.abs() > _NOISE * matrix.norm(dim=0).max()) if matrix.numel() else matrix


def trim(matrix: torch.Tensor, density: float, least: int = 0) -> torch.Tensor:
    """The ``density`` share of entries of largest magnitude, the rest zero, float64.

    As ``masks.trim``, but entries equal to the smallest kept one up to rounding are kept too, and
    at least ``least`` entries.
    """
    count = matrix.numel()
    keep = max(share(density, count), least)
    if keep >= count:
        return matrix
    if keep <= 0:
        return matrix.new_zeros(matrix.shape)
    magnitude = matrix.abs()
    return matrix * (magnitude >= kth_largest(magnitude, keep) * (1 - _EQUAL))


def disjoint_mean(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean, entry by entry, of what has the sign of the sum; zero where the sum is zero."""
    import torch

    stacked = torch.stack(list(matrices))
    total = stacked.sum(dim=0)
    total *= total.abs() > _CANCELLED * stacked.abs().sum(dim=0)
    agrees = stacked.sign() == total.sign()  # where the sum is zero, only zeros do
    return (stacked * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
