"""A worker: makes recipes in the live model and scores them. It knows nothing of searches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.backends import candidates, make_backend
from evomerge.backends.config import BackendConfig
from evomerge.checkpoints.catalog import catalog
from evomerge.checkpoints.sources import Sources
from evomerge.config import Experiment
from evomerge.engine.population import Population
from evomerge.engine.study import adapter_slots
from evomerge.engine.tasks import Outcome, Task, failure, outcome_of
from evomerge.errors import ConfigError, InputError
from evomerge.instantiate import model_digest
from evomerge.ledger.fold import Scores
from evomerge.recipe import Recipe
from evomerge.scoring import evaluate
from evomerge.scoring.objectives import Objective, Split
from evomerge.scoring.requests import Response

if TYPE_CHECKING:
    from evomerge.backends.base import Differentiable
    from evomerge.backends.instances import Instances


@dataclass
class Worker:
    """Holds one live model for its whole life; candidates come and go in its weights."""

    sources: Sources
    objectives: tuple[Objective, ...]
    config: BackendConfig

    def __post_init__(self) -> None:
        self.backend = make_backend(self.config, self.sources)
        self._stored = catalog(self.sources.base).digests
        self.backend.open()
        self._candidates = candidates(self.backend, self.config, self.sources)
        self._plan = evaluate.planner(self.objectives)
        self._slopes_fit = False

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Scores the recipe of each task; whatever goes wrong with it becomes its reason.

        Raises:
            InputError: no candidate could ever be scored with these settings or data.
        """
        return [self._run(task) for task in tasks]

    def _run(self, task: Task) -> Outcome:
        try:
            return self._evaluate(task)
        except InputError:
            raise
        except Exception as error:
            return failure(task, error)

    def score(self, recipe: Recipe, split: Split) -> Scores:
        """Instantiates the recipe in the live model and scores it on a split.

        Raises:
            CandidateError: the merged weights or a score are not finite.
        """
        scores = self._evaluate(Task(0, recipe, split)).scores
        assert scores is not None
        return scores

    def _evaluate(self, task: Task) -> Outcome:
        started = time.perf_counter()
        self._candidates.load(task.recipe)
        ready = time.perf_counter()
        plan = self._plan(task.split, task.part)
        responses, slopes, spent = self._ask(task, plan)
        scored = time.perf_counter()
        digest = model_digest(self._stored, self._candidates.digests())
        rest = scored - ready - sum(spent.values())
        timing = {"instantiate": ready - started, **spent, "score": rest}
        counts = self._candidates.counts()
        return outcome_of(task, plan, responses, counts, digest, timing, slopes)

    def _ask(
        self, task: Task, plan: evaluate.Plan
    ) -> tuple[Sequence[Response], Mapping[str, tuple[float, ...]], Mapping[str, float]]:
        """Responses, slopes if the task wants them, and seconds by phase."""
        if task.part is None or not task.part.slopes:
            return self.backend.run(plan.requests), {}, self.backend.spent
        import torch

        from evomerge.engine.slopes import measure

        # the driver asks for slopes only where the backend has them
        backend = cast("Differentiable", self.backend)
        merge = cast("Instances", self._candidates).merge(task.recipe)
        try:
            found = measure(plan, backend, merge)
        except torch.OutOfMemoryError as error:
            if self._slopes_fit:
                raise  # they did before: another worker may do better
            raise ConfigError(
                "the backward pass that slopes take does not fit into the device's memory; search "
                "without it, by search: {algorithm: guided, options: {slopes: false}} and another "
                f"--out, or take a device with more memory ({error})"
            ) from error
        self._slopes_fit = True
        return found.responses, found.slopes, found.seconds

    def close(self) -> None:
        self._candidates.close()
        self.backend.close()


def open_worker(
    experiment: Experiment, sources: Sources, objectives: tuple[Objective, ...]
) -> Worker | Population:
    """The worker that an experiment needs, with its model brought up.

    Raises:
        InputError: the backend cannot run the base.
    """
    if adapter_slots(experiment, sources, objectives) is None:
        return Worker(sources, objectives, experiment.backend)
    return Population(sources, objectives, experiment.backend)


def is_broken(worker: Worker | Population, outcomes: Sequence[Outcome], base: Recipe) -> bool:
    """Whether an unexpected failure was the worker's: then it cannot score the base either.

    Every later candidate would fail in the same way, as when a process of its engine has died.
    """
    doubtful = [o.task for o in outcomes if o.unexpected and o.task.recipe != base]
    if not doubtful:
        return False
    try:
        task = Task(-1, base, doubtful[0].split, doubtful[0].part)
        return worker.run([task])[0].reason is not None
    except InputError:
        return True
