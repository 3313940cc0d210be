"""The pool of one: evaluates in this process, when it is waited for."""

from __future__ import annotations

from evomerge.engine.study import Study
from evomerge.engine.worker import Outcome, Task, Worker


class InlinePool:
    """One worker in this process. Deterministic: outcomes come in the order of submission."""

    capacity = 1

    def __init__(self, study: Study) -> None:
        self._worker = Worker(study.sources, study.objectives, study.experiment.backend)
        self._tasks: list[Task] = []

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self) -> list[Outcome]:
        return [self._worker.run(self._tasks.pop(0))]

    def close(self) -> None:
        self._worker.close()
