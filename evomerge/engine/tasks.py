"""What a worker is given and what it gives back."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.errors import BackendLost, CandidateError
from evomerge.ledger.fold import Scores
from evomerge.ledger.seen import Seen
from evomerge.recipe import Recipe
from evomerge.scoring import evaluate
from evomerge.scoring.blocks import Part
from evomerge.scoring.measures import WeightStats
from evomerge.scoring.objectives import Objective, Split
from evomerge.scoring.requests import Generated, Response
from evomerge.scoring.statistics import ItemScore, Value


@dataclass(frozen=True)
class Task:
    """One evaluation: a recipe on a split, or on a ``part`` of the search split.

    ``candidate`` is only carried along.
    """

    candidate: int
    recipe: Recipe
    split: Split
    part: Part | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task: scores, of a part what was seen, or the reason of a failure.

    ``lost`` says that the worker is to blame, so that the task is worth another one;
    ``unexpected``, that it may be: the failure is none that a candidate brings about by itself.
    """

    task: Task
    scores: Scores | None = None
    seen: Seen | None = None
    reason: str | None = None
    lost: bool = False
    unexpected: bool = False


def failure(task: Task, error: Exception) -> Outcome:
    """The outcome of a task that raised."""
    reason = f"{type(error).__name__}: {error}"
    lost, expected = is_of_worker(error), isinstance(error, CandidateError)
    return Outcome(task, reason=reason, lost=lost, unexpected=not (lost or expected))


def is_of_worker(error: Exception) -> bool:
    """Whether another worker may do better: no memory, no engine, or a GPU in a bad state.

    After errors of the last two kinds every later call in the same process fails too.
    """
    import torch

    kinds = (BackendLost, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
    return (
        isinstance(error, kinds)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def outcome_of(
    task: Task,
    plan: evaluate.Plan,
    responses: Sequence[Response],
    stats: WeightStats,
    digest: str,
    timing: Mapping[str, float],
    slopes: Mapping[str, tuple[float, ...]] | None = None,
) -> Outcome:
    """What the responses to the requests of a task's plan make, and the slopes of its part.

    Raises:
        CandidateError: an objective's value, or of a part an item's, is not finite.
    """
    scored = evaluate.score(plan, responses, stats)
    if task.part is None:
        return Outcome(task, scores=_scores(plan, scored, responses, digest, timing))
    seen = _seen(task.part, scored, responses, digest, timing)
    return Outcome(task, seen=replace(seen, slopes=dict(slopes or {})))


def values_of(
    objectives: Sequence[Objective], scored: Mapping[str, Sequence[ItemScore]]
) -> dict[str, Value]:
    """Values of the objectives that have scores.

    Raises:
        CandidateError: one is not finite.
    """
    values = {o.name: o.aggregate(list(scored[o.name])) for o in objectives if scored[o.name]}
    for name, value in values.items():
        if not math.isfinite(value.value):
            raise CandidateError(f"objective {name} is {value.value}, expected a finite number")
    return values


_Scored = Mapping[str, Mapping[str, ItemScore]]  # by objective and item


def _scores(
    plan: evaluate.Plan,
    scored: _Scored,
    responses: Sequence[Response],
    digest: str,
    timing: Mapping[str, float],
) -> Scores:
    return Scores(
        digest=digest,
        values=values_of(plan.objectives, {n: list(by.values()) for n, by in scored.items()}),
        items={n: tuple(s.value for s in by.values()) for n, by in scored.items() if by},
        weights=_weights(scored),
        tokens=_tokens(responses),
        timing=timing,
    )


def _seen(
    part: Part,
    scored: _Scored,
    responses: Sequence[Response],
    digest: str,
    timing: Mapping[str, float],
) -> Seen:
    for name, by in scored.items():
        for id, score in by.items():
            if not math.isfinite(score.value):
                raise CandidateError(f"item {id} of {name} is {score.value}, expected it finite")
    weighed = {n: by[evaluate.WEIGHTS].value for n, by in scored.items() if _is_weighed(by)}
    return Seen(
        part,
        digest,
        {n: tuple(s.value for s in by.values()) for n, by in scored.items() if n not in weighed},
        _tokens(responses),
        weighed,
        _weights(scored),
        timing,
    )


def _is_weighed(by: Mapping[str, ItemScore]) -> bool:
    return list(by) == [evaluate.WEIGHTS]


def _weights(scored: _Scored) -> dict[str, tuple[float, ...]]:
    return {
        n: tuple(s.weight for s in by.values())
        for n, by in scored.items()
        if any(s.weight != 1 for s in by.values())
    }


def _tokens(responses: Sequence[Response]) -> int:
    return sum(r.tokens for r in responses if isinstance(r, Generated))
