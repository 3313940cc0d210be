"""The content hashes of a checkpoint, taken as its tensors are first asked for, and kept on disk.

A file is known by its real path, size, modification time and inode; one of them changed, and it is
read again. The cache lies in $EVOMERGE_CACHE/catalog, or ~/.cache/evomerge/catalog.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.scan import combine, scan

_VERSION: Final = 1  # raise it when what a digest means changes


class Weights(Protocol):
    """What can be catalogued: a Checkpoint or an Adapter."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Stored tensors by their names on disk."""


@dataclass(frozen=True)
class Catalog:
    """digests: sha256 by tensor name on disk; nonfinite: the tensors that contain NaN or Inf."""

    digests: Mapping[str, str]
    nonfinite: frozenset[str]


class Contents:
    """A catalogue that reads a tensor when it is first asked about it.

    What earlier runs learned is there from the start. Threads may share one: at worst two of them
    read the same tensor.
    """

    def __init__(self, weights: Weights) -> None:
        self._tensors = weights.tensors
        self._known: dict[str, tuple[str, bool]] = {}
        self._files: dict[Path, list[str]] = {}
        for name, info in weights.tensors.items():
            self._files.setdefault(info.file, []).append(name)
        self._keys = {file: _key(file) for file in self._files}
        for file, names in self._files.items():
            self._known |= _load(_entry(self._keys[file]), self._keys[file], names)
        self._stored = len(self._known)

    def digest(self, name: str) -> str:
        """The sha256 of a tensor by its name on disk."""
        return self._scanned(name)[0]

    def is_finite(self, name: str) -> bool:
        """Whether a tensor holds neither NaN nor Inf."""
        return self._scanned(name)[1]

    def known(self, name: str) -> bool:
        """Whether an answer about this tensor needs no reading."""
        return name in self._known

    def digests(self) -> dict[str, str]:
        """The digests that are known so far."""
        return {name: digest for name, (digest, _) in list(self._known.items())}

    def whole(self) -> Catalog:
        """The catalogue of all tensors, which is then kept on disk."""
        found = {name: self._scanned(name) for name in self._tensors}
        self.save()
        return Catalog(
            {name: digest for name, (digest, _) in found.items()},
            frozenset(name for name, (_, finite) in found.items() if not finite),
        )

    def save(self) -> None:
        """Keeps on disk what has been learned."""
        if len(self._known) == self._stored:
            return
        for file, names in self._files.items():
            key = self._keys[file]
            if _key(file) == key:  # else it was written to while it was read
                known = {name: self._known[name] for name in names if name in self._known}
                store(_entry(key), {"version": _VERSION, "file": key, "tensors": known})
        self._stored = len(self._known)

    def _scanned(self, name: str) -> tuple[str, bool]:
        if name not in self._known:
            self._known[name] = scan(self._tensors[name])
        return self._known[name]


def catalog(weights: Weights) -> Catalog:
    """The catalogue of all tensors; the first call reads every byte, later ones read the cache."""
    return Contents(weights).whole()


def fingerprint(weights: Checkpoint | Adapter) -> str:
    """One digest of all weights, whatever the shards; of an adapter with its scalings.

    Two directories with the same fingerprint hold the same tensors under the same names.
    """
    return fingerprint_of(weights, catalog(weights).digests)


def fingerprint_of(weights: Checkpoint | Adapter, digests: Mapping[str, str]) -> str:
    """The fingerprint, from the digests of all tensors."""
    facts = weights.facts() if isinstance(weights, Adapter) else {}
    return combine({**digests, **{f"adapter:{name}": fact for name, fact in facts.items()}})


def _entry(key: list[str | int]) -> Path:
    return directory("catalog") / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"


def _key(file: Path) -> list[str | int]:
    real = file.resolve()
    stat = real.stat()
    return [str(real), stat.st_size, stat.st_mtime_ns, stat.st_ino]


def directory(kind: str) -> Path:
    """Where what was learned of checkpoints is kept."""
    chosen = os.environ.get("EVOMERGE_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "evomerge") / kind


def _load(entry: Path, key: list[str | int], names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """What is stored of these tensors: nothing if there is no entry, or a damaged one."""
    found: dict[str, tuple[str, bool]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(entry.read_bytes())
        if stored["version"] == _VERSION and stored["file"] == key:
            for name in names:
                if name in stored["tensors"]:
                    found[name] = _checked(*stored["tensors"][name])
    return found


def _checked(digest: Any, finite: Any) -> tuple[str, bool]:
    if not isinstance(digest, str) or len(digest) != 64 or not isinstance(finite, bool):
        raise ValueError("damaged entry")
    return digest, finite


def store(entry: Path, value: Mapping[str, Any]) -> None:
    """Write atomically; a cache that cannot be written is no reason to stop."""
    temporary = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(value))
            temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)
