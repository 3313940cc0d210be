"""A tensor of a merge in slices, so that its memory grows neither with its size nor with experts.

Methods that work on each entry by itself are applied to one slice after the other; where they need
something of the whole task vector first (a threshold, an angle), a first pass over its slices finds
it. The operations are those of the method's own function, so the bits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.sources import Expert
from evomerge.errors import CandidateError
from evomerge.instantiate import Merge
from evomerge.methods import Context, Method, get_method
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.ties import disjoint_merge
from evomerge.methods.masks import mask_key, random_keep, share
from evomerge.methods.registry import average
from evomerge.methods.spherical.slerp import _NEARLY_PARALLEL

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


def in_slices(merge: Merge, name: str) -> Tensor | None:
    """A moved tensor of the merge, by the base's name, if it can be merged in slices."""
    experts = tuple(merge.experts.values())
    group = merge.group(name)
    if group is None or merge.device != "cpu":
        return None
    full = [e for e in experts if isinstance(e, Expert) and isinstance(e.weights, Checkpoint)]
    if len(full) != len(experts):  # products of factors are not rounded slice by slice as whole
        return None
    method = get_method(merge.recipe.method)
    context, shape = merge.context(name), merge.sources.base.tensors[name].shape
    if method.name not in _FORMS and not _averaged(method, context, shape):
        return None
    base = merge.sources.base
    same = _same(full, name)
    read = [(lambda a, b, e=e: e.part(name, a, b).float()) for e in full]
    return Tensor(
        math.prod(shape),
        lambda a, b: base.part(name, a, b).float(),
        read,
        same,
        method,
        context,
        merge.values(group),
    )


def merged(tensor: Tensor) -> Iterator[torch.Tensor]:
    """The merged tensor's slices, float32, one after the other."""
    method = tensor.method
    if method.name in _FORMS:
        form = _FORMS[method.name](tensor)
    else:
        form = _average(tensor)
    for start, stop in tensor.bounds():
        base = tensor.base(start, stop)
        experts: list[torch.Tensor] = []
        for i, (read, first) in enumerate(zip(tensor.experts, tensor.same, strict=True)):
            if first < 0:
                experts.append(base)
            else:
                experts.append(read(start, stop) if first == i else experts[first])
        yield form(base, experts, start)


def _same(experts: Sequence[Expert], name: str) -> list[int]:
    """Which experts have weights of equal content, so that they are read once."""
    found: dict[tuple[str, str], int] = {}
    same = []
    for i, expert in enumerate(experts):
        if name not in expert.changed:
            same.append(-1)
            continue
        (stored,) = expert.stored(name)
        key = (expert.weights.tensors[stored].dtype, expert.contents.digest(stored))
        same.append(found.setdefault(key, i))
    return same


def _averaged(method: Method, context: Context, shape: tuple[int, ...]) -> bool:
    """Whether the policy for what a formula does not fit decides, see ``Method.merge``."""
    return (method.matrices and not context.is_matrix(shape)) or not context.has(
        method.statistics, method.base_statistics
    )


def _average(tensor: Tensor) -> Part:
    values, shares = tensor.values, tensor.method.shares
    return lambda base, experts, start: average(base, experts, values, shares)


def _plain(tensor: Tensor) -> Part:
    """A method that is the same for every entry."""
    function, context, values = tensor.method.function, tensor.context, tensor.values
    return lambda base, experts, start: function(base, experts, context, **values)


def _ties(tensor: Tensor) -> Part:
    weight, density = tensor.values["weight"], tensor.values["density"]
    scale, normalise = tensor.values["scale"], tensor.values["normalise"]
    thresholds = _thresholds(tensor, density)

    def part(base: torch.Tensor, experts: list[torch.Tensor], start: int) -> torch.Tensor:
        trimmed = [_above(e - base, t) for e, t in zip(experts, thresholds, strict=True)]
        return base + disjoint_merge(trimmed, weight, normalise) * scale

    return part


def _above(delta: torch.Tensor, threshold: float) -> torch.Tensor:
    if threshold == 0:
        return delta
    if threshold == math.inf:
        return delta.new_zeros(delta.shape)
    return delta * (delta.abs() >= threshold)


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
    magnitude: Array = np.empty(tensor.count, np.float32)
    for start, stop in tensor.bounds():
        delta = tensor.experts[expert](start, stop) - tensor.base(start, stop)
        np.abs(delta.numpy(), out=magnitude[start:stop])
    return float(selected(magnitude, tensor.count - keep))


def selected(values: Array, rank: int) -> np.float32:
    """What stands at ``rank`` if the values are sorted, exactly, and in one pass over most of them.

    A sample says between which two values it lies; only what lies there is ordered.
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
    below = 0
    between: list[Array] = []
    for start in range(0, values.size, SLICE):
        part = values[start : start + SLICE]
        above = part >= low
        below += part.size - np.count_nonzero(above)
        between.append(part[above & (part <= high)])
    inside = np.concatenate(between)
    if not below <= rank < below + inside.size:  # the values are ordered in a way that misled
        return np.float32(np.partition(values, rank)[rank])
    if low == high:
        return np.float32(low)
    return np.float32(np.partition(inside, rank - below)[rank - below])


def _dropped(tensor: Tensor) -> Callable[[torch.Tensor, Sequence[torch.Tensor], int], Any]:
    """DARE's ``drop_and_rescale`` for a slice: the masks' states are counted on from its start."""
    density = tensor.values["density"]
    keys = [mask_key(tensor.context, expert) for expert in tensor.context.experts]

    def drop(
        base: torch.Tensor, experts: Sequence[torch.Tensor], start: int
    ) -> list[torch.Tensor]:
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
    drop, weight = _dropped(tensor), tensor.values["weight"]
    scale, normalise = tensor.values["scale"], tensor.values["normalise"]

    def part(base: torch.Tensor, experts: list[torch.Tensor], start: int) -> torch.Tensor:
        return base + disjoint_merge(drop(base, experts, start), weight, normalise) * scale

    return part


def _slerp(tensor: Tensor) -> Part:
    """The inner products in a first pass; their terms are added exactly, in whatever order."""
    sums: dict[tuple[int, int], list[float]] = {(0, 0): [], (0, 1): [], (1, 1): []}
    for start, stop in tensor.bounds():
        base = tensor.base(start, stop)
        ends = [base, *(read(start, stop) for read in tensor.experts)][-2:]
        for (i, j), found in sums.items():
            found += _row_sums(ends[i], ends[j])
    one, both, two = (math.fsum(each) for each in sums.values())
    weights = arc(one, both, two, tensor.values["t"])
    return lambda base, experts, start: weighted_sum([base, *experts][-2:], weights)


def _row_sums(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """The terms of ``numerics.dot``, whose rows begin anew with each slice."""
    product = a.double() * b.double()
    whole = product.numel() // _ROW * _ROW
    rows: list[float] = product[:whole].view(-1, _ROW).sum(dim=1).tolist()
    return rows + product[whole:].tolist()


def arc(one: float, both: float, two: float, t: float) -> list[float]:
    """The weights of slerp's two ends, from their inner products."""
    norms = math.sqrt(one) * math.sqrt(two)
    cosine = both / norms if norms > 0 else 1.0
    if abs(cosine) > _NEARLY_PARALLEL:
        return [1 - t, t]
    omega = math.acos(cosine)
    return [math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)]


_FORMS: dict[str, Callable[[Tensor], Part]] = {
    "linear": _plain,
    "task_arithmetic": _plain,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "slerp": _slerp,
}


def finite(name: str, method: str, before: torch.Tensor, after: torch.Tensor) -> None:
    """CandidateError if a slice is not finite, said as ``Merge.tensor`` says it."""
    from evomerge.checkpoints.digest import DTYPE_NAMES, raw_bytes
    from evomerge.checkpoints.scan import is_finite

    if is_finite(DTYPE_NAMES[after.dtype], raw_bytes(after).data):
        return
    if before.isfinite().all():
        raise CandidateError(f"the merged {name} has a value that is not finite in its dtype")
    raise CandidateError(f"{method}: the merged {name} has a value that is not finite")
