"""Gradient descent on the coefficients of a merge."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import CandidateError
from evomerge.learning.coefficients import Coefficients
from evomerge.learning.functional import MergedModel
from evomerge.learning.session import Loss, Sample, Session

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Step:
    """The loss of ``coefficients``, which are those after ``number`` of ``steps`` updates.

    It is over all samples at the first and the last one, else over those of the next update.
    """

    number: int
    steps: int
    loss: float
    coefficients: Coefficients


@dataclass(frozen=True)
class Descent:
    """What is descended, from where, and how.

    ``samples`` with their ``loss``; ``schedule`` says which of them each update looks at. The
    coefficients are ``shape`` of what the optimiser moves, which starts at ``unshape`` of
    ``start``; groups that are not ``free`` stay there. ``penalty`` is a further loss of the
    coefficients (groups x experts). ``depth`` is the hidden state that the loss needs, if any.
    """

    start: Coefficients
    samples: Sequence[Sample]
    loss: Loss
    schedule: Sequence[Sequence[int]]
    optimiser: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    shape: Map = lambda raw: raw
    unshape: Map = lambda coefficients: coefficients
    free: Sequence[bool] | None = None
    penalty: Map | None = None
    clip: float | None = None
    depth: float | None = None


def descend(session: Session, descent: Descent) -> Iterator[Step]:
    """Every step, the start and the end included.

    Raises:
        CandidateError: the loss or its gradient is not finite.
    """
    start = torch.tensor(descent.start.values, dtype=torch.float64)
    free = torch.tensor(descent.free or [True] * len(start))[:, None]
    raw = descent.unshape(start).clone().requires_grad_()
    optimiser = descent.optimiser([raw])
    scheduler = descent.scheduler(optimiser) if descent.scheduler else None
    model = session.merged(descent.start)
    steps = len(descent.schedule)
    everything = range(len(descent.samples))

    for number, chosen in enumerate(descent.schedule):
        coefficients = torch.where(free, descent.shape(raw), start)
        model.place(coefficients)
        at = descent.start.at(coefficients.tolist())
        loss = _loss(session, descent, model, coefficients, chosen, learn=True)
        shown = loss
        if number == 0 and len(chosen) < len(everything):
            shown = _loss(session, descent, model, coefficients, everything)
        _check(shown, number, steps)
        yield Step(number, steps, shown, at)
        optimiser.zero_grad()
        ends: list[torch.Tensor] = [coefficients]
        gradients: list[torch.Tensor | None] = [model.gradient()]
        if descent.penalty is not None:
            ends.append(descent.penalty(coefficients))
            gradients.append(None)
        torch.autograd.backward(ends, gradients)
        assert raw.grad is not None
        _check(float(raw.grad.norm()), number, steps, "the gradient's norm")
        if descent.clip is not None:
            torch.nn.utils.clip_grad_norm_([raw], descent.clip)
        optimiser.step()
        if scheduler is not None:
            scheduler.step()

    with torch.no_grad():
        coefficients = torch.where(free, descent.shape(raw), start)
    model.place(coefficients)
    loss = _loss(session, descent, model, coefficients, everything)
    _check(loss, steps, steps)
    yield Step(steps, steps, loss, descent.start.at(coefficients.tolist()))


def _loss(
    session: Session,
    descent: Descent,
    model: MergedModel,
    coefficients: torch.Tensor,
    chosen: Sequence[int],
    learn: bool = False,
) -> float:
    """The mean loss over the chosen samples, and the penalty; ``learn`` back-propagates the mean.

    Each objective has the same weight, however many of the samples are its own.
    """
    samples = [descent.samples[i] for i in chosen]
    names = [sample.objective for sample in samples]
    share = {name: 1 / (len(set(names)) * names.count(name)) for name in names}
    total = 0.0
    with torch.set_grad_enabled(learn):
        for batch in session.predictions(model, samples, descent.depth):
            loss = torch.stack(
                [descent.loss(samples[i], found) * share[names[i]] for i, found in batch]
            ).sum()
            if learn:
                torch.autograd.backward(loss)
            total += float(loss.detach())
    if descent.penalty is not None:
        total += float(descent.penalty(coefficients.detach()))
    return total


def _check(value: float, number: int, steps: int, what: str = "the loss") -> None:
    if not math.isfinite(value):
        raise CandidateError(
            f"{what} is {value} after {number} of {steps} steps: the merged model is broken there; "
            "try a lower rate or another start (--set rate=..., --set initial=...)"
        )


def batches(samples: Sequence[Sample], batch: int, steps: int, seed: int) -> list[list[int]]:
    """For each step ``batch`` samples of each objective, drawn afresh; all where it has fewer."""
    drawn = random.Random(f"{seed} batches")
    own: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        own.setdefault(sample.objective, []).append(i)
    return [
        [i for each in own.values() for i in sorted(drawn.sample(each, min(batch, len(each))))]
        for _ in range(steps)
    ]
