"""Statistics of a base and its experts on disk: activations' Grams, squared gradients and the like.

    DIR/manifest.json               what there is: source -> kind -> tensor -> file, and from what
    DIR/tensors/SHA256.safetensors  one float32 tensor a file, named by the sha256 of the file

A source is the base or an expert, by its name in the experiment; a tensor goes by the base's name.
Equal tensors are one file, so inputs that several weights share are stored once. Nothing depends on
time or place: the same statistics give the same bytes. `evomerge.calibrate.store` writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evomerge.checkpoints.headers import read_header
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    import torch

MANIFEST: Final = "manifest.json"
TENSORS: Final = "tensors"
TENSOR: Final = "value"
"""The name of the one tensor in a file."""

_FORMAT: Final = "evomerge-statistics"
_VERSION: Final = 1  # raise it when what a number means changes
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_AGAIN: Final = "run the same `evomerge calibrate` command again, which makes it anew"
_ANEW: Final = "remove the directory and run `evomerge calibrate` again"


@dataclass(frozen=True)
class Origin:
    """What a collection was made from, and how; equal origins give equal statistics.

    fingerprint: the source checkpoint's; items, tokens: how many were read; items_sha256: over the
    keys of the items in their order; settings: whatever else changes the numbers, as JSON.
    """

    fingerprint: str
    items: int
    tokens: int
    items_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data


@dataclass(frozen=True)
class Collection:
    """One kind of statistic of one source. tensors: the base's name -> sha256 of the file."""

    source: str
    kind: str
    origin: Origin
    tensors: Mapping[str, str]


class Statistics:
    """A directory of statistics, opened for reading."""

    def __init__(self, path: Path, base: str, collections: tuple[Collection, ...]) -> None:
        """`base` is the fingerprint of the base checkpoint."""
        self.path, self.base, self.collections = path, base, collections
        self._by_key = {(c.source, c.kind): c for c in collections}
        self._checked: set[str] = set()

    @property
    def fingerprint(self) -> str:
        """One sha256 of all that is in it, content included."""
        return digest(manifest(self.base, self.collections))

    @property
    def sources(self) -> dict[str, str]:
        """The sources, each with the fingerprint of the checkpoint that it was when it was read."""
        return {c.source: c.origin.fingerprint for c in self.collections}

    def kinds(self, source: str) -> frozenset[str]:
        """The kinds of statistics that there are of a source; empty for an unknown one."""
        return frozenset(kind for name, kind in self._by_key if name == source)

    def read(self, kind: str, source: str, tensor: str) -> torch.Tensor | None:
        """The statistic of a tensor, by the base's name of it; None if there is none.

        float32 on the CPU, mapped into memory: do not write into it. The file's content is checked
        when it is first read.

        Raises:
            CheckpointError: its file is missing or is not the one that was written.
        """
        collection = self._by_key.get((source, kind))
        sha = None if collection is None else collection.tensors.get(tensor)
        if sha is None:
            return None
        file = tensor_file(self.path, sha)
        if sha not in self._checked:
            check_file(file, sha)
            self._checked.add(sha)
        return load_tensor(file)

    def size(self) -> int:
        """Bytes of all files with tensors, each counted once."""
        files = {sha for c in self.collections for sha in c.tensors.values()}
        return sum(tensor_file(self.path, sha).stat().st_size for sha in files)


def open_statistics(path: str) -> Statistics:
    """Opens a directory that `evomerge calibrate` wrote.

    Raises:
        CheckpointError: it is none, or it is damaged.
    """
    folder = Path(path).expanduser()
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{path!r} holds no statistics (no {MANIFEST}), expected a directory that `evomerge "
            "calibrate` has finished: give that, or run the same command again to finish it"
        )
    opened = Statistics(folder, *load_manifest(folder))
    for sha in sorted({sha for c in opened.collections for sha in c.tensors.values()}):
        if not tensor_file(folder, sha).is_file():
            raise CheckpointError(f"{tensor_file(folder, sha)} is missing: {_AGAIN}")
    return opened


def manifest(base: str, collections: tuple[Collection, ...]) -> dict[str, Any]:
    """The manifest's content."""
    sources: dict[str, dict[str, Any]] = {}
    for each in collections:
        entry = {**each.origin.plain(), "tensors": dict(each.tensors)}
        sources.setdefault(each.source, {})[each.kind] = entry
    return {"format": _FORMAT, "version": _VERSION, "base": base, "sources": sources}


def load_manifest(folder: Path) -> tuple[str, tuple[Collection, ...]]:
    """The fingerprint of the base, and the collections of a manifest.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    file = folder / MANIFEST
    try:
        data = json.loads(file.read_bytes())
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
        collections = tuple(
            _collection(source, kind, dict(entry))
            for source, kinds in sorted(data["sources"].items())
            for kind, entry in sorted(kinds.items())
        )
        return checked_hash(data["base"]), collections
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is damaged or of another version of evomerge ({error!r}), expected version "
            f"{_VERSION}: {_ANEW}"
        ) from error


def _collection(source: str, kind: str, entry: dict[str, Any]) -> Collection:
    tensors = {name: checked_hash(sha) for name, sha in entry.pop("tensors").items()}
    return Collection(source, kind, Origin(**entry), tensors)


def tensor_file(folder: Path, sha: str) -> Path:
    """Where the tensor of this hash lies."""
    return folder / TENSORS / f"{checked_hash(sha)}.safetensors"


def check_file(file: Path, sha: str) -> None:
    """CheckpointError if a file's content is not that of its name."""
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {file} ({error.strerror}): {_AGAIN}") from error
    if found != sha:
        raise CheckpointError(
            f"{file} has content sha256 {found}, expected that of its name, so it was changed or "
            f"damaged: {_AGAIN}"
        )


def load_tensor(file: Path) -> torch.Tensor:
    """The tensor of a file, mapped into memory."""
    from safetensors import safe_open

    info = read_header(file).get(TENSOR)
    if info is None or info.dtype != "F32":
        raise CheckpointError(f"{file} holds no float32 tensor {TENSOR!r}: {_AGAIN}")
    with safe_open(file, framework="pt", device="cpu") as opened:
        tensor: torch.Tensor = opened.get_tensor(TENSOR)
    return tensor


def checked_hash(value: object) -> str:
    """A sha256 as hex; ValueError for anything else, so that nothing else names a file."""
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is no sha256")
    return value


def digest(data: Any) -> str:
    """sha256 of JSON data; the order of keys does not matter."""
    return hashlib.sha256(dump(data)).hexdigest()


def dump(data: Any) -> bytes:
    """JSON data as a file's content."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
