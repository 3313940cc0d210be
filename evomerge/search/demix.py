"""DeMix's search: mixtures drawn on the simplex, a predictor of their scores, the best predicted.

Li et al. 2026, Decouple searching from training: scaling data mixing via model merging (ICML, arXiv
2602.00747), and its code. There a mixture of data is stood for by the linear merge of models, one
trained on each source, and this loop finds the mixture: weights are drawn from Dirichlet
distributions around a prior, whose strength is one of 15 between 0.5 and 5 on a logarithmic scale;
no weight exceeds four times its prior, and those below 2·10⁻⁴ are nothing. Merges are scored, trees
boosted by gradients (300, learning rate 0.01) learn to predict the scores, many more mixtures are
drawn and predicted, and the loop goes on from the best.

Our readings:

- The published prior is the amount of data of each source (to the power of 0.7). Experts have none:
  the prior is even, which that power leaves as it is.
- There is a simplex for each group of tensors of the space; with one group it is the published one.
  Other genes than weights (a density) are drawn uniformly and predicted along.
- LightGBM is no dependency: scikit-learn's HistGradientBoostingRegressor, the same kind of trees,
  takes its place, with at most 8 leaves of at least 5 points, as there are tens of merges, not
  thousands. The pool has 10,000 mixtures instead of 200,000.
- What is asked of the pool: a mixture at random from the best hundredth by prediction; for several
  scores, each time by another weighted sum of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import ConfigError
from evomerge.search.base import Genome, OptionValue
from evomerge.search.names import parameter_of, place_of
from evomerge.search.planned import (
    FloatArray,
    Known,
    PlannedSearch,
    Rounds,
    favourites,
    generator,
    growing,
)

if TYPE_CHECKING:
    from evomerge.space import Gene

STRENGTHS = np.logspace(np.log10(0.5), np.log10(5.0), 15)
MOST = 4.0
LEAST = 2e-4
_DESIGN, _POOL = range(2)


@dataclass(frozen=True)
class Simplex:
    """The weights of one group: their places among the genes, and how to decode them.

    A weight w is at ``(w - low) / width`` in the unit box; ``cap`` is the largest it may be.
    """

    places: tuple[int, ...]
    low: FloatArray
    width: FloatArray

    @property
    def cap(self) -> FloatArray:
        """Four times the prior, or the end of the range."""
        return np.minimum(MOST / len(self.places), self.low + self.width)

    def draw(self, random: np.random.Generator, count: int) -> FloatArray:
        """Weights (count, experts): not negative, of sum 1, none above its cap."""
        experts = len(self.places)
        strength = random.choice(STRENGTHS, size=(count, 1))
        drawn = random.standard_gamma(np.broadcast_to(strength / experts, (count, experts)))
        drawn = np.maximum(drawn, 1e-300)
        drawn /= drawn.sum(axis=1, keepdims=True)
        drawn[drawn < LEAST] = 0.0
        return _capped(drawn, self.cap)


def demix_search(
    seed: int, options: Mapping[str, OptionValue], dimension: int, genes: Sequence[Gene]
) -> PlannedSearch:
    """`demix` before any call; without genes all coordinates are the weights of one group."""
    simplices = simplices_of(genes, dimension)
    pool = int(options["pool"] or 0)

    def draw(random: np.random.Generator, count: int) -> FloatArray:
        points = random.random((count, dimension))
        for simplex in simplices:
            weights = simplex.draw(random, count)
            points[:, simplex.places] = (weights - simplex.low) / simplex.width
        return np.clip(points, 0.0, 1.0)

    def design(index: int) -> Genome:
        return tuple(draw(generator(seed, _DESIGN, index), 1)[0].tolist())

    def plan(history: Sequence[Known]) -> FloatArray:
        known = history[-1]
        random = generator(seed, _POOL, known.round)
        points = draw(random, max(pool, known.size))
        predicted = predict(known.genomes, known.scores, points)
        best = max(len(points) // 100, 1)
        return points[favourites(random, predicted, known.scores, known.size, best)]

    samples = int(options["samples"] or 0)
    return PlannedSearch(
        Rounds(design, samples, min(samples, 10), growing(int(options["batch"] or 0)), plan)
    )


def predict(genomes: FloatArray, scores: FloatArray, points: FloatArray) -> FloatArray:
    """The scores (p, m) of points (p, d) that trees fitted to what was told predict."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees = [
        HistGradientBoostingRegressor(
            learning_rate=0.01,
            max_iter=300,
            max_leaf_nodes=8,
            min_samples_leaf=min(5, max(len(genomes) // 4, 1)),
            early_stopping=False,
            random_state=0,
        ).fit(genomes, column)
        for column in scores.T
    ]
    return np.stack([tree.predict(points) for tree in trees], axis=1)


def simplices_of(genes: Sequence[Gene], dimension: int) -> list[Simplex]:
    """A simplex for each group of tensors that has weights."""
    if not genes:
        return [Simplex(tuple(range(dimension)), np.zeros(dimension), np.ones(dimension))]
    groups: dict[str, list[int]] = {}
    for i, gene in enumerate(genes):
        if parameter_of(gene) == "weight":
            groups.setdefault(place_of(gene), []).append(i)
    return [
        Simplex(
            tuple(places),
            np.array([genes[i].low for i in places]),
            np.array([genes[i].high - genes[i].low for i in places]),
        )
        for places in groups.values()
    ]


def check_genes(genes: Sequence[Gene]) -> None:
    """Raises ConfigError unless every group has weights that can be a mixture."""
    simplices = simplices_of(genes, 0) if genes else []
    for simplex in simplices:
        first = genes[simplex.places[0]]
        if len(simplex.places) < 2 or any(genes[i].log for i in simplex.places):
            break
        if simplex.low.max() > 0 or (simplex.low + simplex.width).sum() < 1:
            raise ConfigError(
                f"search algorithm 'demix' draws weights of sum 1, which the ranges of "
                f"{first.name!r} and its fellows exclude; let them reach from 0 to 1"
            )
    else:
        if simplices:
            return
    found = ", ".join(dict.fromkeys(parameter_of(gene) for gene in genes))
    raise ConfigError(
        "search algorithm 'demix' takes a space with a weight for each of at least two experts, "
        f"not logarithmic, found genes: {found or 'none'}; use a space such as "
        "global-task-arithmetic, or the algorithm 'map'"
    )


def _capped(weights: FloatArray, cap: FloatArray) -> FloatArray:
    """Rows of sum 1 with none above ``cap``: what is above goes to the others, by their shares.

    Where the others have nothing it goes to them evenly.
    """
    held = np.zeros(weights.shape, dtype=bool)
    result = weights / weights.sum(axis=1, keepdims=True)
    for _ in range(weights.shape[1]):
        held |= result > cap
        free = np.where(held, 0.0, weights)
        free = np.where((free.sum(axis=1, keepdims=True) > 0) | held, free, 1.0)
        left = 1.0 - np.where(held, cap, 0.0).sum(axis=1, keepdims=True)
        total = free.sum(axis=1, keepdims=True)
        result = np.where(held, cap, free * left / np.where(total > 0, total, 1.0))
    return np.asarray(result)
