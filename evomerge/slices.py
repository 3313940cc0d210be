"""A tensor of a merge in slices, so that its memory grows neither with its size nor with experts.

Methods that work on each entry by itself are applied to one slice after the other; where they need
something of the whole task vector first (a threshold, an angle), a first pass over its slices finds
it. The operations are those of the method's own function, so the bits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from typing import TYPE_CHECKING

from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.sources import Expert
from evomerge.errors import CandidateError
from evomerge.instantiate import Merge
from evomerge.methods import Context, Method, get_method
from evomerge.slice_forms import FORMS, SLICE, Tensor, averaged

if TYPE_CHECKING:
    import torch


def in_slices(merge: Merge, name: str, kept: Sequence[Set[int]] | None = None) -> Tensor | None:
    """A moved tensor of the merge, by the base's name, if it can be merged in slices.

    ``kept`` has for each expert the numbers of the slices that are read of it; the others are
    taken to be the base's.
    """
    experts = tuple(merge.experts.values())
    group = merge.group(name)
    if group is None or merge.device != "cpu":
        return None
    full = [e for e in experts if isinstance(e, Expert) and isinstance(e.weights, Checkpoint)]
    if len(full) != len(experts):  # products of factors are not rounded slice by slice as whole
        return None
    method = get_method(merge.recipe.method)
    context, shape = merge.context(name), merge.sources.base.tensors[name].shape
    if method.name not in FORMS and not _averaged(method, context, shape):
        return None
    base = merge.sources.base

    def read(index: int) -> Callable[[int, int], torch.Tensor]:
        expert, wanted = full[index], None if kept is None else kept[index]

        def part(start: int, stop: int) -> torch.Tensor:
            there = wanted is None or start // SLICE in wanted
            return (expert if there else base).part(name, start, stop).float()

        return part

    return Tensor(
        math.prod(shape),
        lambda a, b: base.part(name, a, b).float(),
        [read(i) for i in range(len(full))],
        _same(full, name),
        method,
        context,
        merge.values(group),
    )


def merged(
    tensor: Tensor, seen: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
) -> Iterator[torch.Tensor]:
    """The merged tensor's slices, float32, one after the other.

    ``seen`` gets the number of each expert that differs from the base with its slices and the
    base's.
    """
    method = tensor.method
    form = FORMS.get(method.name, averaged)(tensor)
    for start, stop in tensor.bounds():
        base = tensor.base(start, stop)
        experts: list[torch.Tensor] = []
        for i, (read, first) in enumerate(zip(tensor.experts, tensor.same, strict=True)):
            if first < 0:
                experts.append(base)
            else:
                experts.append(read(start, stop) if first == i else experts[first])
                if seen is not None and first == i:
                    seen(i, experts[i], base)
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


def finite(name: str, method: str, before: torch.Tensor, after: torch.Tensor) -> None:
    """CandidateError if a slice is not finite, said as ``Merge.tensor`` says it."""
    from evomerge.checkpoints.digest import DTYPE_NAMES, raw_bytes
    from evomerge.checkpoints.scan import is_finite

    if is_finite(DTYPE_NAMES[after.dtype], raw_bytes(after).data):
        return
    if before.isfinite().all():
        raise CandidateError(f"the merged {name} has a value that is not finite in its dtype")
    raise CandidateError(f"{method}: the merged {name} has a value that is not finite")
