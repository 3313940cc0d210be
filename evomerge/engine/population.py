"""A worker whose candidates are LoRA adapters beside the base, several in one batch of requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.backends import make_adapter_backend
from evomerge.backends.config import BackendConfig
from evomerge.bank.resident import Room, resident
from evomerge.checkpoints.catalog import catalog
from evomerge.checkpoints.sources import Sources
from evomerge.engine.tasks import Outcome, Task, failure, outcome_of
from evomerge.errors import BackendLost, CandidateError, InputError
from evomerge.instantiate import model_digest
from evomerge.ledger.fold import Scores
from evomerge.merged_adapter import MergedAdapter, merged_adapter
from evomerge.recipe import Recipe
from evomerge.scoring import evaluate
from evomerge.scoring.measures import WeightStats
from evomerge.scoring.objectives import Objective, Split
from evomerge.scoring.requests import Response

_NO_WEIGHTS = WeightStats(0, 0)  # the merged weights never exist


@dataclass
class Population:
    """Holds one live base for its whole life; candidates come and go as adapters."""

    sources: Sources
    objectives: tuple[Objective, ...]
    config: BackendConfig

    def __post_init__(self) -> None:
        self.backend = make_adapter_backend(self.config, self.sources)
        self._base = model_digest(catalog(self.sources.base).digests, {})
        self.backend.open()
        self._plan = evaluate.planner(self.objectives)
        self._held = resident(self.sources, "cpu", "factors", Room("cpu"))

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Scores the recipes of all tasks in one batch; what goes wrong with one is its reason.

        Raises:
            InputError: no candidate could ever be scored with these settings or data.
        """
        try:
            return self._evaluate(tasks)
        except InputError:
            raise
        except BackendLost as error:
            return [Outcome(task, reason=str(error), lost=True) for task in tasks]
        except Exception as error:
            if len(tasks) == 1:
                return [failure(tasks[0], error)]
        return [outcome for task in tasks for outcome in self.run([task])]  # to find who it is

    def score(self, recipe: Recipe, split: Split) -> Scores:
        """Scores one recipe on a split.

        Raises:
            CandidateError: the adapter or a score is not finite.
        """
        [outcome] = self._evaluate([Task(0, recipe, split)])
        assert outcome.scores is not None
        return outcome.scores

    def _evaluate(self, tasks: Sequence[Task]) -> list[Outcome]:
        started = time.perf_counter()
        adapters = [merged_adapter(task.recipe, self._held) for task in tasks]
        self.backend.place(adapters)
        ready = time.perf_counter()
        plans = [self._plan(task.split, task.part) for task in tasks]
        asked = [(slot, request) for slot, plan in enumerate(plans) for request in plan.requests]
        responses = self.backend.run(asked)
        ended = time.perf_counter()
        share = 1 / len(tasks)
        timing = {"instantiate": (ready - started) * share, "score": (ended - ready) * share}
        return [
            outcome_of(task, plan, own, _NO_WEIGHTS, self._digest(adapter), timing)
            for task, plan, own, adapter in zip(
                tasks, plans, _split(plans, responses), adapters, strict=True
            )
        ]

    def _digest(self, adapter: MergedAdapter | None) -> str:
        return self._base if adapter is None else adapter.digest

    def close(self) -> None:
        self.backend.close()


def _split(
    plans: Sequence[evaluate.Plan], responses: Sequence[Response]
) -> list[Sequence[Response]]:
    """The responses to each plan's requests, which were asked one plan after the other."""
    if len(responses) != sum(len(plan.requests) for plan in plans):
        raise CandidateError(f"{len(responses)} responses are not one for each request")
    parts = []
    start = 0
    for plan in plans:
        parts.append(responses[start : start + len(plan.requests)])
        start += len(plan.requests)
    return parts
