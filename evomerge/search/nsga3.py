"""NSGA-III on a model that costs nothing to ask: all individuals of a generation at once.

Deb and Jain 2014, An evolutionary many-objective optimization algorithm using reference-point-based
nondominated sorting (doi:10.1109/TEVC.2013.2281535), with simulated binary crossover and polynomial
mutation (index 20). As in MAP's code, a child comes of crossover (0.7) or of mutation (0.3), never
of both, and parents are drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np

from evomerge.search.planned import FloatArray

CROSSOVER = 0.7
INDEX = 20.0

Model = Callable[[FloatArray], FloatArray]
"""Genomes (n, d) to scores (n, m), to be maximised."""


def front(
    model: Model,
    first: FloatArray,
    generations: int,
    random: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """The best front found from the population ``first`` (n, d): its genomes and their scores.

    Genes stay in [0, 1]. Genomes with the same scores are given once.
    """
    population, scores = first, model(first)
    directions = reference_directions(scores.shape[1], len(first))
    for _ in range(generations):
        children = _children(population, random)
        pool, values = np.vstack([population, children]), np.vstack([scores, model(children)])
        kept = _survivors(values, len(first), directions, random)
        population, scores = pool[kept], values[kept]
    best = np.flatnonzero(_ranks(scores, 1) == 0)
    _, once = np.unique(scores[best], axis=0, return_index=True)
    return population[best[once]], scores[best[once]]


def reference_directions(objectives: int, most: int) -> FloatArray:
    """Das and Dennis's even points on the simplex, as many as there are up to ``most``."""
    parts = 1
    while objectives > 1 and math.comb(parts + objectives, objectives - 1) <= most:
        parts += 1
    bars = np.array(list(combinations(range(parts + objectives - 1), objectives - 1)))
    ends = np.full((len(bars), 1), parts + objectives - 1)
    shares = np.diff(np.hstack([0 * ends - 1, bars, ends]), axis=1) - 1
    return np.asarray(shares / parts)


def _children(population: FloatArray, random: np.random.Generator) -> FloatArray:
    count, genes = population.shape
    one, other = (population[random.integers(count, size=count)] for _ in range(2))
    crossed = _crossover(one, other, random)
    mutated = _mutation(one, 1.0 / genes, random)
    return np.where(random.random((count, 1)) < CROSSOVER, crossed, mutated)


def _crossover(one: FloatArray, other: FloatArray, random: np.random.Generator) -> FloatArray:
    """One child of simulated binary crossover; each gene is crossed with probability a half."""
    draw = random.random(one.shape)
    grow = np.where(draw <= 0.5, 2.0 * draw, 1.0 / (2.0 * (1.0 - draw))) ** (1.0 / (INDEX + 1.0))
    side = np.where(random.random(one.shape) < 0.5, 1.0, -1.0)
    child = 0.5 * ((1.0 + side * grow) * one + (1.0 - side * grow) * other)
    return np.clip(np.where(random.random(one.shape) < 0.5, child, one), 0.0, 1.0)


def _mutation(parents: FloatArray, probability: float, random: np.random.Generator) -> FloatArray:
    """Bounded polynomial mutation."""
    draw, power = random.random(parents.shape), 1.0 / (INDEX + 1.0)
    down = (2.0 * draw + (1.0 - 2.0 * draw) * (1.0 - parents) ** (INDEX + 1.0)) ** power - 1.0
    up = 1.0 - (2.0 * (1.0 - draw) + (2.0 * draw - 1.0) * parents ** (INDEX + 1.0)) ** power
    moved = parents + np.where(draw < 0.5, down, up)
    return np.clip(np.where(random.random(parents.shape) < probability, moved, parents), 0.0, 1.0)


def _ranks(scores: FloatArray, wanted: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The front of each point, 0 the best, until ``wanted`` points have one; the rest get -1."""
    better = np.ones((len(scores), len(scores)), dtype=bool)
    for column in scores.T:
        better &= column[:, None] >= column
    dominates = better & ~better.T
    ranks = np.full(len(scores), -1, dtype=np.int64)
    rank = 0
    while (ranks >= 0).sum() < min(wanted, len(scores)):
        left = ranks < 0
        ranks[left & ~dominates[left].any(axis=0)] = rank
        rank += 1
    return ranks


def _survivors(
    scores: FloatArray, count: int, directions: FloatArray, random: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Whole fronts while they fit, then those of the next one whose directions have fewest."""
    if scores.shape[1] == 1:
        return np.argsort(-scores[:, 0], kind="stable")[:count]
    ranks = _ranks(scores, count)
    kept = np.flatnonzero((ranks >= 0) & (ranks < ranks.max()))
    partial = np.flatnonzero(ranks == ranks.max())
    if len(kept) + len(partial) == count:
        return np.concatenate([kept, partial])
    seen = np.concatenate([kept, partial])
    nearest, distance = _niches(scores[seen], directions)
    crowd = np.bincount(nearest[: len(kept)], minlength=len(directions))
    nearest, distance = nearest[len(kept) :], distance[len(kept) :]
    # One after the other, always into the direction that has fewest: the k-th nearest point of a
    # direction that has c is due when all have c + k.
    order = np.lexsort((distance, nearest))
    place = np.empty(len(order), dtype=np.int64)
    begins = np.searchsorted(nearest[order], nearest[order])
    place[order] = np.arange(len(order)) - begins
    due = crowd[nearest] + place
    chosen = np.lexsort((random.permutation(len(due)), due))[: count - len(kept)]
    return np.concatenate([kept, partial[chosen]])


def _niches(
    scores: FloatArray, directions: FloatArray
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], FloatArray]:
    """The nearest direction of each point and the distance to it, scores as shares of their range.

    The ideal and the worst value of each score among the points bound the range; Deb and Jain take
    intercepts of a hyperplane instead, which can degenerate.
    """
    best, worst = scores.max(axis=0), scores.min(axis=0)
    gaps = (best - scores) / np.where(best > worst, best - worst, 1.0)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    along = gaps @ unit.T
    away = np.sqrt(np.maximum((gaps**2).sum(axis=1, keepdims=True) - along**2, 0.0))
    nearest = away.argmin(axis=1)
    return nearest, away[np.arange(len(away)), nearest]
