"""The header of a safetensors file, checked against the file's size before any tensor is read.

Format: 8 bytes little-endian length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then
the data, which the tensors cover without gaps (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.errors import CheckpointError

ITEM_BYTES: Final[Mapping[str, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATING: Final = frozenset({"F32", "F16", "BF16"})
"""The dtypes whose tensors can be merged."""

_LENGTH_BYTES: Final = 8
_LONGEST_HEADER: Final = 100_000_000  # the limit of the reference implementation
_AGAIN: Final = "download it again"


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: safetensors dtype name ("F32", "BF16", ...), shape, file that holds it.

    offset: where in the file its data begin.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the stored data in bytes."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file in the order in which their data lie.

    Raises CheckpointError if the file is missing, truncated, or its header does not describe its
    data exactly.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(_LENGTH_BYTES)
            length = _header_length(file, prefix, size)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    entries = _parse(file, text)
    return _check(file, entries, size, _LENGTH_BYTES + length)


def _header_length(file: Path, prefix: bytes, size: int) -> int:
    if prefix == b"version ":  # the text that git checks out in place of a large file
        raise CheckpointError(
            f"{file} is a Git LFS pointer, expected a safetensors file: run `git lfs pull` there"
        )
    if len(prefix) < _LENGTH_BYTES:
        raise CheckpointError(
            f"{file} is truncated: expected at least {_LENGTH_BYTES} bytes, found {size}: {_AGAIN}"
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > _LONGEST_HEADER:
        raise CheckpointError(
            f"{file} is no safetensors file: its header would take {length} bytes, "
            f"expected at most {_LONGEST_HEADER}: {_AGAIN}"
        )
    if _LENGTH_BYTES + length > size:
        raise CheckpointError(
            f"{file} is truncated: expected at least {_LENGTH_BYTES + length} bytes for its "
            f"header, found {size}: {_AGAIN}"
        )
    return int(length)


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} has a damaged header ({error}), expected JSON: {_AGAIN}"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a damaged header, expected a JSON object: {_AGAIN}")
    header.pop("__metadata__", None)
    return header


def _check(file: Path, entries: Mapping[str, Any], size: int, start: int) -> dict[str, TensorInfo]:
    available = size - start
    found: list[tuple[int, int, TensorInfo]] = []
    for name, entry in entries.items():
        try:
            begin, end = (_natural(each) for each in entry["data_offsets"])
            shape = tuple(_natural(each) for each in entry["shape"])
            info = TensorInfo(name, entry["dtype"], shape, file, start + begin)
            nbytes = info.nbytes
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file}: tensor {name!r} has the entry {str(entry)[:200]}, expected shape, "
                f"data_offsets and a dtype among {', '.join(ITEM_BYTES)}: {_AGAIN}"
            ) from error
        if end - begin != nbytes:
            raise CheckpointError(
                f"{file}: tensor {name!r} ({info.dtype}, {list(info.shape)}) has "
                f"{end - begin} bytes, expected {nbytes}: {_AGAIN}"
            )
        found.append((begin, end, info))
    found.sort(key=lambda each: each[:2])
    position = 0
    for begin, end, info in found:
        if begin != position:
            raise CheckpointError(
                f"{file}: the data of tensor {info.name!r} begin at byte {begin}, "
                f"expected {position}: {_AGAIN}"
            )
        position = end
    if position != available:
        problem = "is truncated" if available < position else "has bytes that belong to no tensor"
        raise CheckpointError(
            f"{file} {problem}: expected {position} bytes after its header, "
            f"found {available}: {_AGAIN}"
        )
    return {info.name: info for _, _, info in found}


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no natural number")
    return value
