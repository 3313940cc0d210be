"""MAP: a quadratic model of each score, and the front that it predicts, which costs nothing.

Li et al. 2025, MAP: low-compute model merging with amortized Pareto fronts via quadratic
approximation (ICLR, arXiv 2406.07529), and its code. Scaling vectors are sampled and scored; for
each score the sigmoid of a quadratic is fitted; NSGA-III finds the front of these models, with a
population of 100 over 150 generations. That is the published end: one round. Two published variants
sample otherwise. `map-bayesian` samples in rounds where the fit is uncertain: the angles of the
scaling vectors are cut into bins, and a bin is drawn by the softmax (temperature 0.07) of its
squared errors, mean and half a standard deviation. `map-nested` merges two experts at a time, with
20 samples a pair, and then the merges.

Our readings:

- Rounds go on: the points of the predicted front are asked, told, and the models fitted again.
  Where a front has fewer points than a round, points near it follow (a Gaussian of 0.1, as the code
  disturbs its samples); for one objective that is most of a round.
- Genes are taken from their low to their high end as the paper takes its coefficients from 0 to 1.
- Samples are uniform, a fifth of them with all genes equal (the code's "isotropic" points). Its
  one-hot points are the experts, which are told as references.
- `map-bayesian` sums the errors over the scores, divides them by the largest bin's, takes the
  standard error in place of the spread over random subsets, and draws radii uniformly up to the
  border. Bins in which nothing was told are never drawn, as in the code.
- `map-nested` pairs experts in the order in which they come (the code: those of the nearest
  scores), all of a level at once, and takes from each pair what is best for the mean of all scores,
  each over its range (the code: for a given preference of the pair's tasks). An expert's weights
  move together over all groups; genes that are no expert's weight stay in the middle. Without names
  of experts each gene is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.search import nsga3, quadratic
from evomerge.search.base import Genome, OptionValue
from evomerge.search.names import expert_of, parameter_of
from evomerge.search.planned import (
    FloatArray,
    Known,
    Plan,
    PlannedSearch,
    Rounds,
    generator,
    growing,
    spread,
)

if TYPE_CHECKING:
    from evomerge.space import Gene

POPULATION, GENERATIONS, NESTED_GENERATIONS = 100, 150, 25
TEMPERATURE = 0.07
DISTURBANCE = 0.1
MOST_SAMPLES = 50
_DESIGN, _FRONT, _BINS = range(3)


def map_search(
    name: str,
    seed: int,
    options: Mapping[str, OptionValue],
    dimension: int,
    genes: Sequence[Gene],
) -> PlannedSearch:
    """`map`, `map-bayesian` or `map-nested` before any call."""
    batch = int(options["batch"] or 0)
    samples = int(options["samples"] or min(coefficients(dimension), MOST_SAMPLES))
    if name == "map-nested":
        tree = Tree(seed, samples, batch, *leaves(genes, dimension))
        if tree.depth:
            return PlannedSearch(tree.rounds())

    def design(index: int) -> Genome:
        return tuple(scaling(generator(seed, _DESIGN, index), index, dimension).tolist())

    plan: Plan = lambda history: front_points(seed, history[-1])  # noqa: E731
    if name == "map-bayesian":
        plan = _bayesian(seed, int(options["updates"] or 0))
    return PlannedSearch(Rounds(design, samples, min(samples, 4), growing(batch), plan))


def coefficients(dimension: int) -> int:
    """Those of a full quadratic."""
    return (dimension + 1) * (dimension + 2) // 2


def scaling(random: np.random.Generator, index: int, dimension: int) -> FloatArray:
    """A sample (d,): uniform, every fifth one with all genes equal."""
    drawn = random.random(dimension)
    return np.full(dimension, drawn[0]) if index % 5 == 0 else drawn


def front_points(seed: int, known: Known, generations: int = GENERATIONS) -> FloatArray:
    """Points (size, d) of the front that the fitted models predict, spread over it."""
    told = known.genomes
    models = [quadratic.fit(told, column) for column in known.scores.T]

    def model(points: FloatArray) -> FloatArray:
        return np.stack([fitted.predict(points) for fitted in models], axis=1)

    random = generator(seed, _FRONT, known.round)
    first = random.random((POPULATION, told.shape[1]))
    found, scores = nsga3.front(model, first, generations, random)
    chosen = found[spread(scores, known.size, model(np.vstack([told, known.taken])))]
    near = found[random.integers(len(found), size=known.size - len(chosen))]
    near = near + random.normal(0.0, DISTURBANCE, near.shape)
    return np.asarray(np.clip(np.vstack([chosen, near]), 0.0, 1.0))


def _bayesian(seed: int, updates: int) -> Plan:
    def plan(history: Sequence[Known]) -> FloatArray:
        known = history[-1]
        if known.round >= updates:
            return front_points(seed, known)
        return uncertain_points(generator(seed, _BINS, known.round), known)

    return plan


def uncertain_points(random: np.random.Generator, known: Known) -> FloatArray:
    """Points (size, d) in the bins of directions where the models err most."""
    errors = np.zeros(len(known.genomes))
    for column in known.scores.T:
        fitted = quadratic.fit(known.genomes, column)
        errors += ((column - fitted.predict(known.genomes)) / fitted.width) ** 2
    dimension = known.genomes.shape[1]
    parts = 4 if dimension < 4 else 2
    width = np.pi / 2 / parts
    cells = np.minimum(angles(known.genomes) // width, parts - 1)
    bins, place = np.unique(cells, axis=0, return_inverse=True)
    place = place.reshape(-1)
    held = [errors[place == i] for i in range(len(bins))]
    score = np.array([e.mean() + 0.5 * e.std() / np.sqrt(len(e)) for e in held])
    score = score / (score.max() or 1.0)
    chance = np.exp((score - score.max()) / TEMPERATURE)
    drawn = bins[random.choice(len(bins), size=known.size, p=chance / chance.sum())]
    at = directions((drawn + random.random(drawn.shape)) * width)
    return np.asarray(at / at.max(axis=1, keepdims=True) * random.random((known.size, 1)))


def angles(points: FloatArray) -> FloatArray:
    """The hyperspherical angles (n, d − 1) in [0, π/2] of points (n, d) with no negative entry."""
    after = np.sqrt(np.cumsum((points**2)[:, ::-1], axis=1)[:, ::-1][:, 1:])
    return np.asarray(np.arctan2(after, points[:, :-1]))


def directions(at: FloatArray) -> FloatArray:
    """The unit vectors (n, d) at angles (n, d − 1); the inverse of `angles`."""
    ones = np.ones((len(at), 1))
    sines = np.hstack([ones, np.cumprod(np.sin(at), axis=1)])
    return np.asarray(sines * np.hstack([np.cos(at), ones]))


def leaves(genes: Sequence[Gene], dimension: int) -> tuple[FloatArray, list[FloatArray]]:
    """Where nothing is merged (d,), and from there to each expert alone: what is nested."""
    experts = list(dict.fromkeys(e for gene in genes if (e := expert_of(gene))))
    if not experts:
        ends = [_ends(gene) for gene in genes] or [(0.0, 1.0)] * dimension
        off = np.array([low for low, _ in ends])
        return off, [np.eye(dimension)[i] * (high - low) for i, (low, high) in enumerate(ends)]
    of_expert = {e: [i for i, g in enumerate(genes) if expert_of(g) == e] for e in experts}
    for expert, places in of_expert.items():
        weights = [i for i in places if parameter_of(genes[i]) == "weight"]
        of_expert[expert] = weights or places
    off, vectors = np.full(dimension, 0.5), []
    for places in of_expert.values():
        vector = np.zeros(dimension)
        for i in places:
            off[i], on = _ends(genes[i])
            vector[i] = on - off[i]
        vectors.append(vector)
    return off, vectors


def _ends(gene: Gene) -> tuple[float, float]:
    """The places of the values 0 and 1 in the gene's range, or its ends where it has neither."""
    if gene.log or not gene.low <= 0.0 < gene.high:
        return 0.0, 1.0
    return gene.encode(0.0), min(gene.encode(1.0), 1.0)


class Tree:
    """Pairs of vectors, then pairs of what was chosen of them, up to one pair: the root."""

    def __init__(
        self, seed: int, samples: int, batch: int, off: FloatArray, vectors: list[FloatArray]
    ) -> None:
        self._seed, self._samples, self._batch = seed, samples, batch
        self._off, self._leaves = off, vectors
        self.depth = int(np.ceil(np.log2(len(vectors))))

    def rounds(self) -> Rounds:
        pairs = self._pairs(self._leaves)
        samples = self._samples * len(pairs)
        return Rounds(self._design(0, pairs), samples, 3, self._size, self._plan)

    def _size(self, number: int, told: int) -> int:
        if number >= self.depth - 1:
            return growing(self._batch)(number, told)
        left = len(self._leaves)
        for _ in range(number + 1):
            left = -(-left // 2)
        return self._samples * (left // 2)

    def _design(
        self, level: int, pairs: Sequence[tuple[FloatArray, FloatArray]]
    ) -> Callable[[int], Genome]:
        def point(index: int) -> Genome:
            of, number = index % len(pairs), index // len(pairs)
            random = generator(self._seed, _DESIGN, level, of, number)
            factors = scaling(random, number, 2)
            return tuple(self._points(pairs[of], factors[None])[0].tolist())

        return point

    def _plan(self, history: Sequence[Known]) -> FloatArray:
        known, vectors = history[-1], self._leaves
        for past in history[: self.depth - 1]:
            pairs = self._pairs(vectors)
            single = vectors[2 * len(pairs) :]
            vectors = [self._merged(pair, past) for pair in pairs] + single
        pairs = self._pairs(vectors)
        if known.round < self.depth - 1:
            design = self._design(known.round + 1, pairs)
            return np.array([design(i) for i in range(known.size)])
        (root,) = pairs
        inside, factors = self._inside(root, known)
        seen = Known(factors, known.scores[inside], factors[:0], known.round, known.size)
        if len(factors) < 2:
            drawn = generator(self._seed, _FRONT, known.round).random((known.size, 2))
            return self._points(root, drawn)
        return self._points(root, front_points(self._seed, seen, NESTED_GENERATIONS))

    def _merged(self, pair: tuple[FloatArray, FloatArray], known: Known) -> FloatArray:
        """The combination that the models of a pair prefer; the half of both where none is told."""
        inside, factors = self._inside(pair, known)
        best = np.array([0.5, 0.5])
        if len(factors) >= 3:
            scores = known.scores[inside]
            ticks = np.linspace(0.0, 1.0, 41)
            grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
            width = np.where(np.ptp(scores, axis=0) > 0, np.ptp(scores, axis=0), 1.0)
            value = np.zeros(len(grid))
            for column, range_ in zip(scores.T, width, strict=True):
                value += quadratic.fit(factors, column).predict(grid) / range_
            best = grid[int(np.argmax(value))]
        return np.asarray(best[0] * pair[0] + best[1] * pair[1])

    def _inside(
        self, pair: tuple[FloatArray, FloatArray], known: Known
    ) -> tuple[FloatArray, FloatArray]:
        """Which told points (n,) are combinations of a pair, and their factors (k, 2)."""
        plane = np.stack(pair, axis=1)
        moved = known.genomes - self._off
        factors = np.linalg.lstsq(plane, moved.T, rcond=None)[0].T
        near = np.abs(moved - factors @ plane.T).max(axis=1) < 1e-9
        inside = near & (factors > -1e-9).all(axis=1) & (factors < 1 + 1e-9).all(axis=1)
        return inside, np.clip(factors[inside], 0.0, 1.0)

    def _points(self, pair: tuple[FloatArray, FloatArray], factors: FloatArray) -> FloatArray:
        return np.asarray(np.clip(self._off + factors @ np.stack(pair), 0.0, 1.0))

    def _pairs(self, vectors: Sequence[FloatArray]) -> list[tuple[FloatArray, FloatArray]]:
        return list(zip(vectors[::2], vectors[1::2], strict=False))
