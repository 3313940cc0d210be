"""Slopes of a probe: how the mean soft scores of its items change with the weights of the merge."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from evomerge.backends.base import Differentiable
from evomerge.backends.gradients import draw_back
from evomerge.errors import CandidateError
from evomerge.instantiate import Merge
from evomerge.scoring.evaluate import Plan, Use
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import Likelihood, Response
from evomerge.scoring.signals import soft_gradient

_DIGITS = 7  # that are kept: more than float32 gradients have, and a ledger stays small


@dataclass(frozen=True)
class Slopes:
    """What a probe with slopes gave.

    ``responses`` are those to the plan's requests. ``slopes`` are, by objective, the derivatives of
    the mean soft score by the merge's weights: groups of the recipe outermost, then experts as the
    group's weights name them, or one number for all. ``seconds`` are by phase.
    """

    responses: tuple[Response, ...]
    slopes: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, float]


def measure(plan: Plan, backend: Differentiable, merge: Merge) -> Slopes:
    """Runs a plan, all of it signals, at the live model that ``merge`` has made.

    One objective after the other, so that there are the gradients of one only.

    Raises:
        CandidateError: a response or a slope is not finite.
    """
    responses: dict[int, Response] = {}
    slopes: dict[str, tuple[float, ...]] = {}
    seconds: dict[str, float] = {}
    for objective in plan.objectives:
        uses = [use for use in plan.uses if use.objective == objective.name]
        asked = [[plan.requests[at] for at in use.positions] for use in uses]
        answers, gradients = backend.gradients(
            asked, partial(_weigh, objective, uses), list(merge.moved)
        )
        drawn = time.perf_counter()
        slopes[objective.name] = _by_weights(objective.name, merge, gradients)
        spent = {**backend.spent}
        spent["backward"] = spent.get("backward", 0.0) + time.perf_counter() - drawn
        seconds = {name: seconds.get(name, 0.0) + more for name, more in spent.items()}
        for use, answered in zip(uses, answers, strict=True):
            responses.update(zip(use.positions, answered, strict=True))
    return Slopes(tuple(responses[at] for at in range(len(plan.requests))), slopes, seconds)


def _weigh(
    objective: Objective, uses: Sequence[Use], at: int, responses: Sequence[Likelihood]
) -> list[float]:
    """The derivatives of the objective's mean soft score by these log-probabilities."""
    of_item = soft_gradient(partial(objective.signal, uses[at].item), responses)
    return [derivative / len(uses) for derivative in of_item]


def _by_weights(
    name: str, merge: Merge, gradients: Mapping[str, torch.Tensor]
) -> tuple[float, ...]:
    """Gradients at the merged tensors as derivatives by the recipe's weights."""
    groups, order = merge.recipe.parameters, tuple(merge.experts)
    weights = {
        group.tensors: torch.tensor(
            merge.values(group)["weight"], dtype=torch.float64, requires_grad=True
        )
        for group in groups
    }
    draw_back(merge, gradients.items(), weights)
    found: list[float] = []
    for group in groups:
        weight = weights[group.tensors]
        by_expert = (torch.zeros_like(weight) if weight.grad is None else weight.grad).tolist()
        given = group.values.get("weight")
        if isinstance(given, Mapping):
            found += [by_expert[order.index(expert)] for expert in given]
        else:
            found.append(math.fsum(by_expert) if isinstance(by_expert, list) else by_expert)
    if not all(math.isfinite(slope) for slope in found):
        raise CandidateError(f"a slope of {name} is not finite; the merged model is broken")
    return tuple(float(f"{slope:.{_DIGITS}g}") for slope in found)
