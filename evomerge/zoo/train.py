"""One training run: losses of batches in, weights changed in place.

A base is trained whole, its matrices by Muon and the rest by AdamW. An expert is trained by AdamW
from the base, and only in the attention and MLP matrices of the language tower's decoder blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.zoo import batches, network
from evomerge.zoo.muon import Muon


@dataclass(frozen=True)
class Course:
    """What one run is taught, and how.

    `batch` counts the pictures of a step (questions, where there are none); `tasks` gives the share
    of each task among them, `shares` the share of each question form within it. `rate` is the peak
    learning rate: linear warm-up, then half a cosine down to nothing at step `horizon`, or at
    `steps` without one (a run may end before its horizon).
    """

    steps: int
    rate: float
    tasks: Mapping[str, float]
    shares: batches.Shares
    seed: int
    batch: int = 40
    warmup: int = 50
    decay: float = 0.0
    whole: bool = False
    horizon: int | None = None


def block_matrices(model: Any) -> list[nn.Parameter]:
    """The attention and MLP weight matrices of the language tower's decoder blocks, in order."""
    layers = model.get_decoder().layers
    return [matrix for matrix in layers.parameters() if matrix.ndim == 2]


def _optimisers(model: Any, course: Course) -> list[torch.optim.Optimizer]:
    if not course.whole:
        chosen = [one for one in model.parameters() if one.requires_grad]
        return [torch.optim.AdamW(chosen, course.rate, (0.9, 0.98), weight_decay=course.decay)]
    table = model.get_input_embeddings().weight
    matrices = [one for one in model.parameters() if one.ndim == 2 and one is not table]
    others = [one for one in model.parameters() if one.ndim != 2 or one is table]
    return [
        Muon(matrices, course.rate, weight_decay=course.decay),
        torch.optim.AdamW(others, course.rate * 0.75, (0.9, 0.98), weight_decay=0.0),
    ]


def _factor(course: Course, step: int) -> float:
    rise = min(1.0, (step + 1) / course.warmup)
    return rise * 0.5 * (1 + math.cos(math.pi * step / (course.horizon or course.steps)))


def picture_loss(model: Any, course: Course, step: int) -> Tensor:
    """The loss of the batch of one training step, all pictures new."""
    batch = batches.draw_batch(course.shares, course.tasks, course.batch, course.seed, step)
    with torch.set_grad_enabled(course.whole):
        features = network.see(model, batch.pixels)
    features = features.repeat_interleave(batches.TURNS, 0)
    return network.answer_loss(model, features, batch.tokens, batch.answers)


def run(
    model: Any,
    course: Course,
    report: Callable[[int, float], bool] = lambda step, loss: False,
    first: int = 0,
    loss_of: Callable[[Any, Course, int], Tensor] = picture_loss,
) -> int:
    """Train `model` (float32) in place, its parameters that require gradients; returns the steps
    taken.

    `report(step, loss)` is called after each step with the running mean of the loss; True ends the
    run.
    """
    optimisers = _optimisers(model, course)
    peaks = [[group["lr"] for group in one.param_groups] for one in optimisers]
    trained = [one for one in model.parameters() if one.requires_grad]
    mean = 0.0
    for step in range(first, course.steps):
        for one, rates in zip(optimisers, peaks, strict=True):
            for group, rate in zip(one.param_groups, rates, strict=True):
                group["lr"] = rate * _factor(course, step)
        loss = loss_of(model, course, step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        for one in optimisers:
            one.step()
            one.zero_grad(set_to_none=True)
        mean = loss.item() if step == first else 0.98 * mean + 0.02 * loss.item()
        if report(step + 1, mean):
            return step + 1
    return course.steps
