"""Pareto fronts of points to be maximised: dominance, hypervolume, knee, order.

Points are arrays of shape (n, m), float64: n points, m objectives, larger is better, all finite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(points: ArrayLike, maximise: bool = True) -> NDArray[np.bool_]:
    """Mask of shape (n,): the points that no other point dominates.

    One point dominates another if it is at least as good in all objectives and better in one. So
    equal points do not dominate each other: all copies of a front point are kept.
    """
    values = _points(points) if maximise else -_points(points)
    mask = np.ones(len(values), dtype=np.bool_)
    for i, point in enumerate(values):
        mask[i] = not np.any((values >= point).all(axis=1) & (values > point).any(axis=1))
    return mask


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume that the points dominate and that dominates `reference`, shape (m,).

    A point that is not better than the reference in every objective adds nothing. Computed by
    moocore (López-Ibáñez and others; Fonseca, Paquete, López-Ibáñez 2006,
    doi:10.1109/CEC.2006.1688440).
    """
    values = _points(points)
    origin = np.asarray(reference, dtype=np.float64)
    inside = values[(values > origin).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if len(origin) == 1:  # moocore starts at two objectives
        return float(inside.max() - origin[0])
    import moocore

    return float(moocore.hypervolume(inside, ref=origin, maximise=True))


def knee(points: ArrayLike) -> int:
    """Index of the best compromise: the front point farthest beyond the hyperplane of the extremes.

    Each objective is scaled to [0, 1] over the front; the hyperplane Σ = 1 then passes through
    the best corner of each objective (for two objectives: the line between the two ends), and the
    distance beyond it grows with the sum. This is the knee of Das 1999 (doi:10.1007/BF01195985), by
    normal-boundary intersection. Objectives that do not vary over the front have no say. Of equal
    sums the most balanced point wins (largest smallest score), then the first in `front_order`.
    """
    values = _points(points)
    order = front_order(values)
    if not order:
        raise ValueError("knee of an empty front: expected at least one point")
    front = values[order]
    width = np.ptp(front, axis=0)
    scaled = ((front - front.min(axis=0)) / np.where(width > 0, width, 1.0))[:, width > 0]
    if scaled.shape[1] == 0:
        return order[0]
    # Rounded, so that sums that differ in the last bits only count as equal.
    total, smallest = np.round(scaled.sum(axis=1), 12), scaled.min(axis=1)
    return order[max(range(len(order)), key=lambda i: (total[i], smallest[i], -i))]


def front_order(points: ArrayLike) -> list[int]:
    """Indices of the non-dominated points from the best to the worst first objective.

    Ties are broken by the second objective, and so on; copies stay in their given order.
    """
    values = _points(points)
    front = np.flatnonzero(non_dominated(values))
    return sorted(front.tolist(), key=lambda i: tuple(-values[i]))


def _points(points: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(
            f"points of shape {values.shape}: expected finite numbers of shape "
            "(points, objectives); drop failed candidates first"
        )
    return values
