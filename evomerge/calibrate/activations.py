"""Statistics of what flows into linear layers: Grams and mean magnitudes.

gram       G = Σ x xᵀ / T over all T inputs x of the layer, (n, n). Symmetric to the last bit. The
           product of one item is float32, the sum over items float64, the result float32.
magnitude  Σ |x| / T, (n,), summed in float64.

All tokens of an item count, those of the prompt and of the reference answer; in a vision tower the
patches of its images. RegMean (Jin et al. 2023, arXiv:2212.09849, section 3.2) takes the tokens of
the task's inputs likewise, and divides by their number, so that long items weigh more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from evomerge.calibrate.store import Draft
from evomerge.calibrate.subject import Example, Subject, passes
from evomerge.errors import CheckpointError

Step = Callable[[int, int], None]
"""Told how many passes over an item are done, and how many there will be."""

_ROWS: Final = 1024


class _Gram:
    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        self.total += rows.T @ rows
        self.count += len(rows)

    def mean(self) -> torch.Tensor:
        """The upper triangle is mirrored: a library's product need not be symmetric."""
        for start in range(0, len(self.total), _ROWS):
            block = self.total[start : start + _ROWS, start : start + _ROWS]
            block.copy_((block + block.T) / 2)
            right = self.total[start : start + _ROWS, start + _ROWS :]
            self.total[start + _ROWS :, start : start + _ROWS] = right.T
        return (self.total.div_(self.count)).float()

    @staticmethod
    def nbytes(width: int) -> int:
        return 8 * width * width


class _Magnitude:
    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        self.total += rows.double().abs().sum(dim=0)
        self.count += len(rows)

    def mean(self) -> torch.Tensor:
        return (self.total / self.count).float()

    @staticmethod
    def nbytes(width: int) -> int:
        return 8 * width


_SUMS: Final[Mapping[str, type[_Gram] | type[_Magnitude]]] = {
    "gram": _Gram,
    "magnitude": _Magnitude,
}


@dataclass(frozen=True)
class Wiring:
    """Which layers see the very same input. order: as they run; leader: the first of those."""

    order: tuple[str, ...]
    leader: Mapping[str, str]

    def followers(self, name: str) -> list[str]:
        """All layers with the input of this one, itself included."""
        return [n for n in self.order if self.leader[n] == name]


def trace(subject: Subject, examples: Iterable[Example], layers: Iterable[str]) -> Wiring:
    """The wiring, from as many items as it takes until every layer has run, else from all.

    The order is that of the item in which most of them run. Layers that run more than once in an
    item share with nobody.
    """
    wanted = set(layers)
    leader: dict[str, str] = {}
    again: set[str] = set()
    longest: list[str] = []
    for example in examples:
        order: list[str] = []
        last: list[Any] = [None]

        def see(name: str, x: torch.Tensor, order: list[str] = order, last: Any = last) -> None:
            if name in order:
                again.add(name)
            leader.setdefault(name, leader[order[-1]] if last[0] is x else name)
            order.append(name)
            last[0] = x

        with watched(subject, wanted, see):
            subject.run(example)
        longest = max(longest, list(dict.fromkeys(order)), key=len)
        if len(leader) == len(wanted):
            break
    alone = again | {name for name in leader if leader[name] in again}
    return Wiring(
        tuple(dict.fromkeys([*longest, *leader])),
        {name: name if name in alone else first for name, first in leader.items()},
    )


@contextmanager
def watched(
    subject: Subject, layers: Iterable[str], see: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Calls `see` with the name and the input of each of these layers whenever it runs."""

    def hook(name: str) -> Callable[..., None]:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(name, args[0] if args else kwargs["input"])

        return before

    handles = [
        subject.linears[name].register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect(
    subject: Subject,
    kind: str,
    examples: Sequence[Example],
    wiring: Wiring,
    draft: Draft,
    memory: int,
    step: Step,
) -> None:
    """Collects a kind for the layers of `wiring` from the model as it is, whatever it holds.

    Layers go in passes over all items, so that a pass's accumulators fit into `memory` bytes. Each
    pass is recorded before the next one begins, and what is recorded is not collected again.
    """
    sums = _SUMS[kind]
    found = draft.collection.tensors
    widths = {
        name: subject.linears[name].in_features
        for name in wiring.order
        if wiring.leader[name] == name and not all(n in found for n in wiring.followers(name))
    }
    groups = passes({name: sums.nbytes(width) for name, width in widths.items()}, memory)
    for index, group in enumerate(groups):
        totals = {name: sums(widths[name], subject.model.device) for name in group}
        with watched(subject, group, lambda name, x, totals=totals: totals[name].add(x)):  # type: ignore[misc]
            for done, example in enumerate(examples, start=index * len(examples) + 1):
                subject.run(example)
                step(done, len(groups) * len(examples))
        written: dict[str, str] = {}
        while totals:
            name, total = totals.popitem()
            sha = draft.store.write(checked(total.mean(), name))
            written |= dict.fromkeys(wiring.followers(name), sha)
        draft.record(written)


def checked(statistic: torch.Tensor, name: str) -> torch.Tensor:
    """The statistic, if it is finite."""
    if not statistic.isfinite().all():
        raise CheckpointError(
            f"a statistic of {name} has a value that is not finite: the model overflows in this "
            "dtype, or is broken; set the backend's dtype to float32"
        )
    return statistic
