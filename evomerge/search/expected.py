"""What a guided search expects of a candidate, from all that it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.search.residual import Residual, fit_residual
from evomerge.search.rows import Row
from evomerge.search.slopes import SlopeModel
from evomerge.search.surrogate import Array, Surrogate

REACH = 0.4  # of the model around its centre, root mean square of a gene's displacement
FEWEST_SCORED = 3
MOST_SCORED = 100  # of them that a model looks at: the latest


@dataclass(frozen=True)
class Model:
    """What follows from a version of the data; T objectives, m aims."""

    centre: Array
    start: Array
    """Displacement from the centre to where the best so far is expected."""
    known: Array
    """Displacement from the centre to where a gain is counted from."""
    caution: float
    """Standard deviations of the surrogate that a gain must outweigh."""
    names: tuple[str, ...]
    level: Array
    """(T,), values at the centre."""
    width: Array
    """(T,), by how much values are changed to see what that changes in the aims."""
    scale: Array
    """(m,), range of each aim."""
    surrogate: Surrogate | SlopeModel
    residual: Residual | None = None

    def values(self, away: Array) -> tuple[Array, Array]:
        """(T,) expected at a displacement, and their slopes (d, T)."""
        change, slopes = self.surrogate.mean(away)
        if self.residual is None:
            return self.level + change, slopes
        more, slopes_of_more = self.residual.mean(away)
        return self.level + change + more, slopes + slopes_of_more


def residual_of(
    model: Model, whole: Mapping[int, Row], awaited: Mapping[int, Array]
) -> Residual | None:
    """What the told candidates near the centre say beyond the model; None if they are too few.

    Fewer than genes say more of the items at hand than of the metric: what they add is not seen
    again on new items.
    """
    near = [
        (row.place - model.centre, np.array([row.value(name) for name in model.names]))
        for row in whole.values()
        if np.sqrt(((row.place - model.centre) ** 2).mean()) < REACH
    ]
    if len(near) < max(FEWEST_SCORED, len(model.centre)):
        return None
    near = near[-MOST_SCORED:]
    places = np.array([away for away, _ in near])
    left = np.array([found - model.values(away)[0] for away, found in near])
    coming = [place - model.centre for place in awaited.values()]
    return fit_residual(places, left, np.reshape(coming, (-1, len(model.centre))))


def spread(worth: Array, units: Array) -> float:
    """What one standard deviation of every objective (T,), independently, is worth."""
    return float(np.sqrt(((worth * units) ** 2).sum()))
