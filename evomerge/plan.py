"""What a static merge will read, write, hold and take, before it starts."""

from __future__ import annotations

import math
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evomerge.checkpoints.catalog import Contents
from evomerge.checkpoints.headers import ITEM_BYTES
from evomerge.export import WHOLE_BYTES, Producer, cores, dtype_of
from evomerge.slice_forms import FORMS, SLICE

if TYPE_CHECKING:
    from evomerge.budget import Choice
    from evomerge.instantiate import Merge

_TRIAL_BYTES: Final = 1 << 25
_TRIAL_ELEMENTS: Final = 1 << 21
_START_BYTES: Final = 280_000_000  # the interpreter with torch
_START_SECONDS: Final = 2.5


@dataclass(frozen=True)
class Plan:
    """reads: bytes by source; unknown: how many of them are not catalogued, so may turn out equal
    to the base; rates: bytes a second of reading and writing and elements a second of merging.
    """

    reads: dict[str, int]
    unknown: int
    writes: int
    moved: int
    tensors: int
    memory: int
    seconds: float
    rates: dict[str, float]


def plan(merge: Merge, out: Path, choice: Choice | None = None) -> Plan:
    """The plan of a merge that was opened for streaming.

    Rates are measured: some megabytes of the base are read past the system's cache, as many are
    written and synced where the output goes, and one tensor of middling size is merged.
    """
    base = merge.sources.base
    reads, unknown = _reads(merge, choice)
    writes = sum(
        ITEM_BYTES[dtype_of(merge, name)] * math.prod(info.shape)
        for name, info in base.tensors.items()
    )
    selected = [name for name in base.tensors if _may_move(merge, name)]
    elements = sum(math.prod(base.tensors[name].shape) for name in selected)
    rates = {
        "read": _reading(max((t.file for t in base.tensors.values()), key=_size)),
        "write": _writing(out),
        "merge": _merging(merge, selected),
    }
    seconds = max(
        sum(reads.values()) / rates["read"],
        writes / rates["write"],
        elements / rates["merge"] / cores(),
    )
    return Plan(
        reads,
        unknown,
        writes,
        len(selected),
        len(base.tensors),
        _memory(merge, selected),
        _START_SECONDS + seconds,
        rates,
    )


def _reads(merge: Merge, choice: Choice | None) -> tuple[dict[str, int], int]:
    base, contents = merge.sources.base, merge.sources.contents
    reads = {"base": sum(info.nbytes for info in base.tensors.values())}
    unknown = 0
    seen: set[str] = set()
    for label, expert in merge.sources.experts.items():
        reads[label] = 0
        for name in base.tensors:
            if name not in merge.selected:
                continue
            for stored in expert.stored(name):
                size = expert.weights.tensors[stored].nbytes
                if not _known(contents, name, expert.contents, stored):
                    unknown += size
                elif name not in expert.changed or expert.contents.digest(stored) in seen:
                    continue
                else:
                    seen.add(expert.contents.digest(stored))
                reads[label] += size
    if choice is not None:
        return {"base": reads["base"], "experts within the budget": choice.read}, unknown
    return reads, unknown


def _known(base: Contents, name: str, expert: Contents, stored: str) -> bool:
    return base.known(name) and expert.known(stored)


def _may_move(merge: Merge, name: str) -> bool:
    """Whether a tensor is selected, and not known to equal the base in all experts."""
    if name not in merge.selected:
        return False
    for _, expert in merge.sources.experts.items():
        for stored in expert.stored(name):
            if not _known(merge.sources.contents, name, expert.contents, stored):
                return True
    return merge.group(name) is not None


def _memory(merge: Merge, selected: list[str]) -> int:
    """The interpreter, and for each worker its slices or its whole tensor with all experts."""
    count, experts = cores(), len(merge.experts)
    sizes = sorted((math.prod(merge.sources.base.tensors[n].shape) for n in selected), reverse=True)
    sliced = 4 * SLICE * (3 * experts + 8) * count
    if merge.recipe.method in FORMS and all(
        e.kind == "full" for _, e in merge.sources.experts.items()
    ):
        ranked = 4 * sum(sizes[:count]) if merge.recipe.method == "ties" else 0
        return _START_BYTES + sliced + ranked
    whole = [4 * size * (2 * experts + 3) for size in sizes[:count]]
    return _START_BYTES + max([min(sum(whole), WHOLE_BYTES), *whole[:1]])


def _size(file: Path) -> int:
    return file.stat().st_size


def _reading(file: Path) -> float:
    """Bytes a second from the disk; from the system's cache where it cannot be passed."""
    with file.open("rb", buffering=0) as stream:
        size = min(_TRIAL_BYTES, _size(file))
        with suppress(OSError, AttributeError):
            os.posix_fadvise(stream.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        stream.readall() if size == _size(file) else stream.read(size)
        return size / max(time.perf_counter() - start, 1e-6)


def _writing(out: Path) -> float:
    """Bytes a second to the disk where the output goes, synced."""
    folder = next(each for each in out.absolute().parents if each.is_dir())
    with tempfile.TemporaryFile(dir=folder) as stream:
        start = time.perf_counter()
        stream.write(os.urandom(1 << 20) * (_TRIAL_BYTES >> 20))
        stream.flush()
        os.fsync(stream.fileno())
        return _TRIAL_BYTES / (time.perf_counter() - start)


def _merging(merge: Merge, selected: list[str]) -> float:
    """Elements a second of one worker."""
    if not selected:
        return math.inf
    from evomerge.methods.numerics import one_thread

    def distance(name: str) -> float:
        return abs(math.prod(merge.sources.base.tensors[name].shape) - _TRIAL_ELEMENTS)

    name = min(selected, key=distance)
    with one_thread():
        start = time.thread_time()
        count = sum(part.numel() for part in Producer(merge)(name))
        return count / max(time.thread_time() - start, 1e-6)
