"""Surfaces shaped like measured merge landscapes, each drawn from a seed.

Five experts, one a task, and one coefficient an expert, layer and module kind, as in a layer-wise
space of task arithmetic. Near a task's own solution the loss of a merged model is a quadratic of
the coefficients, so the log-odds of a right answer to task t are::

    z_t(w) = top_t - (top_t - base_t) (w - w*_t)' Q_t (w - w*_t) / (w*_t' Q_t w*_t)

with w*_t nonzero for the task's own expert alone: its coefficients help, by the importance of their
layer, and overshoot beyond w*_t. Q_t is positive semidefinite: scales of expert and layer around a
product of correlations, between experts (in the same layer) and between neighbouring layers. The
other experts' scales are the interference; one factor for all of them is solved for, so that the
best single coefficient gives a mean of 0.83, which is what the project's zoo of real merges shows.

An item is right if ``z_t(w) + o_i + r sqrt(2) cos(k_i'w + p_i) > 0``: a logistic difficulty o_i and
a term of its own, because real items do not agree on which of two merges is better. The phases p_i
are uniform, so the chance of a right answer depends on z_t alone and is known exactly. The signal
is a log-probability that peaks elsewhere than the metric (each task's solution displaced), with a
scale, a bias and a second term of its own for each item; its slopes are the exact derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from benchmarks.search.bed import Bed, Positions, Slopes, Values
from evomerge.scoring.signals import soft_slope
from evomerge.search.base import Genome
from evomerge.space import Gene

Array = NDArray[np.float64]

TASKS = ("chart", "geometry", "grounding", "ocr", "vqa")
MODULES = ("attention", "mlp")
DIMENSIONS = (10, 60, 300)
ITEMS = 80
"""Search items a task."""

SINGLE = 0.83
"""Mean accuracy of the best single coefficient."""

OWN = 1.0
"""Standard deviation of the term that an item has of its own, in log-odds."""

TURNS = 2.5
"""How fast that term changes, in radians for a coefficient's change by one in all layers."""

MIXED = (0.8, 0.6)
"""Of the metric's term and of the signal's own one, in the signal."""


@dataclass(frozen=True)
class Surface:
    """The true values of one instance."""

    top: Array
    """(tasks,): log-odds at the task's solution."""
    base: Array
    """(tasks,): log-odds of the base."""
    solution: Array
    """(tasks, dimension): w*_t."""
    quadratic: Array
    """(tasks, dimension, dimension): Q_t over w*_t' Q_t w*_t."""

    def log_odds(self, weights: Array, solution: Array | None = None) -> Array:
        """(tasks,): z_t at coefficients (dimension,)."""
        away = weights - (self.solution if solution is None else solution)
        distance = np.einsum("ti,tij,tj->t", away, self.quadratic, away)
        return np.asarray(self.top - (self.top - self.base) * distance)

    def log_odds_slope(self, task: int, weights: Array, solution: Array) -> Array:
        """(dimension,): the derivatives of z_t; Q_t is symmetric."""
        away = weights - solution[task]
        return np.asarray(-2.0 * (self.top - self.base)[task] * (self.quadratic[task] @ away))

    def accuracy(self, weights: Array) -> Array:
        """(tasks,): the chance that a new item is right."""
        return expected(self.log_odds(weights))


def expected(log_odds: Array) -> Array:
    """E over items of [z + o + r √2 cos p > 0]: exact for a logistic o and a uniform p."""
    phases = (np.arange(64) + 0.5) * np.pi / 64  # the midpoint rule converges exponentially here
    return np.asarray(_sigmoid(log_odds[:, None] + OWN * np.sqrt(2) * np.cos(phases)).mean(axis=1))


def draw(dimension: int, seed: int) -> Surface:
    """One instance: `dimension` is 10 a layer."""
    layers = dimension // (len(TASKS) * len(MODULES))
    if layers * len(TASKS) * len(MODULES) != dimension:
        raise ValueError(
            f"dimension {dimension}: expected a multiple of {len(TASKS) * len(MODULES)} "
            "(experts times module kinds)"
        )
    rng = np.random.default_rng([seed, dimension])
    tasks, groups = len(TASKS), layers * len(MODULES)
    near = _layer_correlation(layers, rng)
    own_scale = np.stack([_profile(rng, layers) for _ in range(tasks)])
    solution = np.zeros((tasks, tasks, groups))
    targets = rng.uniform(0.6, 1.2, (tasks, 1)) * rng.uniform(0.75, 1.25, (tasks, groups))
    for t in range(tasks):
        solution[t, t] = targets[t]
    strength = rng.gamma(2.0, 0.5, (tasks, tasks))
    other = np.stack(
        [np.stack([_profile(rng, layers) for _ in range(tasks)]) for _ in range(tasks)]
    )
    correlation = [_expert_correlation(t, tasks, rng) for t in range(tasks)]
    top = _logit(rng.uniform(0.975, 0.997, tasks))
    base = _logit(rng.uniform(0.6, 0.78, tasks))

    def surface(interference: float) -> Surface:
        quadratic = np.empty((tasks, dimension, dimension))
        for t in range(tasks):
            scale = np.sqrt(interference * strength[t][:, None] * other[t])
            scale[t] = np.sqrt(own_scale[t])
            # Genes run over groups first and experts within a group, as in a real space.
            flat = scale.T.reshape(-1)
            quadratic[t] = flat[:, None] * np.kron(near, correlation[t]) * flat
            place = solution[t].T.reshape(-1)
            quadratic[t] /= place @ quadratic[t] @ place
        places = solution.transpose(0, 2, 1).reshape(tasks, dimension)
        return Surface(top, base, places, quadratic)

    def miss(log_interference: float) -> float:
        return best_single(surface(float(np.exp(log_interference)))) - SINGLE

    return surface(float(np.exp(brentq(miss, -9.0, 5.0, xtol=1e-3))))


def best_single(surface: Surface) -> float:
    """The best mean over a grid of one coefficient for everything."""
    dimension = surface.solution.shape[1]
    grid = np.linspace(0.05, 1.0, 20)
    return float(max(surface.accuracy(np.full(dimension, w)).mean() for w in grid))


def make_bed(dimension: int, seed: int) -> Bed:
    """The bed of one instance; `seed` draws the surface and its items."""
    surface = draw(dimension, seed)
    tasks = len(TASKS)
    rng = np.random.default_rng([seed, dimension, 1])
    shape = (tasks, ITEMS)
    offset = rng.logistic(size=shape)
    # Layers matter to an item as much as they do to its task.
    weight = np.sqrt(np.einsum("tii->ti", surface.quadratic))
    weight /= np.sqrt((weight**2).sum(axis=1, keepdims=True) / tasks)
    turn = [TURNS * rng.normal(size=(*shape, dimension)) * weight[:, None] for _ in range(2)]
    phase = rng.uniform(0, 2 * np.pi, (2, *shape))
    scale, bias = rng.lognormal(-0.2, 0.35, shape), rng.normal(-0.3, 0.8, shape)
    moved = np.where(surface.solution > 0, rng.normal(0, 0.12, surface.solution.shape), 0.0)
    peak = surface.solution + moved + rng.normal(0, 0.03, surface.solution.shape)

    size = OWN * np.sqrt(2)

    def own(k: int, t: int, weights: Array) -> Array:
        return np.asarray(size * np.cos(turn[k][t] @ weights + phase[k, t]))

    def metric(genome: Genome, positions: Positions) -> Values:
        weights = np.array(genome)
        z = surface.log_odds(weights)
        return _by_task(positions, lambda t: z[t] + offset[t] + own(0, t, weights) > 0)

    def signal(genome: Genome, positions: Positions) -> Values:
        weights = np.array(genome)
        z = surface.log_odds(weights, peak)

        def values(t: int) -> Array:
            inner = z[t] + offset[t] + MIXED[0] * own(0, t, weights) + MIXED[1] * own(1, t, weights)
            return np.asarray(-np.logaddexp(0.0, -(scale[t] * inner + bias[t])))

        return _by_task(positions, values)

    def slopes(genome: Genome, positions: Positions) -> tuple[Values, Slopes]:
        weights = np.array(genome)
        signals = signal(genome, positions)

        def slope(task: str) -> Array:
            t, at = TASKS.index(task), list(positions[task])
            found = np.array(signals[task])
            # With s = log sigmoid(x), the derivative by x is 1 - sigmoid(x) = 1 - exp(s).
            each = soft_slope(found) * -np.expm1(found) * scale[t, at] / len(at)
            total = each.sum() * surface.log_odds_slope(t, weights, peak)
            for k, share in enumerate(MIXED):
                turns = turn[k][t, at]
                total -= (share * size * each * np.sin(turns @ weights + phase[k, t, at])) @ turns
            return total

        return signals, {task: tuple(slope(task).tolist()) for task in positions}

    def held_out(genome: Genome) -> Mapping[str, float]:
        return dict(zip(TASKS, surface.accuracy(np.array(genome)).tolist(), strict=True))

    return Bed(
        name=f"analytic-{dimension}",
        genes=genes(dimension),
        objectives=TASKS,
        counts=dict.fromkeys(TASKS, ITEMS),
        references=references(dimension),
        metric=metric,
        signal=signal,
        slopes=slopes,
        held_out=held_out,
        tokens=dict.fromkeys(TASKS, (4, 0)),
        reference_point=(0.6, 0.5),
    )


def genes(dimension: int) -> tuple[Gene, ...]:
    """``weight[vqa] language/0/mlp`` in [0, 1], in the order of a real space."""
    layers = dimension // (len(TASKS) * len(MODULES))
    return tuple(
        Gene(f"weight[{task}] language/{layer}/{module}", 0.0, 1.0, False)
        for module in MODULES
        for layer in range(layers)
        for task in TASKS
    )


def references(dimension: int) -> dict[str, Genome]:
    """Base, experts, weight average and task arithmetic 0.3."""
    per = len(TASKS)
    found: dict[str, Genome] = {"base": (0.0,) * dimension}
    for t, task in enumerate(TASKS):
        found[task] = tuple(1.0 if i % per == t else 0.0 for i in range(dimension))
    found["average"] = (1.0 / per,) * dimension
    found["task_arithmetic"] = (0.3,) * dimension
    return found


def _by_task(positions: Positions, values: Callable[[int], Any]) -> Values:
    """All items of a task are computed: in another company their last bits would be others."""
    return {
        task: tuple(np.asarray(values(TASKS.index(task)))[list(at)].astype(float).tolist())
        for task, at in positions.items()
    }


def _layer_correlation(layers: int, rng: np.random.Generator) -> Array:
    """(groups, groups), module kinds outermost: neighbours go together, other kinds less so."""
    reach, across = rng.uniform(0.25, 0.5), rng.uniform(0.1, 0.3)
    apart = np.abs(np.subtract.outer(np.arange(layers), np.arange(layers)))
    return np.asarray(np.kron([[1.0, across], [across, 1.0]], reach**apart))


def _profile(rng: np.random.Generator, layers: int) -> Array:
    """(groups,), sum 1: a bump of importance over depth for each kind, and noise."""
    depth = (np.arange(layers) + 0.5) / layers
    kinds = []
    for _ in MODULES:
        centre, width = rng.uniform(0, 1), rng.uniform(0.12, 0.4)
        bump = 0.15 + np.exp(-0.5 * ((depth - centre) / width) ** 2)
        kinds.append(rng.gamma(2.0) * bump * rng.gamma(4.0, 0.25, layers))
    flat = np.concatenate(kinds)
    return np.asarray(flat / flat.sum())


def _expert_correlation(task: int, tasks: int, rng: np.random.Generator) -> Array:
    """(experts, experts) in the task's metric: the others lean together, against its own."""
    factors = rng.normal(size=(tasks, 8)) / np.sqrt(8)
    common = rng.normal(size=8)
    common /= np.linalg.norm(common)
    factors += 1.2 * common
    factors[task] -= 2.0 * common
    factors /= np.linalg.norm(factors, axis=1, keepdims=True)
    return np.asarray(factors @ factors.T)


def _sigmoid(z: Array) -> Array:
    return np.asarray(expit(z))


def _logit(p: Array) -> Array:
    return np.asarray(np.log(p / (1.0 - p)))
