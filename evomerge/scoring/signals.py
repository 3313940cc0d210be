"""Signals as soft scores: what moves smoothly where a metric is 0 or 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.requests import Likelihood

_STEP = 1e-3  # nats; signals are made of sums, differences and maxima, so it only must not vanish


def soft(signals: Sequence[float]) -> NDArray[np.float64]:
    """Signals, in nats, as soft scores in [0, 1]: the root of a probability, at most 1.

    It is steepest where a greedy answer turns from wrong to right.
    """
    return np.asarray(np.exp(np.minimum(signals, 0.0) / 2))


def soft_slope(signals: Sequence[float]) -> NDArray[np.float64]:
    """The derivative of each soft score by its signal; 0 where a signal is above 0."""
    return np.where(np.asarray(signals) < 0.0, soft(signals) / 2, 0.0)


def soft_gradient(
    signal: Callable[[Sequence[Likelihood]], float], responses: Sequence[Likelihood]
) -> list[float]:
    """Derivatives of an item's soft score by the log-probability of each of its responses.

    ``signal`` makes the item's signal of them; its own derivatives are central differences.
    """
    steepness = float(soft_slope([signal(responses)])[0])
    if steepness == 0:
        return [0.0] * len(responses)

    def moved(at: int, step: float) -> float:
        changed = list(responses)
        changed[at] = replace(changed[at], logprob=changed[at].logprob + step)
        return signal(changed)

    return [
        steepness * (moved(at, _STEP) - moved(at, -_STEP)) / (2 * _STEP)
        for at in range(len(responses))
    ]
