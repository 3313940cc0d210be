"""Signals as soft scores: what moves smoothly where a metric is 0 or 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def soft(signals: Sequence[float]) -> NDArray[np.float64]:
    """Signals, in nats, as soft scores in [0, 1]: the root of a probability, at most 1.

    It is steepest where a greedy answer turns from wrong to right.
    """
    return np.asarray(np.exp(np.minimum(signals, 0.0) / 2))


def soft_slope(signals: Sequence[float]) -> NDArray[np.float64]:
    """The derivative of each soft score by its signal; 0 where a signal is above 0."""
    return np.where(np.asarray(signals) < 0.0, soft(signals) / 2, 0.0)
