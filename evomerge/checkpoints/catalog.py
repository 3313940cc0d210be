"""The content hashes of a checkpoint, taken in one pass over its files and kept on disk.

A file is known by its real path, size, modification time and inode; one of them changed, and it is
read again. The cache lies in $EVOMERGE_CACHE/catalog, or ~/.cache/evomerge/catalog.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.digest import combine, scan
from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.open import Checkpoint

_VERSION: Final = 1  # raise it when what a digest means changes


class Weights(Protocol):
    """What can be catalogued: a Checkpoint or an Adapter."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Stored tensors by their names on disk."""

    def read(self, name: str) -> torch.Tensor:
        """One stored tensor."""


@dataclass(frozen=True)
class Catalog:
    """digests: sha256 by tensor name on disk; nonfinite: the tensors that contain NaN or Inf."""

    digests: Mapping[str, str]
    nonfinite: frozenset[str]


def catalog(weights: Weights) -> Catalog:
    """The catalogue of all tensors; the first call reads every byte, later ones read the cache."""
    files: dict[Path, list[str]] = {}
    for name, info in weights.tensors.items():
        files.setdefault(info.file, []).append(name)
    scanned: dict[str, tuple[str, bool]] = {}
    for file, names in files.items():
        scanned.update(_scan_file(weights, file, names))
    return Catalog(
        {name: scanned[name][0] for name in weights.tensors},
        frozenset(name for name, (_, finite) in scanned.items() if not finite),
    )


def fingerprint(weights: Checkpoint | Adapter) -> str:
    """One digest of all weights, whatever the shards; of an adapter with its scalings.

    Two directories with the same fingerprint hold the same tensors under the same names.
    """
    digests = dict(catalog(weights).digests)
    if isinstance(weights, Adapter):
        digests |= {f"adapter:{name}": fact for name, fact in weights.facts().items()}
    return combine(digests)


def _scan_file(weights: Weights, file: Path, names: list[str]) -> dict[str, tuple[str, bool]]:
    key = _key(file)
    entry = _directory() / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"
    if (known := _load(entry, key, names)) is not None:
        return known
    scanned = {name: scan(weights.read(name)) for name in names}
    if _key(file) == key:  # else it was written to while it was read
        _store(entry, {"version": _VERSION, "file": key, "tensors": scanned})
    return scanned


def _key(file: Path) -> list[str | int]:
    real = file.resolve()
    stat = real.stat()
    return [str(real), stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _directory() -> Path:
    chosen = os.environ.get("EVOMERGE_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "evomerge") / "catalog"


def _load(
    entry: Path, key: list[str | int], names: list[str]
) -> dict[str, tuple[str, bool]] | None:
    """The stored scan; None if there is none, or it is damaged, or of other tensors."""
    try:
        stored = json.loads(entry.read_bytes())
        if stored["version"] != _VERSION or stored["file"] != key:
            return None
        return {name: _checked(*stored["tensors"][name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checked(digest: Any, finite: Any) -> tuple[str, bool]:
    if not isinstance(digest, str) or len(digest) != 64 or not isinstance(finite, bool):
        raise ValueError("damaged entry")
    return digest, finite


def _store(entry: Path, value: Mapping[str, Any]) -> None:
    """Write atomically; a cache that cannot be written is no reason to stop."""
    temporary = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(value))
            temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)
