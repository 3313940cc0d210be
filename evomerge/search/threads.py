"""One thread for the linear algebra of a search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra and trees with one thread: their last bits depend on the number."""
    import threadpoolctl  # type: ignore[import-untyped]  # scikit-learn brings it

    with threadpoolctl.threadpool_limits(1):
        yield
