"""Steps on the file system of whoever publishes by a rename: synced, locked, explained.

Every step that changes the disk goes through ``step``.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evomerge.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_COPY_BYTES: Final = 1 << 24
_YOUNG_SECONDS: Final = 60  # a directory may be this old before it is locked


def check_free(out: Path) -> None:
    """OutputError if something is in the way."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(
            f"{out} exists already, expected a new or empty directory: choose another or remove it"
        )


def put_file(out: Path, target: Path, content: bytes | Path) -> None:
    """A new file with these contents, or those of another file."""
    with explained(out):
        target.parent.mkdir(parents=True, exist_ok=True)
    with created(out, target) as descriptor:
        at = 0
        for part in _parts(content):
            put(out, descriptor, part, at)
            at += len(part)


def _parts(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as source:
        while part := source.read(_COPY_BYTES):
            yield part


@contextmanager
def created(out: Path, target: Path) -> Iterator[int]:
    """A new file, on disk and not merely in the system's cache when the block ends."""
    with explained(out):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        descriptor: int = step("create", os.open, target, flags, 0o666)
    try:
        yield descriptor
        with explained(out):
            step("fsync", os.fsync, descriptor)
    finally:
        os.close(descriptor)


def put(out: Path, descriptor: int, data: ReadableBuffer, offset: int) -> None:
    """Writes all of the data at its place."""
    view = memoryview(data).cast("B")
    with explained(out):
        while len(view):
            written: int = step("write", os.pwrite, descriptor, view, offset)
            view, offset = view[written:], offset + written


def step(kind: str, action: Callable[..., Any], *arguments: Any) -> Any:
    """Every step that changes what is on the disk, so that a test can fail or stop at each."""
    return action(*arguments)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        step("fsync", os.fsync, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(staging: Path) -> Iterator[None]:
    """While the block runs, others can see that the directory is at work."""
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then nobody removes it either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(out: Path) -> None:
    """Removes what killed processes left beside the target; a lock shows those still at work."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.staging-*"):
        if not left.is_dir() or time.time() - left.stat().st_mtime < _YOUNG_SECONDS:
            continue
        descriptor = os.open(left, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(descriptor)


def check_room(out: Path, needed: int) -> None:
    """A disk that is too small is better known before the work than after it."""
    free = shutil.disk_usage(out.parent)
    if free.total and free.free < needed:
        raise OutputError(
            f"cannot write {out}: it takes {needed} bytes, {free.free} are free: free space there, "
            "or choose another directory; nothing was left behind"
        )


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Errors of the file system as an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}: free space there, or choose another "
            "directory; nothing was left behind"
        ) from error
