"""What full scores say beyond a model of signals: a Gaussian process of what that leaves over.

A metric peaks elsewhere than its signal, and the items at hand have likings of their own. With z
the displacement from the centre, the covariance of what is left over is

    k(z, z') = q + s exp(-|z - z'|² / (2 r² d)) [+ noise],

the same for every objective, each in units of its own spread; q leaves the level open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from evomerge.search.surrogate import Array, likeliest, solve

LEVEL = 4.0  # q
START = (0.5, 0.2, 0.5)
"""Where the search for s, r (of a gene, in natural units) and the noise variance starts."""

SPREAD = (1.5, 1.0, 1.5)  # of the prior of each one's logarithm
_TINY = 1e-12


@dataclass(frozen=True)
class Residual:
    """The fitted process, as a function of the displacement."""

    units: Array
    """(T,)"""
    _places: Array
    _weights: Array
    """(n, T), in values"""
    _known: Array
    """The places, and those where a score is awaited"""
    _factor: Any
    _size: float
    _reach: float
    """2 r² d"""

    def mean(self, place: Array) -> tuple[Array, Array]:
        """What to add to values (T,), and its slopes (d, T), at a displacement (d,)."""
        apart, bells = self._bells(place, self._places)
        slopes = -2 / self._reach * (apart * bells[:, None]).T @ self._weights
        return (LEVEL + bells) @ self._weights, slopes

    def deviation(self, place: Array) -> tuple[float, Array]:
        """Its standard deviation in units, without that of the level, and the slope (d,)."""
        apart, bells = self._bells(place, self._known)
        weights = solve(self._factor, bells)
        deviation = float(np.sqrt(max(self._size - float(bells @ weights), _TINY)))
        change = 4 / self._reach * (apart * bells[:, None]).T @ weights
        return deviation, change / (2 * deviation)

    def _bells(self, place: Array, places: Array) -> tuple[Array, Array]:
        apart = place - places
        return apart, self._size * np.exp(-(apart**2).sum(axis=1) / self._reach)


def fit_residual(places: Array, left: Array, awaited: Array) -> Residual:
    """Of n candidates at displacements (n, d), what a model leaves over of their scores (n, T).

    Where other scores are `awaited` (m, d) the process will be as sure as if they had come.
    """
    units = left.std(axis=0) + 1e-6
    scaled = (left - left.mean(axis=0)) / units
    known = np.concatenate([places, awaited])
    apart = ((known[:, None] - known[None]) ** 2).sum(axis=2) / (2 * places.shape[1])

    def covariance(size: float, reach: float, noise: float, count: int = len(left)) -> Array:
        """Of the first so many, without the level's."""
        bells = size * np.exp(-apart[:count, :count] / reach**2)
        return np.asarray(bells + (noise + 1e-6) * np.eye(count))

    def loss(variances: Array) -> float:
        factor = cho_factor(LEVEL + covariance(*variances.tolist()), lower=True)
        fitted = 0.5 * (scaled * cho_solve(factor, scaled, check_finite=False)).sum()
        likelihood = fitted + left.shape[1] * np.log(np.diag(factor[0])).sum()
        drawn = np.log(variances / np.array(START)) / np.array(SPREAD)
        return float(likelihood + 0.5 * (drawn**2).sum())

    size, reach, noise = likeliest(loss, np.array(START), (0, 1, 2), (4.0, 2.0, 1.4)).tolist()
    factor = cho_factor(LEVEL + covariance(size, reach, noise), lower=True)
    return Residual(
        units=units,
        _places=places,
        _weights=cho_solve(factor, left, check_finite=False),
        _known=known,
        _factor=cho_factor(covariance(size, reach, noise, len(known)), lower=True),
        _size=size,
        _reach=2 * reach**2 * places.shape[1],
    )
