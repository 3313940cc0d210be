"""Writing a directory of statistics so that whatever is finished stays, however the process ends.

A tensor is written beside its place, synced and renamed; then its name is recorded in the journal
of its collection, `unfinished/KEY.json`, in the same way. A finished collection moves from there
into the manifest. The key is the hash of all that defines the collection, so that the same command
finds what an earlier one has left, and no other does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from evomerge.checkpoints.statistics import (
    MANIFEST,
    TENSOR,
    TENSORS,
    Collection,
    Origin,
    check_file,
    checked_hash,
    digest,
    dump,
    load_manifest,
    load_tensor,
    manifest,
    tensor_file,
)
from evomerge.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import torch

_UNFINISHED: Final = "unfinished"
_CHUNK: Final = 1 << 24


class Store:
    """A directory of statistics, opened by its one writer; see `open_store`."""

    def __init__(self, path: Path, base: str, finished: tuple[Collection, ...]) -> None:
        self.path = path
        self._base, self._finished = base, {(c.source, c.kind): c for c in finished}

    def begin(self, source: str, kind: str, origin: Origin) -> Draft:
        """A new collection, or what an earlier process has left of the same one.

        Of a collection, finished or not, what is damaged counts as not there.

        Raises:
            OutputError: there is a finished one of another origin.
        """
        key = digest([self._base, source, kind, origin.plain()])
        journal = self.path / _UNFINISHED / f"{key}.json"
        before = self._finished.get((source, kind))
        recorded: Mapping[str, str] = {}
        if before is not None:
            if before.origin.plain() != origin.plain():
                raise OutputError(
                    f"{self.path} holds {kind!r} of {source!r} from "
                    f"{_difference(before.origin, origin)}: choose another --out, or remove it"
                )
            recorded = before.tensors
        elif journal.exists():
            recorded = _load_journal(journal)
        intact = {s for s in set(recorded.values()) if _is_intact(tensor_file(self.path, s), s)}
        tensors = {name: sha for name, sha in recorded.items() if sha in intact}
        whole = before is not None and len(tensors) == len(recorded)
        return Draft(self, Collection(source, kind, origin, tensors), journal, whole)

    def write(self, tensor: torch.Tensor) -> str:
        """Writes a tensor as float32, durably; returns its hash. Equal ones are one file."""
        return _write_tensor(self.path, tensor)

    def publish(self, collection: Collection) -> None:
        """Puts a finished collection into the manifest."""
        self._finished[collection.source, collection.kind] = collection
        _write_json(self.path / MANIFEST, manifest(self._base, tuple(self._finished.values())))


class Draft:
    """A collection under way. What `record` has returned from survives whatever happens next.

    finished: it was there already.
    """

    def __init__(
        self, store: Store, collection: Collection, journal: Path, finished: bool = False
    ) -> None:
        self.store, self.collection, self.finished = store, collection, finished
        self._journal = journal

    def record(self, tensors: Mapping[str, str]) -> None:
        """Records tensors that were written: the base's names -> their hashes."""
        merged = {**self.collection.tensors, **tensors}
        self.collection = replace(self.collection, tensors=merged)
        _write_json(self._journal, {"tensors": merged})

    def read(self, tensor: str) -> torch.Tensor:
        """A tensor recorded before, by the base's name, mapped into memory."""
        return load_tensor(tensor_file(self.store.path, self.collection.tensors[tensor]))

    def finish(self) -> Collection:
        """Publishes the collection."""
        if not self.finished:
            self.store.publish(self.collection)
            self._journal.unlink(missing_ok=True)
            self.finished = True
        return self.collection


@contextmanager
def open_store(path: Path, base: str) -> Iterator[Store]:
    """A directory to write statistics of the base with this fingerprint, and of its experts, into.

    Raises:
        OutputError: it is in use, cannot be written, or belongs to another base or something else.
        CheckpointError: its manifest is damaged.
    """
    with _explained(path):
        ours = (path / MANIFEST).is_file() or (path / _UNFINISHED).is_dir()
        if path.exists() and not ours and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(
                f"{path} exists already and holds no statistics, expected a new or empty "
                "directory: choose another --out"
            )
        for folder in (TENSORS, _UNFINISHED):
            (path / folder).mkdir(parents=True, exist_ok=True)
        lock = (path / _UNFINISHED / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(
                f"{path} is in use by another `evomerge calibrate`; wait for it or choose another "
                "--out"
            ) from None
        finished: tuple[Collection, ...] = ()
        if (path / MANIFEST).is_file():
            found, finished = load_manifest(path)
            if found != base:
                raise OutputError(
                    f"{path} holds statistics of another base (sha256 {found}), expected {base}: "
                    "choose another --out"
                )
        with _explained(path):
            for left in (path / TENSORS).glob(".*"):  # by a process that was killed
                left.unlink()
        yield Store(path, base, finished)


def _write_tensor(path: Path, tensor: torch.Tensor) -> str:
    import torch

    from evomerge.checkpoints.digest import raw_bytes

    data = raw_bytes(tensor.to(torch.float32)).data
    entry = {
        "dtype": "F32",
        "shape": list(tensor.shape),
        "data_offsets": [0, 4 * math.prod(tensor.shape)],
    }
    text = json.dumps({TENSOR: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    total = hashlib.sha256(header)
    total.update(data)
    sha = total.hexdigest()
    target = tensor_file(path, sha)
    if not _is_intact(target, sha):
        with _durable(target) as stream:
            stream.write(header)
            for start in range(0, len(data), _CHUNK):
                stream.write(data[start : start + _CHUNK])
    return sha


def _load_journal(journal: Path) -> dict[str, str]:
    """What a journal holds; one that is damaged holds nothing."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        recorded = json.loads(journal.read_bytes())["tensors"]
        return {str(name): checked_hash(sha) for name, sha in recorded.items()}
    return {}


def _is_intact(file: Path, sha: str) -> bool:
    try:
        check_file(file, sha)
    except CheckpointError:
        return False
    return True


def _difference(found: Origin, wanted: Origin) -> str:
    """Where two origins part, for an error message."""
    there, here = found.plain(), wanted.plain()
    there, here = there | there.pop("settings"), here | here.pop("settings")
    return "; ".join(
        f"{key} {str(there.get(key))[:60]} (now {str(here.get(key))[:60]})"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    )


def _write_json(target: Path, data: Any) -> None:
    with _durable(target) as stream:
        stream.write(dump(data))


@contextmanager
def _durable(target: Path) -> Iterator[IO[bytes]]:
    """A file that is there and complete, on the disk, or not there at all."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with _explained(target):
        try:
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
            descriptor = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the file system as an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}); what is there already is safe: free "
            "space or choose another --out, and run the same command again"
        ) from error
