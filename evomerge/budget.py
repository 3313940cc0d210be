"""A bound on what a merge reads of its experts, and what it costs to keep it.

The slices with the largest task vectors for their bytes are read; of the others an expert is taken
to be the base. The norms must be known: every streamed merge keeps those that it sees, and
``measure`` takes the rest in a pass over the sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.headers import ITEM_BYTES
from evomerge.checkpoints.norms import Norms
from evomerge.checkpoints.sources import Expert
from evomerge.errors import ConfigError
from evomerge.slice_forms import FORMS, SLICE, Tensor
from evomerge.slices import in_slices

if TYPE_CHECKING:
    import torch

    from evomerge.instantiate import Merge


@dataclass(frozen=True)
class Choice:
    """What is read: for each tensor the numbers of each expert's slices, and what that leaves out.

    left_out, whole: the norm of the part of each expert's task vector that is not read, and of all
    of it.
    """

    limit: int
    read: int
    available: int
    kept: Mapping[str, Sequence[Set[int]]]
    left_out: Mapping[str, float]
    whole: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """As it is written beside the merged model."""
        return {
            "limit_bytes": self.limit,
            "read_bytes": self.read,
            "available_bytes": self.available,
            "left_out_norm": dict(self.left_out),
            "task_vector_norm": dict(self.whole),
        }


def parse(text: str) -> int | float:
    """Bytes (500000000, 500MB, 2GiB) or a share (0.25, 25%).

    Raises:
        ConfigError: it is neither.
    """
    units: dict[str, float] = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "%": 0.01}
    plain = text.strip().upper()
    unit = next((u for u in units if plain.endswith(u)), "")
    try:
        number = float(plain.removesuffix(unit))
    except ValueError:
        number = math.nan
    share = unit == "%" or (not unit and number <= 1 and "." in plain)
    if not math.isfinite(number) or number < 0 or (share and unit == "%" and number > 100):
        raise ConfigError(
            f"--io-budget {text!r}: expected bytes such as 2GB or 500000000, or a share such as "
            f"0.25 or 25%"
        )
    return number * units.get(unit, 1) if share else round(number * units.get(unit, 1))


def choose(merge: Merge, budget: int | float) -> Choice:
    """The slices to read; ``budget`` is in bytes, or a share of what all experts would take.

    Raises:
        ConfigError: a norm is not known, or the recipe cannot be merged in slices.
    """
    slices: list[tuple[float, int, str, int, int]] = []  # value for its bytes, bytes, where
    kept: dict[str, list[set[int]]] = {}
    whole = dict.fromkeys(merge.experts, 0.0)
    for name, tensor in _tensors(merge):
        kept[name] = [set() for _ in tensor.same]
        for i, (label, expert) in enumerate(_experts(merge)):
            if tensor.same[i] < 0:
                continue
            norms = _known(merge, name, expert)
            whole[label] += math.fsum(n * n for n in norms)
            if tensor.same[i] != i:
                continue
            (stored,) = expert.stored(name)
            item, shared = ITEM_BYTES[expert.weights.tensors[stored].dtype], tensor.same.count(i)
            for number, norm in enumerate(norms):
                size = item * min(SLICE, tensor.count - number * SLICE)
                slices.append((shared * norm * norm / size, size, name, i, number))
    available = sum(size for _, size, *_ in slices)
    limit = round(budget * available) if isinstance(budget, float) else budget
    read = 0
    for _, size, name, i, number in sorted(slices, key=lambda each: (-each[0], each[2:])):
        if read + size <= limit:
            read += size
            kept[name][i].add(number)
    return _chosen(merge, limit, read, available, kept, whole)


def _chosen(
    merge: Merge,
    limit: int,
    read: int,
    available: int,
    kept: dict[str, list[set[int]]],
    whole: dict[str, float],
) -> Choice:
    missing = dict.fromkeys(merge.experts, 0.0)
    for name, tensor in _tensors(merge):
        for i, (label, expert) in enumerate(_experts(merge)):
            if (first := tensor.same[i]) >= 0:
                kept[name][i] = kept[name][first]
                norms = _known(merge, name, expert)
                missing[label] += math.fsum(
                    n * n for number, n in enumerate(norms) if number not in kept[name][i]
                )
    return Choice(
        limit,
        read,
        available,
        kept,
        {label: math.sqrt(each) for label, each in missing.items()},
        {label: math.sqrt(each) for label, each in whole.items()},
    )


def measure(merge: Merge) -> int:
    """Takes the norms not known yet, in a pass over the sources; of how many tensors."""
    taken = 0
    for name, tensor in _tensors(merge):
        seen = Seen(merge, name)
        if not seen.wanted:
            continue
        taken += 1
        for start, stop in tensor.bounds():
            base = tensor.base(start, stop)
            for i in seen.wanted:
                seen(i, tensor.experts[i](start, stop), base)
        seen.keep()
    for _, expert in _experts(merge):
        norms_of(expert).save()
    merge.sources.save()
    return taken


class Seen:
    """Collects the norms of one tensor's slices as they pass by."""

    def __init__(self, merge: Merge, name: str) -> None:
        self._merge, self._name = merge, name
        self._norms: dict[int, list[float]] = {
            i: []
            for i, (_, expert) in enumerate(_experts(merge))
            if name in expert.changed and _find(merge, name, expert) is None
        }

    @property
    def wanted(self) -> list[int]:
        """The numbers of the experts whose norms are not known."""
        return list(self._norms)

    def __call__(self, i: int, expert: torch.Tensor, base: torch.Tensor) -> None:
        if i in self._norms:
            delta = expert - base
            self._norms[i].append(math.sqrt(max(float(delta.dot(delta)), 0.0)))

    def keep(self) -> None:
        """Keeps them, once all slices were seen."""
        experts = [expert for _, expert in _experts(self._merge)]
        own = {i: experts[i].contents.digest(*experts[i].stored(self._name)) for i in self._norms}
        found = {own[i]: norms for i, norms in self._norms.items() if norms}
        base = self._merge.sources.contents.digest(self._name)
        for i, digest in own.items():  # of experts of equal content only one was seen
            if digest in found:
                norms_of(experts[i]).learn(base, digest, found[digest])


def norms_of(expert: Expert) -> Norms:
    """What is known of an expert; one object an expert."""
    found: Norms | None = expert.notes.get("norms")
    if found is None:
        found = expert.notes["norms"] = Norms(expert.path, SLICE)
    return found


def _tensors(merge: Merge) -> Iterator[tuple[str, Tensor]]:
    for name in merge.sources.base.tensors:
        owner = merge.sources.tied.get(name, name)
        if owner != name or merge.group(name) is None:
            continue
        tensor = in_slices(merge, name)
        if tensor is None or merge.recipe.method not in FORMS:
            raise ConfigError(
                f"an I/O budget is for full checkpoints and the methods {', '.join(FORMS)}; leave "
                f"--io-budget out"
            )
        yield name, tensor


def _experts(merge: Merge) -> list[tuple[str, Expert]]:
    return [(name, e) for name, e in merge.experts.items() if isinstance(e, Expert)]


def _find(merge: Merge, name: str, expert: Expert) -> list[float] | None:
    (stored,) = expert.stored(name)
    base, own = merge.sources.contents.digest(name), expert.contents.digest(stored)
    return norms_of(expert).find(base, own)


def _known(merge: Merge, name: str, expert: Expert) -> list[float]:
    found = _find(merge, name, expert)
    if found is None:
        raise ConfigError(
            f"the norms of {expert.reference} are not known: run `evomerge plan --measure` first"
        )
    return found
