"""Which entries of a task vector are kept: by magnitude, or at random by a counter-based hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.methods.context import Context

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 22  # elements hashed at a time: bounds the int64 temporaries to 32 MiB each


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """``delta`` with all but its ``density`` share of largest magnitudes set to zero.

    The threshold is the k-th largest magnitude of this tensor, k = ``round(density * n)`` (half
    up); entries equal to it are all kept, so ties may keep more than k. Density 1 keeps everything
    and density 0 nothing.
    """
    count = delta.numel()
    keep = share(density, count)
    if keep >= count:
        return delta
    if keep <= 0:
        return delta.new_zeros(delta.shape)
    magnitude = delta.abs()
    return delta * (magnitude >= kth_largest(magnitude, keep))


def share(density: float, count: int) -> int:
    """``density * count`` as a whole number of entries, half up."""
    return math.floor(density * count + 0.5)


def kth_largest(values: torch.Tensor, k: int) -> float:
    """The k-th largest of all entries, exactly (a selection, so no device can differ)."""
    rank = values.numel() - k
    if values.device.type == "cpu":  # numpy's introselect is an order of magnitude faster here
        return float(np.partition(values.flatten().numpy(), rank)[rank])
    return float(values.flatten().kthvalue(rank + 1).values)


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a matrix with one row an output: 2-D as it is, 1-D as one row."""
    return tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def row_ranks(magnitude: torch.Tensor) -> torch.Tensor:
    """The rank of each entry in its row (see ``rows``), int32 of the same shape.

    0 is the smallest; of equal entries the one further left has the lower rank.
    """
    import torch

    matrix = rows(magnitude)
    count, length = matrix.shape
    ranks = torch.empty(count, length, dtype=torch.int32, device=matrix.device)
    ascending = torch.arange(length, dtype=torch.int32, device=matrix.device)
    step = max(_CHUNK // max(length, 1), 1)
    for start in range(0, count, step):
        order = matrix[start : start + step].argsort(dim=1, stable=True)
        ranks[start : start + step].scatter_(1, order, ascending.expand(order.shape))
    return ranks.reshape(magnitude.shape)


def random_keep(
    shape: Sequence[int], density: float | torch.Tensor, key: int, device: str = "cpu"
) -> torch.Tensor:
    """A boolean mask of ``shape`` that keeps each element with probability ``density``.

    ``density`` is one number, or a tensor of ``shape`` with each element's own probability.
    Element ``i`` (row-major) is kept if the upper 32 bits of SplitMix64's output for state
    ``key + (i + 1) * 0x9E3779B97F4A7C15`` (Steele et al. 2014, figure 17) are below
    ``density * 2**32``. So a mask depends on nothing but its key and the index, not on a device, a
    worker or an order of work, and a mask of lower density is a subset of one of higher density.
    """
    import torch

    each = None if isinstance(density, (int, float)) else density.flatten()
    limit: int | torch.Tensor = 0 if each is not None else math.floor(density * 2**32)
    mask = torch.empty(math.prod(shape), dtype=torch.bool, device=device)
    for start in range(0, mask.numel(), _CHUNK):
        stop = min(start + _CHUNK, mask.numel())
        if each is not None:
            limit = (each[start:stop].double() * 2**32).floor().long()
        mask[start:stop] = _splitmix64_high(start, stop, key, device) < limit
    return mask.reshape(tuple(shape))


def _splitmix64_high(start: int, stop: int, key: int, device: str) -> torch.Tensor:
    import torch

    z = torch.arange(start + 1, stop + 1, dtype=torch.int64, device=device)
    z = z * _signed(0x9E3779B97F4A7C15) + _signed(key)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return _shift(z ^ _shift(z, 31), 32)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned ``value``."""
    return (value & (2**64 - 1)) - (2**64 if value & 2**63 else 0)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift (torch shifts int64 arithmetically)."""
    low_bits: int = 2 ** (64 - bits) - 1
    return (z >> bits) & low_bits


def mask_key(context: Context, expert: str) -> int:
    """The 64-bit key of the mask of one expert's task vector in one tensor."""
    text = f"{context.seed}\x00{context.tensor}\x00{expert}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def pack(mask: torch.Tensor) -> torch.Tensor:
    """A boolean mask as bits, uint8: row-major, the first element in the highest bit."""
    import torch

    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpack(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The boolean mask of ``shape`` that ``pack`` made into ``bits``."""
    import torch

    unpacked = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(unpacked.astype(bool)).reshape(tuple(shape))
