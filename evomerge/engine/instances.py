"""The candidate that a live model holds, and what of it the next one can keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.backends.base import Backend
from evomerge.bank.bank import Bank, Made
from evomerge.checkpoints.digest import tensor_digest
from evomerge.instantiate import Merge
from evomerge.recipe import Recipe
from evomerge.scoring.measures import WeightStats

if TYPE_CHECKING:
    import torch

Values = tuple[tuple[str, Any], ...] | None  # None: the tensor is only cast


@dataclass(frozen=True)
class _Tensor:
    """A tensor in the live model: the parameters it was made with, its digest and counts."""

    values: Values
    digest: Future[str]
    moved: int
    unchanged: int


class Instances:
    """Puts candidates into a backend's model.

    A tensor whose parameters are those of the candidate before is neither made nor copied nor
    hashed again. Digests are taken by threads of their own, also while the model already runs.
    """

    def __init__(self, bank: Bank, backend: Backend) -> None:
        self._bank, self._backend = bank, backend
        self._pool = ThreadPoolExecutor(bank.threads, "evomerge-digest")
        self._frame: Recipe | None = None
        self._held: dict[str, _Tensor] = {}
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
        self._held = {name: tensor for name, tensor in self._held.items() if name in kept}
        try:
            self._backend.load(self._new(merge, values), frozenset(kept))
        except BaseException:
            self._held = {}
            raise

    def _new(
        self, merge: Merge, values: Mapping[str, Values]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        names = [name for name in values if name not in self._held]
        for made in self._bank.make(merge, names, self._backend.destination):
            yield made.name, made.tensor
            digest = self._pool.submit(_digest, made)
            self._hashing.append(digest)
            moved = 0 if made.unchanged is None else made.tensor.numel()
            self._held[made.name] = _Tensor(values[made.name], digest, moved, made.unchanged or 0)

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
