"""Decompositions kept between calls: a search asks for the same ones at every candidate.

The key is a digest of everything that goes in, so a stored result is the very one that would be
computed again, bit for bit, whether the tensors are the same objects or not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import torch

Parts = TypeVar("Parts", bound=Any)  # a dataclass of tensors
LIMIT = 1 << 30  # bytes kept in a process

_stored: dict[bytes, Any] = {}
_lock = threading.Lock()
_chance = random.Random(0)


def remembered(key: bytes, make: Callable[[], Parts]) -> Parts:
    """What is stored under ``key``, or the dataclass of tensors that ``make`` makes.

    Room is made by dropping entries at random: a search walks through the tensors of a model in
    order, over and over, and dropping the oldest would drop each just before it is wanted again.
    """
    with _lock:
        found = _stored.get(key)
    if found is not None:
        return cast(Parts, found)
    found = make()
    with _lock:
        if _bytes(found) <= LIMIT:
            while _stored and _bytes(found) + sum(map(_bytes, _stored.values())) > LIMIT:
                del _stored[_chance.choice(list(_stored))]
            _stored[key] = found
    return found


def forget() -> None:
    """Drops everything stored."""
    with _lock:
        _stored.clear()


def digest(name: str, numbers: Iterable[float], tensors: Iterable[torch.Tensor]) -> bytes:
    """A key made of a name, numbers, and the shapes and bytes of tensors."""
    hashed = hashlib.sha256(f"{name}\0{list(numbers)}".encode())
    for tensor in tensors:
        hashed.update(f"\0{tensor.dtype}{tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().numpy().data)
    return hashed.digest()


def _bytes(parts: Any) -> int:
    tensors = [getattr(parts, field.name) for field in dataclasses.fields(parts)]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
