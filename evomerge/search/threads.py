"""One thread for the linear algebra of a search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def one_thread(libraries: Any = None) -> Iterator[None]:
    """Linear algebra and trees with one thread: their last bits depend on the number.

    ``libraries`` are those to be limited, as `loaded` knows them; else all that are loaded now are
    looked for, which takes milliseconds.
    """
    with (libraries or _look()).limit(limits=1):
        yield


@cache
def loaded() -> Any:
    """The libraries of linear algebra that were loaded when this was first asked."""
    return _look()


def _look() -> Any:
    import threadpoolctl  # type: ignore[import-untyped]  # scikit-learn brings it

    return threadpoolctl.ThreadpoolController()
