"""Writing a checkpoint so that it is either there and complete, or not there at all.

The files are streamed, one tensor in memory at a time, into a hidden directory beside the target;
that directory is checked and then renamed. Whatever goes wrong before, it is removed.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final

from evomerge.checkpoints.headers import ITEM_BYTES
from evomerge.checkpoints.open import INDEX, WEIGHTS
from evomerge.errors import IntegrityError, OutputError

if TYPE_CHECKING:
    import torch
    from _typeshed import ReadableBuffer

_COPY_BYTES: Final = 1 << 24


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its name, safetensors dtype name ("F32", "BF16", ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def write_checkpoint(
    out: Path,
    tensors: Sequence[TensorSpec],
    produce: Callable[[str], torch.Tensor],
    companions: Mapping[str, bytes | Path],
    shard_bytes: int = 5_000_000_000,
    verify: Callable[[Path], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a checkpoint directory.

    produce is called once for every tensor and must return the declared dtype and shape. The order
    is that of `tensors`, but within a shard wider dtypes come first, so that all data are aligned.
    companions are further files by their names: contents, or a file to copy. A shard holds at most
    shard_bytes of data, or one larger tensor. verify gets the finished directory before it is
    published; progress gets the bytes of tensors written so far and in all.

    Raises OutputError if `out` is in use or cannot be written, IntegrityError if `produce` breaks
    its promise. On any exception `out` is as before and nothing is left beside it.
    """
    _check_names(tensors, companions)
    out = out.absolute()
    with _explained(out):
        _check_free(out)
    shards = _shards(tensors, shard_bytes)
    staging = out.parent / f".{out.name}.staging-{secrets.token_hex(4)}"
    try:
        with _explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            staging.mkdir()
        for name, content in companions.items():
            _write_companion(out, staging / name, content)
        _write_shards(out, staging, shards, produce, progress)
        if verify is not None:
            verify(staging)
        with _explained(out):
            for directory in [staging, *(each for each in staging.rglob("*") if each.is_dir())]:
                _sync_directory(directory)
            staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    with suppress(OSError):  # published; a parent that cannot be synced changes nothing of that
        _sync_directory(out.parent)


def shard_names(count: int) -> list[str]:
    """The names of `count` weight files, as transformers has them."""
    if count == 1:
        return [WEIGHTS]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _check_names(tensors: Sequence[TensorSpec], companions: Mapping[str, bytes | Path]) -> None:
    count = Counter(spec.name for spec in tensors)
    if twice := [name for name, times in count.items() if times > 1]:
        raise OutputError(f"tensors {twice} would be written twice, expected distinct names")
    for name in companions:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise OutputError(
                f"companion file {name!r} lies outside of the checkpoint, expected a relative "
                "name: rename it"
            )
        if name.startswith("model") and ".safetensors" in name:
            raise OutputError(f"companion file {name!r} has the name of a weight file: rename it")


def _check_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(
            f"{out} exists already, expected a new or empty directory: choose another or remove it"
        )


def _shards(tensors: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Consecutive tensors, at most shard_bytes of them in a shard; wider dtypes first in each."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in tensors:
        if shards[-1] and filled + spec.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    return [sorted(shard, key=lambda spec: -ITEM_BYTES[spec.dtype]) for shard in shards]


def _write_shards(
    out: Path,
    staging: Path,
    shards: Sequence[Sequence[TensorSpec]],
    produce: Callable[[str], torch.Tensor],
    progress: Callable[[int, int], None] | None,
) -> None:
    total = sum(spec.nbytes for shard in shards for spec in shard)
    done = 0
    names = shard_names(len(shards))
    for file, shard in zip(names, shards, strict=True):
        with _created(out, staging / file) as stream:
            with _explained(out):
                _write(stream, _header(shard))
            for spec in shard:
                data = _produced(spec, produce)
                with _explained(out):
                    _write(stream, data)
                done += spec.nbytes
                if progress is not None:
                    progress(done, total)
    if len(shards) > 1:
        placed = {
            spec.name: file for file, shard in zip(names, shards, strict=True) for spec in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        _write_companion(out, staging / INDEX, json.dumps(index, indent=2).encode() + b"\n")


def _produced(spec: TensorSpec, produce: Callable[[str], torch.Tensor]) -> ReadableBuffer:
    from evomerge.checkpoints.digest import DTYPE_NAMES, raw_bytes

    tensor = produce(spec.name)
    found = (DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
    if found != (spec.dtype, tuple(spec.shape)):
        raise IntegrityError(
            f"tensor {spec.name!r} came as {found[0]} {list(found[1])}, expected {spec.dtype} "
            f"{list(spec.shape)}: report this as a bug"
        )
    return raw_bytes(tensor).data


def _header(shard: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for spec in shard:
        end = position + spec.nbytes
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_companion(out: Path, target: Path, content: bytes | Path) -> None:
    with _explained(out):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _created(out, target) as stream:
        for part in _parts(content):
            with _explained(out):
                _write(stream, part)


def _parts(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as source:
        while part := source.read(_COPY_BYTES):
            yield part


@contextmanager
def _created(out: Path, target: Path) -> Iterator[BinaryIO]:
    """A new file, on disk and not merely in the system's cache when the block ends."""
    with _explained(out):
        stream = target.open("xb")
    try:
        yield stream
        with _explained(out):
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        with _explained(out):
            stream.close()


def _write(stream: BinaryIO, data: ReadableBuffer) -> None:
    stream.write(data)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Errors of the file system as an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}: free space there, or choose another "
            "directory; nothing was left behind"
        ) from error
