"""A model of objectives over a genome that knows what its genes are: a Bayesian quadratic.

Near a point the objectives of a merged model are close to quadratics of its coefficients (MAP, Li
et al. 2025, arXiv 2406.07529, fits them). A full quadratic of d genes has (d+1)(d+2)/2
coefficients; here they are not free: in the prior, genes of one expert, one module kind, one place
move together, as much as the data say. Such a model is a Gaussian process with the kernel

    k(z, z') = (u + c u²) (1 + ρ [both by the metric])
               + ((s u + b) (shared blocks) + 4) [same measure],
    u = Σₗ vₗ (Mₗᵀz)·(Mₗᵀz') / 10,

where z is the displacement from the centre and Mₗ sums the genes of each group of a level. The
posterior mean is a quadratic in closed form. Signal and metric have a constant each, and the blocks
of items have theirs: two candidates are compared only as far as they answered the same items. A
block may also lean to other merges than all items do (s): what blocks do not share is not expected
of new items. The metric may differ from the signal by as smooth a function; ρ says how large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrs

from evomerge.search.names import expert_of, parameter_of, place_of

if TYPE_CHECKING:
    from evomerge.space import Gene

Array = NDArray[np.float64]

HYPER = (8.0, 8.0, 4.0, 4.0, 2.0, 4.0, 0.5, 0.5, 0.2, 1.0)
"""Where the search for variances starts: of the five levels, of the squares, blocks and noise, the
metric's own part, as a share of what it has in common with the signal, and the blocks' leanings."""

SPREAD = 2.0  # of the prior of each variance's logarithm, around HYPER
METRIC_NOISE = 2.0  # an item judged 0 or 1 says so much less than its signal
USUAL = 20.0  # items of an observation that has the noise variance of HYPER
SAMPLE = 160  # observations that the variances are estimated from


@dataclass(frozen=True)
class Observations:
    """What was seen of n candidates.

    places: (n, d), displacements from the centre in natural units. blocks: (n, B), the share of
    each block among its items. values: (n, T), mean over the items by objective. items: (n,), their
    number. by_metric: (n,), whether values are the metric's.
    """

    places: Array
    blocks: Array
    values: Array
    items: Array
    by_metric: NDArray[np.bool_]


@dataclass(frozen=True)
class Surrogate:
    """The fitted quadratic; values are differences to those of the centre, shape (T,)."""

    linear: Array
    """(d, T)"""
    square: Array
    """(T, d, d), symmetric"""
    units: Array
    """(T,), what one standard deviation of the process is in each objective"""
    _prior: Array
    _places: Array
    _inverse: Array
    _curvature: float
    _share: float
    _shares: Array
    """(n,), of the covariance between the metric here and what was seen there"""

    def mean(self, place: Array) -> tuple[Array, Array]:
        """Values (T,) and their slopes (d, T) at a displacement (d,)."""
        return quadratic(self.linear, self.square, place)

    def deviation(self, place: Array, origin: Array | None = None) -> tuple[float, Array]:
        """The posterior standard deviation of the change from an origin, by default the centre, in
        `units`, and its slope (d,) by the place."""
        origin = np.zeros_like(place) if origin is None else origin
        c = self._curvature
        pulled, fixed = self._prior @ place, self._prior @ origin
        own, cross, other = float(place @ pulled), float(place @ fixed), float(origin @ fixed)
        across, before = self._places @ pulled, self._places @ fixed
        shared = (across + c * across**2 - before - c * before**2) * self._shares
        weights = self._inverse @ shared
        variance = own + c * own**2 + other + c * other**2 - 2 * (cross + c * cross**2)
        variance = max(variance * self._share - float(shared @ weights), 1e-12)
        slope = 2 * (pulled * (1 + 2 * c * own) - fixed * (1 + 2 * c * cross)) * self._share
        weights = weights * self._shares * (1 + 2 * c * across)
        slope -= 2 * (self._prior @ (self._places.T @ weights))
        deviation = float(np.sqrt(variance))
        return deviation, slope / (2 * deviation)


def quadratic(linear: Array, square: Array, place: Array) -> tuple[Array, Array]:
    """Values (T,) and slopes (d, T) of quadratics with parts (d, T) and (T, d, d), at (d,)."""
    turned = square @ place
    return place @ linear + turned @ place, linear + 2 * turned.T


def solve(factor: tuple[Array, bool], right: Array) -> Array:
    """`scipy.linalg.cho_solve` without its checks: for one vector they take longer than it does."""
    found, _ = dpotrs(factor[0], right, lower=factor[1])
    return np.asarray(found)


def levels(genes: Sequence[Gene]) -> tuple[Array, ...]:
    """For each level, which gene is in which of its groups: (d, groups), 0 or 1.

    From coarse to fine: an expert, an expert's module kind, a place, an expert's depth, a gene.
    """
    kinds = (
        lambda g: (parameter_of(g), expert_of(g)),
        lambda g: (parameter_of(g), expert_of(g), place_of(g).rpartition("/")[2]),
        lambda g: (parameter_of(g), place_of(g)),
        lambda g: (parameter_of(g), expert_of(g), place_of(g).rpartition("/")[0]),
        lambda g: g.name,
    )
    found = []
    for kind in kinds:
        keys = [kind(gene) for gene in genes]
        column = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        member = np.zeros((len(genes), len(column)))
        member[np.arange(len(genes)), [column[key] for key in keys]] = 1.0
        found.append(member)
    return tuple(found)


def fit(levels: Sequence[Array], seen: Observations) -> Surrogate:
    """The posterior of the quadratic, its variances estimated by their marginal likelihood.

    One set of variances serves all objectives, each in units of its own spread.
    """
    items = np.where(seen.by_metric, seen.items / METRIC_NOISE, seen.items)
    values = seen.values.copy()
    for kind in (True, False):
        rows = seen.by_metric == kind
        if rows.any():
            values[rows] -= np.average(values[rows], axis=0, weights=items[rows])
    leading = ~seen.by_metric if (~seen.by_metric).any() else seen.by_metric
    units = np.sqrt((values[leading] ** 2).mean(axis=0)) + 1e-12
    scaled = values / units
    grams = _Grams.of(levels, seen, items)
    variances = _estimate(grams.last(SAMPLE), scaled[-SAMPLE:])
    factor = cho_factor(grams.covariance(variances), lower=True, check_finite=False)
    weights = cho_solve(factor, scaled, check_finite=False)
    prior = sum(v / 10 * m @ m.T for v, m in zip(variances[:5], levels, strict=True))
    pulled = seen.places @ prior
    shares = 1.0 + variances[8] * seen.by_metric
    pull = weights * units * shares[:, None]
    square = np.einsum("nd,nt,ne->tde", pulled, pull, pulled, optimize=True)
    return Surrogate(
        linear=pulled.T @ pull,
        square=variances[5] * square,
        units=units,
        _prior=np.asarray(prior),
        _places=seen.places,
        _inverse=cho_solve(factor, np.eye(len(scaled)), check_finite=False),
        _curvature=float(variances[5]),
        _share=1.0 + float(variances[8]),
        _shares=shares,
    )


@dataclass(frozen=True)
class _Grams:
    """The parts of the covariance of n observations, to be weighted by variances."""

    levels: Array
    """(levels, n, n)"""
    blocks: Array
    kinds: Array
    """(n, n), 1 where both are by the metric or both by the signal"""
    metric: Array
    """(n, n), 1 where both are by the metric"""
    noise: Array
    """(n,)"""

    @classmethod
    def of(cls, levels: Sequence[Array], seen: Observations, items: Array) -> _Grams:
        sums = [seen.places @ member for member in levels]
        kinds = np.equal.outer(seen.by_metric, seen.by_metric).astype(np.float64)
        return cls(
            levels=np.stack([s @ s.T / 10 for s in sums]),
            blocks=seen.blocks @ seen.blocks.T * kinds,
            kinds=kinds,
            metric=np.outer(seen.by_metric, seen.by_metric).astype(np.float64),
            noise=USUAL / items,
        )

    def last(self, count: int) -> _Grams:
        part = (slice(-count, None), slice(-count, None))
        return _Grams(
            self.levels[:, *part],
            self.blocks[part],
            self.kinds[part],
            self.metric[part],
            self.noise[-count:],
        )

    def covariance(self, variances: Array) -> Array:
        u = np.tensordot(variances[:5], self.levels, 1)
        whole = (u + variances[5] * u**2) * (1.0 + variances[8] * self.metric)
        whole += variances[9] * self.blocks * u
        whole += variances[6] * self.blocks + 4.0 * self.kinds
        whole[np.diag_indices_from(whole)] += variances[7] * self.noise
        return np.asarray(whole)


def _estimate(grams: _Grams, scaled: Array) -> Array:
    """The likeliest variances, by a coordinate search in two steps from HYPER; deterministic."""
    start = np.array(HYPER)

    def loss(variances: Array) -> float:
        try:
            lower = np.linalg.cholesky(grams.covariance(variances))
        except np.linalg.LinAlgError:
            return np.inf
        white = solve_triangular(lower, scaled, lower=True, check_finite=False)
        likelihood = 0.5 * (white**2).sum() + scaled.shape[1] * np.log(np.diag(lower)).sum()
        return float(likelihood + 0.5 * (np.log(variances / start) ** 2).sum() / SPREAD**2)

    return likeliest(loss, start, (7, 0, 1, 2, 3, 4, 9, 5, 6, 8), (5.0, 2.2))


def likeliest(
    loss: Callable[[Array], float], start: Array, order: Sequence[int], steps: Sequence[float]
) -> Array:
    """Positive numbers of a small loss, by a coordinate search from `start`; deterministic.

    They are tried in their `order`, times and over each of the `steps`.
    """
    best, least = start, loss(start)
    for step in steps:
        for i in order:
            for factor in (step, 1 / step):
                tried = best.copy()
                tried[i] *= factor
                value = loss(tried)
                if value < least:
                    best, least = tried, value
                    break
    return best
