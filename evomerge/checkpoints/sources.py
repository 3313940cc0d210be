"""The base and its experts, opened together, checked against each other, read in one key space.

The key space is that of the base's files: `Expert.read("model.layers.0.mlp.up_proj.weight")` finds
the tensor under whatever name the expert's own file has for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from evomerge.checkpoints.adapter import Adapter, open_adapter
from evomerge.checkpoints.catalog import Contents
from evomerge.checkpoints.fit import (
    HEAD,
    adapter_mismatches,
    by_canonical,
    duplicates,
    embedding_of,
    full_mismatches,
    is_tied,
    same_values,
)
from evomerge.checkpoints.layout import canonical
from evomerge.checkpoints.open import Checkpoint, is_adapter, open_checkpoint, resolve
from evomerge.errors import CheckpointError, InputError
from evomerge.methods import Factors

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class Names(Set[str]):
    """Those of some names that pass a test, which is made when a name is first asked for."""

    def __init__(self, names: Iterable[str], test: Callable[[str], bool]) -> None:
        self._names = dict.fromkeys(names)
        self._test = test
        self._known: dict[str, bool] = {}

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or name not in self._names:
            return False
        if name not in self._known:
            self._known[name] = self._test(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Expert:
    """A fine-tune of the base.

    weights: the opened checkpoint or adapter; changed: the base's names of the tensors whose
    numbers differ from the base's; contents: its catalogue; notes: what others keep with it.
    """

    weights: Checkpoint | Adapter
    changed: Set[str]
    contents: Contents = field(repr=False, compare=False)
    _base: Checkpoint = field(repr=False)
    _names: Mapping[str, str] = field(repr=False)  # base's name -> name on disk, if full
    notes: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def reference(self) -> str:
        """What the user wrote."""
        return self.weights.reference

    @property
    def path(self) -> Path:
        """The expert's directory."""
        return self.weights.path

    @property
    def kind(self) -> Literal["full", "lora"]:
        """Whether it is a full checkpoint or a LoRA adapter."""
        return "full" if isinstance(self.weights, Checkpoint) else "lora"

    def read(self, name: str) -> torch.Tensor:
        """The expert's weight by the base's name: float32, the base's shape, the caller's own."""
        import torch

        found = self.whole(name)
        if found is not None:
            return found.to(torch.float32, copy=True)
        assert not isinstance(self.weights, Checkpoint)
        key = canonical(name)
        whole = self.weights.replaced.get(key)
        source = self._base.read(name) if whole is None else self.weights.read(whole)
        return source.to(torch.float32, copy=True).add_(self.weights.delta(key))

    def stored(self, name: str) -> list[str]:
        """The names on disk of what this expert holds for a tensor of the base."""
        if isinstance(self.weights, Checkpoint):
            return [self._names[name]] if name in self._names else []
        key = canonical(name)
        found = [self.weights.replaced[key]] if key in self.weights.replaced else []
        if key in self.weights.modules:
            found += [self.weights.modules[key].a, self.weights.modules[key].b]
        return found

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some elements of a full checkpoint's flattened weight, as stored: do not write into it.

        Each weight must be there by itself: see ``stored``.
        """
        assert isinstance(self.weights, Checkpoint)
        return self.weights.part(self._names[name], start, stop)

    def whole(self, name: str) -> torch.Tensor | None:
        """The weight as the expert's file holds it (or the base's, for one that it lacks).

        Memory-mapped and in whatever dtype: do not write into it. None if a LoRA makes it from
        factors.
        """
        if isinstance(self.weights, Checkpoint):
            at = self._names.get(name)
            return self._base.read(name) if at is None else self.weights.read(at)
        key = canonical(name)
        if key in self.weights.modules:
            return None
        whole = self.weights.replaced.get(key)
        return self._base.read(name) if whole is None else self.weights.read(whole)

    def factors(self, name: str) -> Factors | None:
        """The task vector of a matrix as a product of low rank, or None if it is none.

        A tensor that the expert leaves at base has factors of rank 0, also in a full checkpoint.
        """
        import torch

        shape = self._base.tensors[name].shape
        if len(shape) != 2:
            return None
        if name not in self.changed:
            return Factors(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
        if isinstance(self.weights, Checkpoint):
            return None
        key = canonical(name)
        if key not in self.weights.modules or key in self.weights.replaced:
            return None
        a, b, scaling = self.weights.factors(key)
        return Factors(b * scaling, a)


@dataclass(frozen=True)
class Sources:
    """What is merged.

    tied: of the base's names, each that is the same weight as another one; contents: the base's
    catalogue.
    """

    base: Checkpoint
    experts: Mapping[str, Expert]
    tied: Mapping[str, str]
    contents: Contents = field(repr=False, compare=False)

    def behind(self, name: str, experts: bool = True) -> Iterator[tuple[Contents, str]]:
        """The catalogues and names on disk of what the base, and the experts, hold for a tensor."""
        yield self.contents, name
        for expert in self.experts.values() if experts else ():
            for stored in expert.stored(name):
                yield expert.contents, stored

    def save(self) -> None:
        """Keeps on disk what the catalogues have learned."""
        for contents in (self.contents, *(each.contents for each in self.experts.values())):
            contents.save()

    def refuse_nonfinite(self, name: str | None = None, experts: bool = True) -> None:
        """CheckpointError that lists the tensors with NaN or Inf: of all, or behind one name.

        Without ``experts`` only the base is looked at.
        """
        owners: list[tuple[str, Checkpoint | Adapter, Contents, list[str]]] = [
            ("base", self.base, self.contents, list(self.base.tensors) if name is None else [name])
        ]
        for owner, expert in self.experts.items() if experts else ():
            stored = sorted(expert.weights.tensors) if name is None else expert.stored(name)
            owners.append((owner, expert.weights, expert.contents, stored))
        _raise_all(
            "weights hold NaN or Inf, expected finite numbers: download them again or leave them "
            "out",
            (
                f"{owner}: tensor {each!r} of {weights.tensors[each].file}"
                for owner, weights, contents, stored in owners
                for each in stored
                if not contents.is_finite(each)
            ),
        )


def open_sources(base: str, experts: Mapping[str, str], streaming: bool = False) -> Sources:
    """Open the base and the experts (name -> reference) and check that they fit.

    With streaming, no tensor is catalogued, compared with the base's or searched for NaN before it
    is asked about, and tensors are read into memory of their own instead of being mapped: for a
    single pass over all of them.

    Raises one CheckpointError that lists every mismatch of every expert; if there are none, one
    that lists every tensor with NaN or Inf.
    """
    if is_adapter(resolve(base)):
        raise CheckpointError(
            f"the base {base!r} is an adapter, expected a full checkpoint: "
            "give the model that it was trained on"
        )
    opened_base = open_checkpoint(base, streaming)
    problems = [f"base: {each}" for each in duplicates(opened_base)]
    opened: dict[str, Checkpoint | Adapter] = {}
    for name, reference in experts.items():
        try:
            opened[name] = _open(reference, streaming)
            problems += [f"{name}: {each}" for each in _mismatches(opened_base, opened[name])]
        except InputError as error:
            problems.append(f"{name}: {error}")
    _raise_all(
        f"the experts do not fit the base {base!r}, expected fine-tunes of it with the same "
        "tensors: correct the references or leave these experts out",
        problems,
    )
    contents = Contents(opened_base)
    found = {name: _expert(opened_base, contents, weights) for name, weights in opened.items()}
    sources = Sources(opened_base, found, _tied(opened_base, contents), contents)
    return sources if streaming else _settled(sources)


def _settled(sources: Sources) -> Sources:
    """The same with every tensor catalogued and compared."""
    for contents in (sources.contents, *(each.contents for each in sources.experts.values())):
        contents.whole()
    sources.refuse_nonfinite()
    experts = {
        name: replace(expert, changed=frozenset(expert.changed))
        for name, expert in sources.experts.items()
    }
    return replace(sources, experts=experts)


def _open(reference: str, streaming: bool) -> Checkpoint | Adapter:
    if is_adapter(resolve(reference)):
        return open_adapter(reference, streaming)
    return open_checkpoint(reference, streaming)


def _mismatches(base: Checkpoint, weights: Checkpoint | Adapter) -> list[str]:
    if isinstance(weights, Adapter):
        return list(adapter_mismatches(base, weights))
    return list(full_mismatches(base, weights))


def _raise_all(what: str, problems: Iterable[str]) -> None:
    if listed := "; ".join(problems):
        raise CheckpointError(f"{what}: {listed}")


def _expert(base: Checkpoint, base_contents: Contents, weights: Checkpoint | Adapter) -> Expert:
    wanted = by_canonical(base.tensors)
    contents = Contents(weights)

    def differs(name: str, stored: str) -> bool:
        if base.tensors[name].dtype == weights.tensors[stored].dtype:
            return base_contents.digest(name) != contents.digest(stored)
        return not same_values(base, name, weights, stored)

    if isinstance(weights, Adapter):

        def adapted(name: str) -> bool:
            key = canonical(name)
            replaced = weights.replaced.get(key)
            return (replaced is not None and differs(name, replaced)) or (
                key in weights.modules and not weights.is_idle(key)
            )

        keys = dict.fromkeys([*weights.replaced, *weights.modules])
        changed = Names((wanted[key] for key in keys), adapted)
        return Expert(weights, changed, contents, base, {})
    offered = by_canonical(weights.tensors)
    embedding = embedding_of(offered)
    if HEAD in wanted and HEAD not in offered and embedding is not None:
        offered[HEAD] = offered[embedding]
    names = {name: offered[key] for key, name in wanted.items() if key in offered}
    changed = Names(names, lambda name: differs(name, names[name]))
    return Expert(weights, changed, contents, base, names)


def _tied(base: Checkpoint, contents: Contents) -> dict[str, str]:
    """The output projection, if the base stores it although it is the embedding."""
    names = by_canonical(base.tensors)
    embedding = embedding_of(names)
    if HEAD not in names or embedding is None or not is_tied(base.config):
        return {}
    head, table = names[HEAD], names[embedding]
    return {head: table} if contents.digest(head) == contents.digest(table) else {}
