"""A model of objectives over a genome that learns from their slopes.

Near a point the objectives of a merged model are close to quadratics of its coefficients. With z
the displacement from the centre, in natural units, the gradient of an objective is taken to be

    ∇f(z) = b - κ w∘z + H z + what the block of items has of its own + noise,

b and H Gaussian with mean 0. So beside the Hessian that was seen there is one that is expected: an
objective bends down along every gene, as much more along those it is more sensitive to. w is the
mean square of the derivatives, as the Fisher information stands for a Hessian; κ, one number an
objective, is fitted. Over n observations every derivative of every objective has the covariance

    a (1 + 2c z·z') + l (shared blocks) [+ noise],

because the symmetry of H is used only where H is evaluated: thousands of derivatives cost one
factorisation of an n x n matrix. Blocks lean to other merges than all items do (l): what they do
not share is not expected of new items. A quadratic changes from y to z by (z - y)·∇f((y + z)/2), so
the variance of that is known as well; unless y is the centre, it counts the antisymmetric half of H
too, which means a little more doubt.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from evomerge.search.surrogate import Array, quadratic, solve

START = (0.5, 0.3, 0.5, 0.5)
"""Where the search for a, c, l and the noise starts, in mean squares of a derivative; c as what it
adds at the mean distance of the observations."""

SPREAD = 2.0  # of the prior of each one's logarithm
FAR = 6.0  # from the start, at most, that a logarithm goes
SAMPLE = 100  # observations that they are estimated from
_TINY = 1e-12


@dataclass(frozen=True)
class Slopes:
    """What was seen of n candidates, each by signal on some items.

    places: (n, d), displacements from the centre in natural units. blocks: (n, B), the share of
    each block among the items. slopes: (n, T, d), derivatives of T objectives.
    """

    places: Array
    blocks: Array
    slopes: Array


@dataclass(frozen=True)
class SlopeModel:
    """The fitted quadratic; the interface is that of `surrogate.Surrogate`."""

    linear: Array
    """(d, T)"""
    square: Array
    """(T, d, d), symmetric"""
    units: Array
    """(T,), root mean square of an objective's derivatives"""
    _places: Array
    _factor: Any
    _variances: _Variances

    def mean(self, place: Array) -> tuple[Array, Array]:
        """Values (T,) relative to the centre and their slopes (d, T) at a displacement (d,)."""
        return quadratic(self.linear, self.square, place)

    def deviation(self, place: Array, origin: Array | None = None) -> tuple[float, Array]:
        """The posterior standard deviation of the change from an origin, by default the centre, in
        `units`, and its slope (d,) by the place."""
        origin = np.zeros_like(place) if origin is None else origin
        a, c = self._variances.amplitude, 2 * self._variances.curvature
        away, middle = place - origin, (place + origin) / 2
        length = float(np.sqrt(away @ away)) + _TINY
        shared = a * (1 + c * (self._places @ middle))
        weights = solve(self._factor, shared)
        variance = float(a * (1 + c * (middle @ middle)) - shared @ weights)
        deviation = max(variance, _TINY) ** 0.5
        change = a * c * (middle - self._places.T @ weights)
        slope = away / length * deviation + length * change / (2 * deviation)
        return length * deviation, slope


@dataclass(frozen=True)
class _Variances:
    """a, c, l and that of the noise."""

    amplitude: float
    curvature: float
    lean: float
    noise: float

    def covariance(self, near: Array, shared: Array) -> Array:
        """(n, n), of one derivative; `near` holds inner products of places, `shared` of blocks."""
        whole = self.amplitude * (1 + 2 * self.curvature * near) + self.lean * shared
        whole[np.diag_indices_from(whole)] += self.noise
        return np.asarray(whole)


def fit_slopes(seen: Slopes) -> SlopeModel:
    """The posterior of the quadratic, its variances estimated by their marginal likelihood."""
    units = np.sqrt((seen.slopes**2).mean(axis=(0, 2))) + _TINY
    slopes = seen.slopes / units[:, None]
    near, shared = seen.places @ seen.places.T, seen.blocks @ seen.blocks.T
    first = _estimate(near, shared, slopes)
    bend = _bend(_factor(first, near, shared), seen.places, slopes)
    slopes = slopes + bend * seen.places[:, None]
    variances = _estimate(near, shared, slopes, first)
    factor = _factor(variances, near, shared)
    weights = _solve(factor, slopes)
    hessian = np.einsum("ni,ntj->tij", seen.places, weights, optimize=True)
    hessian = variances.amplitude * variances.curvature * (hessian + hessian.transpose(0, 2, 1))
    diagonal = np.arange(len(bend.T))
    hessian[:, diagonal, diagonal] -= bend
    return SlopeModel(
        linear=(variances.amplitude * weights.sum(axis=0) * units[:, None]).T,
        square=hessian * units[:, None, None] / 2,
        units=units,
        _places=seen.places,
        _factor=factor,
        _variances=variances,
    )


def _bend(factor: Any, places: Array, slopes: Array) -> Array:
    """(T, d), κ w: by generalised least squares, and not below 0."""
    weight = (slopes**2).mean(axis=0)
    weight = weight / (weight.mean(axis=1, keepdims=True) + _TINY)
    along: Array = -places[:, None] * weight
    solved = _solve(factor, along)
    fitted = (solved * slopes).sum(axis=(0, 2)) / ((solved * along).sum(axis=(0, 2)) + _TINY)
    return np.asarray(np.maximum(fitted, 0.0)[:, None] * weight)


def _factor(variances: _Variances, near: Array, shared: Array) -> Any:
    return cho_factor(variances.covariance(near, shared), lower=True, check_finite=False)


def _solve(factor: Any, slopes: Array) -> Array:
    """The inverse covariance times (n, T, d)."""
    flat = slopes.reshape(len(slopes), -1)
    return np.asarray(cho_solve(factor, flat, check_finite=False)).reshape(slopes.shape)


def _estimate(
    near: Array, shared: Array, slopes: Array, guess: _Variances | None = None
) -> _Variances:
    """The likeliest variances for the latest observations, by L-BFGS over their logarithms."""
    near, shared = near[-SAMPLE:, -SAMPLE:], shared[-SAMPLE:, -SAMPLE:]
    flat = slopes[-SAMPLE:].reshape(len(near), -1)
    squares, count = flat @ flat.T, flat.shape[1]
    start = np.array(START)
    start[1] /= max(float(np.diag(near).mean()), _TINY)
    one = np.eye(len(near))

    def loss(drawn: Array) -> tuple[float, Array]:
        """Of the logarithms relative to the start, and its slope."""
        a, c, lean, noise = (start * np.exp(drawn)).tolist()
        factor = _factor(_Variances(a, c, lean, noise), near, shared)
        inverse = cho_solve(factor, one, check_finite=False)
        fitted = inverse @ squares
        likelihood = 0.5 * np.trace(fitted) + count * np.log(np.diag(factor[0])).sum()
        change = 0.5 * (count * inverse - fitted @ inverse)  # by the covariance
        bent = 2 * a * c * float((change * near).sum())
        slope = [
            a * float(change.sum()) + bent,
            bent,
            lean * float((change * shared).sum()),
            noise * float(np.trace(change)),
        ]
        prior = 0.5 * (drawn**2).sum() / SPREAD**2
        return float(likelihood + prior), np.array(slope) + drawn / SPREAD**2

    begin = np.zeros(4) if guess is None else np.log(np.array(astuple(guess)) / start)
    bounds, options = [(-FAR, FAR)] * 4, {"ftol": 1e-6}
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return _Variances(*(start * np.exp(found.x)).tolist())
