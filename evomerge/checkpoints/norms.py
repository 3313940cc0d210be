"""Norms of task vectors, slice by slice, kept beside the catalogue.

They belong to the contents of two tensors, whatever files these lie in, so they never grow stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from evomerge.checkpoints.catalog import directory, store

_VERSION: Final = 1


class Norms:
    """What is known of one expert, for slices of a given number of elements."""

    def __init__(self, expert: Path, slice_elements: int) -> None:
        named = f"{expert.resolve()}:{slice_elements}"
        self._file = directory("norms") / f"{hashlib.sha256(named.encode()).hexdigest()}.json"
        self._known: dict[str, list[float]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(self._file.read_bytes())
            if stored["version"] == _VERSION:
                self._known = {
                    pair: [float(each) for each in norms] for pair, norms in stored["norms"].items()
                }
        self._stored = len(self._known)

    def find(self, base: str, expert: str) -> list[float] | None:
        """The norm of each slice of the difference of two tensors, by their digests."""
        return self._known.get(f"{base}-{expert}")

    def learn(self, base: str, expert: str, norms: Sequence[float]) -> None:
        """Keeps the norms of the slices of two tensors' difference."""
        self._known[f"{base}-{expert}"] = list(norms)

    def save(self) -> None:
        """Puts on disk what has been learned."""
        if len(self._known) != self._stored:
            store(self._file, {"version": _VERSION, "norms": dict(self._known)})
            self._stored = len(self._known)
