"""Order statistics of task vectors: the k-th largest magnitude by look-up, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.methods.masks import share


@dataclass(frozen=True)
class Ranks:
    """The magnitudes of a task vector in ascending order.

    The difference of two bfloat16 tensors takes few distinct values: then ``magnitudes`` holds each
    once and ``ends`` how many entries are not above it (8 bytes a distinct value). Otherwise
    ``magnitudes`` holds every entry and ``ends`` is None (4 bytes an entry).
    """

    count: int
    magnitudes: npt.NDArray[np.float32]
    ends: npt.NDArray[np.unsignedinteger[Any]] | None

    @classmethod
    def of(cls, delta: npt.NDArray[np.float32]) -> Ranks:
        """The ranks of a task vector, float32; it may be overwritten."""
        values = np.abs(delta, out=delta).reshape(-1)
        values.sort()
        # the end of each run of equal values
        ends = np.flatnonzero(values[1:] != values[:-1]) + 1
        if 2 * (len(ends) + 1) >= values.size:
            return cls(values.size, values, None)
        kind = np.uint32 if values.size < 2**32 else np.uint64
        return cls(
            values.size, values[np.append(ends - 1, -1)], np.append(ends, values.size).astype(kind)
        )

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.magnitudes.nbytes + (0 if self.ends is None else self.ends.nbytes)

    def threshold(self, density: float) -> float:
        """The smallest magnitude that ``masks.trim`` keeps: 0 if it keeps all, inf if nothing.

        Entries equal to it are all kept, so ties keep more than the density's share.
        """
        keep = share(density, self.count)
        if keep >= self.count:
            return 0.0
        if keep <= 0:
            return float("inf")
        rank = self.count - keep
        if self.ends is None:
            return float(self.magnitudes[rank])
        wanted = self.ends.dtype.type(rank)  # of another type, the whole array would be converted
        return float(self.magnitudes[self.ends.searchsorted(wanted, side="right")])
