"""How methods merge one slice of a tensor after another: see ``slices``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.methods import Context, Method
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.masks import mask_key, random_keep, share
from evomerge.methods.registry import average
from evomerge.methods.spherical.slerp import arc_weights, cosine_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.float32]

SLICE = 1 << 17  # elements: those of all experts stay in the processor's cache
_ROW = 4096  # the rows of numerics.dot
_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment, see masks.random_keep
_SAMPLE = 1 << 14

Part = Callable[["torch.Tensor", list["torch.Tensor"], int], "torch.Tensor"]


@dataclass(frozen=True)
class Tensor:
    """One tensor to be merged.

    ``base`` and ``experts`` give the elements from start to stop of the flattened tensor, float32
    and not to be written into. ``same`` has for each expert the first one with the same weights,
    -1 if they are the base's.
    """

    count: int
    base: Callable[[int, int], torch.Tensor]
    experts: Sequence[Callable[[int, int], torch.Tensor]]
    same: Sequence[int]
    method: Method
    context: Context
    values: Mapping[str, Any]

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Start and stop of every slice."""
        for start in range(0, self.count, SLICE):
            yield start, min(start + SLICE, self.count)


def averaged(tensor: Tensor) -> Part:
    values, shares = tensor.values, tensor.method.shares
    return lambda base, experts, start: average(base, experts, values, shares)


def _plain(tensor: Tensor) -> Part:
    """A method that is the same for every entry."""
    function, context, values = tensor.method.function, tensor.context, tensor.values
    return lambda base, experts, start: function(base, experts, context, **values)


def _ties(tensor: Tensor) -> Part:
    scale = tensor.values["scale"]
    thresholds = _thresholds(tensor, tensor.values["density"])
    disjoint = _Disjoint(tensor.values["weight"], tensor.values["normalise"])

    def part(base: torch.Tensor, experts: list[torch.Tensor], start: int) -> torch.Tensor:
        terms = disjoint.rows(len(base))
        for term, expert, threshold in zip(terms, experts, thresholds, strict=True):
            _trimmed(base, expert, threshold, term)
        return disjoint.merged(terms).mul_(scale).add_(base)

    return part


def _trimmed(base: torch.Tensor, expert: torch.Tensor, threshold: float, out: torch.Tensor) -> None:
    import torch

    if threshold == math.inf or expert is base:
        out.zero_()
        return
    torch.sub(expert, base, out=out)
    if threshold > 0:  # hardshrink drops what it is given too, the trim keeps its threshold
        below = float(np.nextafter(np.float32(threshold), np.float32(0)))
        torch.ops.aten.hardshrink.out(out, below, out=out)


class _Disjoint:
    """``ties.disjoint_merge`` on slices, in memory that is used again.

    The bits are the same: a term agrees if it has the elected sign, so that its product with that
    sign, exactly ±1, is above 0; and zeros are only ever added to a sum that began at +0.
    """

    def __init__(self, weight: Sequence[float], normalise: bool) -> None:
        import torch

        self._weight, self._normalise = weight, normalise
        self._terms = torch.empty(len(weight), SLICE)
        self._sums = torch.empty(3, SLICE)

    def rows(self, count: int) -> list[torch.Tensor]:
        """Where the task vectors of a slice go."""
        return list(self._terms[:, :count])

    def merged(self, terms: list[torch.Tensor]) -> torch.Tensor:
        """Their disjoint merge, valid until the next slice."""
        import torch

        sums = self._sums[:, : len(terms[0])].zero_()
        elected, total, divisor = sums[0], sums[1], sums[2]
        for term, w in zip(terms, self._weight, strict=True):
            elected += term if w == 1 else term.mul_(w)
        sign = _sign(elected)
        for term, w in zip(terms, self._weight, strict=True):
            total += term.mul_(sign).clamp_min_(0)
            if self._normalise:
                term.sign_()
                divisor += term if abs(w) == 1 else term.mul_(abs(w))
        if self._normalise:  # where nobody agrees the total is 0, and may be divided by anything
            total /= divisor.clamp_min_(torch.finfo(torch.float32).smallest_normal * 2**-23)
        total *= sign
        return total


def _sign(elected: torch.Tensor) -> torch.Tensor:
    """1 where the election is not negative, else -1, in place; it never is -0."""
    import torch

    torch.copysign(torch.ones((), dtype=torch.float32), elected, out=elected)
    return elected


def _thresholds(tensor: Tensor, density: Sequence[float]) -> list[float]:
    """The least magnitude that each expert's trim keeps: 0 for all, infinite for none."""
    found: dict[tuple[int, int], float] = {}
    result = []
    for first, each in zip(tensor.same, density, strict=True):
        keep = share(each, tensor.count)
        key = (first, keep)
        if keep <= 0:
            result.append(math.inf)
        elif keep >= tensor.count or first < 0:
            result.append(0.0)
        else:
            if key not in found:
                found[key] = _kth_largest(tensor, first, keep)
            result.append(found[key])
    return result


def _kth_largest(tensor: Tensor, expert: int, keep: int) -> float:
    import torch

    magnitude = torch.empty(tensor.count)
    for start, stop in tensor.bounds():
        out = magnitude[start:stop]
        torch.sub(tensor.experts[expert](start, stop), tensor.base(start, stop), out=out)
        out.abs_()
    return float(selected(magnitude.numpy(), tensor.count - keep))


def selected(values: Array, rank: int) -> np.float32:
    """What stands at ``rank`` if the values are sorted, exactly, without ordering most of them.

    A sample says between which two values it lies; only those between are looked at again.
    """
    stride = values.size // _SAMPLE
    if stride < 4:
        return np.float32(np.partition(values, rank)[rank])
    sample = np.sort(values[::stride])
    share = rank / values.size
    at, margin = share * sample.size, 5 * math.sqrt(share * (1 - share) * sample.size) + 2
    first, last = math.floor(at - margin), math.ceil(at + margin)
    low = sample[first] if first >= 0 else np.float32(-math.inf)
    high = sample[last] if last < sample.size else np.float32(math.inf)
    parts = [values[start : start + SLICE] for start in range(0, values.size, SLICE)]
    below = sum(int(np.count_nonzero(part < low)) for part in parts)
    upto = sum(int(np.count_nonzero(part <= high)) for part in parts)
    if not below <= rank < upto or upto - below > values.size // 2:  # a sample that misleads
        return np.float32(np.partition(values, rank)[rank])
    if low == high:  # as differences of rounded weights often are
        return np.float32(low)
    inside = np.concatenate([part[(part >= low) & (part <= high)] for part in parts])
    return selected(inside, rank - below)


def _dropped(tensor: Tensor) -> Callable[[torch.Tensor, Sequence[torch.Tensor], int], Any]:
    """DARE's ``drop_and_rescale`` for a slice: the masks' states are counted on from its start."""
    density = tensor.values["density"]
    keys = [mask_key(tensor.context, expert) for expert in tensor.context.experts]

    def drop(base: torch.Tensor, experts: Sequence[torch.Tensor], start: int) -> list[torch.Tensor]:
        result = []
        for expert, d, key in zip(experts, density, keys, strict=True):
            delta = expert - base
            if d >= 1:
                result.append(delta)
            elif d <= 0:
                result.append(delta.new_zeros(delta.shape))
            else:
                mask = random_keep(delta.shape, d, (key + start * _GOLDEN) % 2**64)
                result.append(delta * mask * (1 / d))
        return result

    return drop


def _dare_linear(tensor: Tensor) -> Part:
    drop, scale = _dropped(tensor), tensor.values["scale"]
    weights = [scale * w for w in tensor.values["weight"]]
    return lambda base, experts, start: base + weighted_sum(drop(base, experts, start), weights)


def _dare_ties(tensor: Tensor) -> Part:
    scale, density = tensor.values["scale"], tensor.values["density"]
    disjoint = _Disjoint(tensor.values["weight"], tensor.values["normalise"])
    masks = [
        _Mask(d, mask_key(tensor.context, e))
        for d, e in zip(density, tensor.context.experts, strict=True)
    ]

    def part(base: torch.Tensor, experts: list[torch.Tensor], start: int) -> torch.Tensor:
        terms = disjoint.rows(len(base))
        for term, expert, mask in zip(terms, experts, masks, strict=True):
            _trimmed(base, expert, math.inf if mask.density <= 0 else 0.0, term)
            if 0 < mask.density < 1 and expert is not base:
                mask.apply(term.numpy(), start)
                term.mul_(1 / mask.density)
        return disjoint.merged(terms).mul_(scale).add_(base)

    return part


class _Mask:
    """``masks.random_keep`` of a flattened tensor, on slices, in memory that is used again."""

    def __init__(self, density: float, key: int) -> None:
        self.density, self._key = density, key
        kept = math.floor(density * 2**32) if 0 < density < 1 else 0
        self._limit = np.uint64(kept << 32)
        self._steps = np.arange(1, SLICE + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        self._states = np.empty((2, SLICE), np.uint64)
        self._keep = np.empty(SLICE, np.bool_)

    def apply(self, values: Array, start: int) -> None:
        """Puts 0 where the slice that begins at ``start`` is dropped (SplitMix64's output)."""
        z, shifted = self._states[:, : values.size]
        np.add(self._steps[: values.size], np.uint64((self._key + start * _GOLDEN) % 2**64), out=z)
        for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0)):
            np.right_shift(z, np.uint64(bits), out=shifted)
            np.bitwise_xor(z, shifted, out=z)
            if factor:
                np.multiply(z, np.uint64(factor), out=z)
        keep = np.less(z, self._limit, out=self._keep[: values.size])
        np.multiply(values, keep.view(np.uint8), out=values)


def _slerp(tensor: Tensor) -> Part:
    """The inner products in a first pass; their terms are added exactly, in whatever order."""
    import torch

    first, second = [tensor.base, *tensor.experts][-2:]
    sums: tuple[list[float], ...] = ([], [], [])
    memory = torch.empty(3, SLICE, dtype=torch.float64)
    for start, stop in tensor.bounds():
        one, two, product = memory[:, : stop - start]
        one.copy_(first(start, stop))
        two.copy_(second(start, stop))
        for found, a, b in zip(sums, (one, one, two), (one, two, two), strict=True):
            found += _row_sums(torch.mul(a, b, out=product))
    one_one, one_two, two_two = (math.fsum(each) for each in sums)
    weights = arc_weights(tensor.values["t"], cosine_of(one_one, one_two, two_two))
    return lambda base, experts, start: weighted_sum([base, *experts][-2:], weights)


def _row_sums(product: torch.Tensor) -> list[float]:
    """The terms of ``numerics.dot``, whose rows begin anew with each slice."""
    whole = product.numel() // _ROW * _ROW
    rows: list[float] = product[:whole].view(-1, _ROW).sum(dim=1).tolist()
    return rows + product[whole:].tolist()


FORMS: dict[str, Callable[[Tensor], Part]] = {
    "linear": _plain,
    "task_arithmetic": _plain,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "slerp": _slerp,
}
