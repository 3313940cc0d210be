"""The base and its experts, opened together, checked against each other, read in one key space.

The key space is that of the base's files: `Expert.read("model.layers.0.mlp.up_proj.weight")` finds
the tensor under whatever name the expert's own file has for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from evomerge.checkpoints.adapter import Adapter, open_adapter
from evomerge.checkpoints.catalog import Catalog, catalog
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


@dataclass(frozen=True)
class Expert:
    """A fine-tune of the base.

    weights: the opened checkpoint or adapter; changed: the base's names of the tensors whose
    numbers differ from the base's.
    """

    weights: Checkpoint | Adapter
    changed: frozenset[str]
    _base: Checkpoint = field(repr=False)
    _names: Mapping[str, str] = field(repr=False)  # base's name -> name on disk, if full

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

        if isinstance(self.weights, Checkpoint):
            stored = self._names.get(name)
            source = self._base.read(name) if stored is None else self.weights.read(stored)
            return source.to(torch.float32, copy=True)
        key = canonical(name)
        whole = self.weights.replaced.get(key)
        source = self._base.read(name) if whole is None else self.weights.read(whole)
        start = source.to(torch.float32, copy=True)
        return start.add_(self.weights.delta(key)) if key in self.weights.modules else start


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
    """What is merged. tied: of the base's names, each that is the same weight as another one."""

    base: Checkpoint
    experts: Mapping[str, Expert]
    tied: Mapping[str, str]


def open_sources(base: str, experts: Mapping[str, str]) -> Sources:
    """Open the base and the experts (name -> reference) and check that they fit.

    Raises one CheckpointError that lists every mismatch of every expert; if there are none, one
    that lists every tensor with NaN or Inf.
    """
    if is_adapter(resolve(base)):
        raise CheckpointError(
            f"the base {base!r} is an adapter, expected a full checkpoint: "
            "give the model that it was trained on"
        )
    opened_base = open_checkpoint(base)
    problems = [f"base: {each}" for each in duplicates(opened_base)]
    opened: dict[str, Checkpoint | Adapter] = {}
    for name, reference in experts.items():
        try:
            opened[name] = _open(reference)
            problems += [f"{name}: {each}" for each in _mismatches(opened_base, opened[name])]
        except InputError as error:
            problems.append(f"{name}: {error}")
    _raise_all(
        f"the experts do not fit the base {base!r}, expected fine-tunes of it with the same "
        "tensors: correct the references or leave these experts out",
        problems,
    )
    catalogs = {name: catalog(weights) for name, weights in opened.items()}
    base_catalog = catalog(opened_base)
    _refuse_nonfinite(opened_base, base_catalog, opened, catalogs)
    return Sources(
        opened_base,
        {
            name: _expert(opened_base, base_catalog, weights, catalogs[name])
            for name, weights in opened.items()
        },
        _tied(opened_base, base_catalog),
    )


def _open(reference: str) -> Checkpoint | Adapter:
    return open_adapter(reference) if is_adapter(resolve(reference)) else open_checkpoint(reference)


def _mismatches(base: Checkpoint, weights: Checkpoint | Adapter) -> list[str]:
    if isinstance(weights, Adapter):
        return list(adapter_mismatches(base, weights))
    return list(full_mismatches(base, weights))


def _raise_all(what: str, problems: Iterable[str]) -> None:
    if listed := "; ".join(problems):
        raise CheckpointError(f"{what}: {listed}")


def _refuse_nonfinite(
    base: Checkpoint,
    base_catalog: Catalog,
    opened: Mapping[str, Checkpoint | Adapter],
    catalogs: Mapping[str, Catalog],
) -> None:
    owners: list[tuple[str, Checkpoint | Adapter, Catalog]] = [
        ("base", base, base_catalog),
        *((name, weights, catalogs[name]) for name, weights in opened.items()),
    ]
    _raise_all(
        "weights hold NaN or Inf, expected finite numbers: download them again or leave them out",
        (
            f"{owner}: tensor {name!r} of {weights.tensors[name].file}"
            for owner, weights, contents in owners
            for name in sorted(contents.nonfinite)
        ),
    )


def _expert(
    base: Checkpoint, base_catalog: Catalog, weights: Checkpoint | Adapter, contents: Catalog
) -> Expert:
    wanted = by_canonical(base.tensors)

    def differs(name: str, stored: str) -> bool:
        if base.tensors[name].dtype == weights.tensors[stored].dtype:
            return base_catalog.digests[name] != contents.digests[stored]
        return not same_values(base, name, weights, stored)

    if isinstance(weights, Adapter):
        keys = {key for key, stored in weights.replaced.items() if differs(wanted[key], stored)}
        keys |= {key for key in weights.modules if not weights.is_idle(key)}
        return Expert(weights, frozenset(wanted[key] for key in keys), base, {})
    offered = by_canonical(weights.tensors)
    embedding = embedding_of(offered)
    if HEAD in wanted and HEAD not in offered and embedding is not None:
        offered[HEAD] = offered[embedding]
    names = {name: offered[key] for key, name in wanted.items() if key in offered}
    changed = frozenset(name for name, stored in names.items() if differs(name, stored))
    return Expert(weights, changed, base, names)


def _tied(base: Checkpoint, contents: Catalog) -> dict[str, str]:
    """The output projection, if the base stores it although it is the embedding."""
    names = by_canonical(base.tensors)
    embedding = embedding_of(names)
    if HEAD not in names or embedding is None or not is_tied(base.config):
        return {}
    head, table = names[HEAD], names[embedding]
    return {head: table} if contents.digests[head] == contents.digests[table] else {}
