"""The candidate that a live model holds, and what of it the next one can keep."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.bank.bank import Bank, Made
from evomerge.checkpoints.digest import tensor_digest
from evomerge.instantiate import Merge
from evomerge.recipe import Recipe
from evomerge.scoring.measures import WeightStats

if TYPE_CHECKING:
    import torch

    from evomerge.backends.base import Weights

    Given = Made | tuple[str, torch.Tensor]

Values = tuple[tuple[str, Any], ...] | None  # None: the tensor is only cast


@dataclass(frozen=True)
class _Tensor:
    """A tensor in the live model: the parameters it was made with, its digest and counts."""

    values: Values
    digest: Future[str]
    moved: int
    unchanged: int


class Model(Protocol):
    """What holds a candidate's weights: see `Backend`."""

    def load(self, weights: Weights, kept: Set[str] = frozenset()) -> None:
        """See `Backend.load`."""
        ...

    def destination(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """See `Backend.destination`."""
        ...


class Instances:
    """Puts candidates into a model.

    A tensor whose parameters are those of the candidate before is neither made nor copied nor
    hashed again. Digests are taken by threads of their own, also while the model already runs.

    ``block`` tells for each tensor the part of the model that can only be loaded whole. Where a
    tensor changes, all of its block is then handed over, in the order of the base's files. Such a
    model must be back at the base after a load that raised.
    """

    def __init__(self, bank: Bank, model: Model, block: Callable[[str], str] | None = None) -> None:
        self._bank, self._model, self._block = bank, model, block
        self._pool = ThreadPoolExecutor(bank.threads, "evomerge-digest")
        self._frame: Recipe | None = None
        self._held: dict[str, _Tensor] = {}
        self._loaded: Set[str] = frozenset()
        self._hashing: list[Future[str]] = []

    def load(self, recipe: Recipe) -> None:
        """Makes the live model that of the recipe.

        Raises:
            CandidateError: a merged weight is not finite.
        """
        wait(self._hashing)  # of memory that is written now
        self._hashing = []
        merge = self._bank.merge(recipe)
        frame = recipe.model_copy(update={"parameters": ()})
        if frame != self._frame:
            self._held, self._frame = {}, frame
        values = _values(merge)
        kept = {n for n, v in values.items() if n in self._held and self._held[n].values == v}
        stored: list[str] = []
        if self._block is not None:
            changed = (values.keys() | self._loaded) - kept
            given = whole_blocks(merge.sources.base.tensors, changed, self._block)
            kept.difference_update(given)
            stored = [name for name in given if name not in values]
        self._held = {name: tensor for name, tensor in self._held.items() if name in kept}
        try:
            self._model.load(self._given(merge, values, stored), frozenset(kept))
        except BaseException:
            self._held, self._loaded = {}, frozenset()
            raise
        self._loaded = values.keys()

    def merge(self, recipe: Recipe) -> Merge:
        """The recipe bound to the sources as they are held between candidates."""
        return self._bank.merge(recipe)

    def _given(
        self, merge: Merge, values: Mapping[str, Values], stored: Iterable[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What has to be made, and what of the base has to come with it."""
        base = merge.sources.base
        place = {name: at for at, name in enumerate(base.tensors)}
        names = [name for name in values if name not in self._held]
        new: Iterable[Given] = self._bank.make(merge, names, self._model.destination)
        old: Iterable[Given] = ((name, base.read(name)) for name in stored)
        for each in heapq.merge(new, old, key=lambda e: place[_name(e)]):
            if not isinstance(each, Made):
                yield each
                continue
            yield each.name, each.tensor
            digest = self._pool.submit(_digest, each)
            self._hashing.append(digest)
            moved = 0 if each.unchanged is None else each.tensor.numel()
            self._held[each.name] = _Tensor(values[each.name], digest, moved, each.unchanged or 0)

    def digests(self) -> dict[str, str]:
        """The digests of the tensors that are not as the base's files hold them."""
        return {name: tensor.digest.result() for name, tensor in self._held.items()}

    def counts(self) -> WeightStats:
        """How much of the live model was moved, and how much of that equals the base."""
        held = self._held.values()
        return WeightStats(sum(t.moved for t in held), sum(t.unchanged for t in held))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
        self._bank.close()


def whole_blocks(
    names: Iterable[str], changed: Collection[str], block: Callable[[str], str]
) -> list[str]:
    """Those of the names that share a block with one that has changed, in their order."""
    blocks = {block(name) for name in changed}
    return [name for name in names if block(name) in blocks]


def _name(given: Given) -> str:
    return given.name if isinstance(given, Made) else given[0]


def _digest(made: Made) -> str:
    return tensor_digest(made.tensor.to(made.dtype))


def _values(merge: Merge) -> dict[str, Values]:
    """The parameters of every tensor that is not as the base's files hold it."""
    by_group: dict[str, Values] = {}
    found: dict[str, Values] = {}
    for name in merge.sources.base.tensors:
        group = merge.group(name)
        if group is not None:
            if group.tensors not in by_group:
                by_group[group.tensors] = tuple(merge.values(group).items())
            found[name] = by_group[group.tensors]
        elif merge.casts(name):
            found[name] = None
    return found
