"""Pools: who evaluates. ``inline`` is this process, ``ray`` are actors on one or many machines."""

from __future__ import annotations

from typing import Protocol

from evomerge.engine.study import Study
from evomerge.engine.worker import Outcome, Task


class Pool(Protocol):
    """Takes tasks and gives their outcomes back in the order in which they end."""

    @property
    def capacity(self) -> int:
        """How many tasks may be under way at once."""

    def submit(self, task: Task) -> None:
        """Starts a task; never called with ``capacity`` tasks under way."""

    def wait(self) -> list[Outcome]:
        """Blocks until at least one task has ended, and returns all that have."""

    def close(self) -> None:
        """Gives up what is under way and frees every worker."""


def open_pool(study: Study) -> Pool:
    """The pool that the experiment declares."""
    if study.experiment.pool.name == "ray":
        from evomerge.engine.pools.ray import RayPool

        return RayPool(study.experiment)
    from evomerge.engine.pools.inline import InlinePool

    return InlinePool(study)
