"""A worker: instantiates a recipe in the live model and scores it. It knows nothing of searches."""

from __future__ import annotations

import time
from dataclasses import dataclass

from evomerge.backends import make_backend, merge_device
from evomerge.bank.bank import Bank
from evomerge.checkpoints.catalog import catalog
from evomerge.checkpoints.sources import Sources
from evomerge.config import BackendConfig
from evomerge.engine.instances import Instances
from evomerge.errors import CandidateError, InputError
from evomerge.instantiate import model_digest
from evomerge.ledger.fold import Scores
from evomerge.recipe import Recipe
from evomerge.scoring import evaluate
from evomerge.scoring.objectives import Objective, Split
from evomerge.scoring.requests import Generated, Response


@dataclass(frozen=True)
class Task:
    """One evaluation: a recipe on a split. ``candidate`` is only carried along."""

    candidate: int
    recipe: Recipe
    split: Split


@dataclass(frozen=True)
class Outcome:
    """What became of a task: scores, or the reason of a failure, or a worker lost with it."""

    task: Task
    scores: Scores | None = None
    reason: str | None = None
    lost: bool = False


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
        bank = Bank(self.sources, merge_device(self.config), self.config.lora)
        self._instances = Instances(bank, self.backend)
        splits: tuple[Split, Split] = ("search", "held_out")
        self._plans = {s: evaluate.plan(self.objectives, s) for s in splits}

    def run(self, task: Task) -> Outcome:
        """Scores the task's recipe; whatever goes wrong with it becomes the outcome's reason.

        Raises:
            InputError: no candidate could ever be scored with these settings or data.
        """
        try:
            return Outcome(task, scores=self.score(task.recipe, task.split))
        except InputError:
            raise
        except Exception as error:
            return Outcome(task, reason=f"{type(error).__name__}: {error}")

    def score(self, recipe: Recipe, split: Split) -> Scores:
        """Instantiates the recipe in the live model and scores it on a split.

        Raises:
            CandidateError: the merged weights or a score are not finite.
        """
        started = time.perf_counter()
        self._instances.load(recipe)
        ready = time.perf_counter()
        plan = self._plans[split]
        responses = self.backend.run(plan.requests)
        scored = evaluate.score(plan, responses, self._instances.counts())
        values = {
            o.name: o.aggregate(list(scored[o.name].values()))
            for o in self.objectives
            if scored[o.name]
        }
        for name, value in values.items():
            if not abs(value.value) < float("inf"):
                raise CandidateError(f"objective {name} is {value.value}, expected a finite number")
        return Scores(
            digest=model_digest(self._stored, self._instances.digests()),
            values=values,
            items={n: tuple(s.value for s in by.values()) for n, by in scored.items() if by},
            weights={
                n: tuple(s.weight for s in by.values())
                for n, by in scored.items()
                if any(s.weight != 1 for s in by.values())
            },
            tokens=count_tokens(responses),
            timing={
                "instantiate": ready - started,
                "score": time.perf_counter() - ready,
            },
        )

    def close(self) -> None:
        self._instances.close()
        self.backend.close()


def count_tokens(responses: list[Response]) -> int:
    """Generated tokens; reading a prompt is not counted."""
    return sum(r.tokens for r in responses if isinstance(r, Generated))
