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
from evomerge.recipe import Group
from evomerge.scoring.evaluate import Plan, Use
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import Likelihood, Response
from evomerge.scoring.signals import soft_gradient

HELD = 4 << 30  # bytes of gradients that wait to be drawn back together
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

    One objective after the other; the gradients of several are drawn back together where they fit
    into ``HELD`` bytes, as each tensor is then merged once for all of them.

    Raises:
        CandidateError: a response or a slope is not finite.
    """
    responses: dict[int, Response] = {}
    slopes: dict[str, tuple[float, ...]] = {}
    seconds: dict[str, float] = {}
    waiting: dict[str, Mapping[str, torch.Tensor]] = {}
    for objective in plan.objectives:
        uses = [use for use in plan.uses if use.objective == objective.name]
        asked = [[plan.requests[at] for at in use.positions] for use in uses]
        answers, waiting[objective.name] = backend.gradients(
            asked, partial(_weigh, objective, uses), list(merge.moved)
        )
        for use, answered in zip(uses, answers, strict=True):
            responses.update(zip(use.positions, answered, strict=True))
        drawn = time.perf_counter()
        if objective is plan.objectives[-1] or _nbytes(waiting) * (1 + 1 / len(waiting)) > HELD:
            slopes |= _by_weights(merge, waiting)
            waiting = {}
        spent = {**backend.spent}
        spent["backward"] = spent.get("backward", 0.0) + time.perf_counter() - drawn
        for name, more in spent.items():
            seconds[name] = seconds.get(name, 0.0) + more
    return Slopes(tuple(responses[at] for at in range(len(plan.requests))), slopes, seconds)


def _nbytes(waiting: Mapping[str, Mapping[str, torch.Tensor]]) -> int:
    return sum(gradient.nbytes for by_name in waiting.values() for gradient in by_name.values())


def _weigh(
    objective: Objective, uses: Sequence[Use], at: int, responses: Sequence[Likelihood]
) -> list[float]:
    """The derivatives of the objective's mean soft score by these log-probabilities."""
    of_item = soft_gradient(partial(objective.signal, uses[at].item), responses)
    return [derivative / len(uses) for derivative in of_item]


def _by_weights(
    merge: Merge, gradients: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, tuple[float, ...]]:
    """Gradients at the merged tensors, by objective, as derivatives by the recipe's weights."""
    groups = merge.recipe.parameters
    weights = {
        group.tensors: torch.tensor(merge.values(group)["weight"], dtype=torch.float64)
        for group in groups
    }
    drawn = draw_back(merge, gradients, weights)
    slopes = {
        name: [s for group in groups for s in _as_given(merge, group, by_group[group.tensors])]
        for name, by_group in drawn.items()
    }
    for name, found in slopes.items():
        if not all(math.isfinite(slope) for slope in found):
            raise CandidateError(f"a slope of {name} is not finite; the merged model is broken")
    return {
        name: tuple(float(f"{slope:.{_DIGITS}g}") for slope in found)
        for name, found in slopes.items()
    }


def _as_given(merge: Merge, group: Group, slopes: torch.Tensor) -> list[float]:
    """One slope for each weight that the recipe gives a group; these are in the merge's order."""
    given = group.values.get("weight")
    if not isinstance(given, Mapping):
        return [float(slopes.sum())]
    by_expert = dict(zip(merge.experts, slopes.tolist(), strict=True))
    return [by_expert[expert] for expert in given]
