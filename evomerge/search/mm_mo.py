"""MM-MO: Gaussian processes and expected hypervolume improvement, helped by two further rules.

Li et al. 2025, It's morphing time: unleashing the potential of multiple LLMs via multi-objective
optimization (arXiv 2407.00487). Known of it is the abstract: multi-objective Bayesian optimisation
over merging configurations; a weak-to-strong method "to enhance the acquisition function, allowing
previously evaluated superior configurations to guide the search for new ones"; Fisher information
"to screen these configurations"; and a sparsity metric as one more objective, which is the kind
`sparsity` of an objective here.

Our readings of the rest:

- A round is one point of Optuna's Gaussian processes (log expected hypervolume improvement, or
  expected improvement for one score), and else points of weak-to-strong: from a point of the front
  on, away from one that is dominated, ``s + α (s − w)`` with α uniform in [0, 1].
- Fisher information of a configuration: what its scores tell of the genes if their errors are
  Gaussian, ``Σₖ ‖∇μₖ‖² / σₖ²``, μ the sigmoid of a quadratic fitted to each score and σ² its
  residual variance. (A paper that has the model at hand can take it over the weights; a search sees
  genes and scores.) Of the points of weak-to-strong the half with more of it is kept, and of these
  some of the tenth with the best predicted scores are asked.
- The same information, by gene and in the mean over the told points, ranks the genes: the search
  moves those with most of it and leaves the others as they are in a point of the front. This also
  bounds what the Gaussian processes cost, and they are fitted to at most 200 points: the front and
  the latest ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.search import quadratic
from evomerge.search.base import Genome, OptionValue
from evomerge.search.optuna import OptunaSearch
from evomerge.search.planned import (
    FloatArray,
    Known,
    PlannedSearch,
    Rounds,
    favourites,
    generator,
    growing,
)

FITTED = 200
POOL = 32
_DESIGN, _ROUND = range(2)


def mm_mo_search(seed: int, options: Mapping[str, OptionValue], dimension: int) -> PlannedSearch:
    """`mm-mo` before any call."""
    startup, genes = int(options["startup"] or 0), int(options["genes"] or 0)

    def design(index: int) -> Genome:
        return tuple(generator(seed, _DESIGN, index).random(dimension).tolist())

    def plan(history: Sequence[Known]) -> FloatArray:
        return round_points(seed, _recent(history[-1]), genes)

    return PlannedSearch(
        Rounds(design, startup, min(startup, 3), growing(int(options["batch"] or 0)), plan)
    )


def round_points(seed: int, known: Known, genes: int) -> FloatArray:
    """The points (size, d) of a round, the Gaussian processes' first."""
    random = generator(seed, _ROUND, known.round)
    models = [quadratic.fit(known.genomes, column) for column in known.scores.T]
    information = fisher(models, known.genomes, known)
    moved = np.sort(np.argsort(-information.mean(axis=0), kind="stable")[:genes])
    strong = front_of(known.scores)
    from_here = known.genomes[strong][random.integers(len(strong))].copy()
    from_here[moved] = _improvement(seed, known, moved)
    if known.size == 1:
        return np.asarray(from_here[None])
    pool = weak_to_strong(random, known.genomes, strong, moved, POOL * known.size)
    worth = fisher(models, pool, known)[:, moved].sum(axis=1)
    pool = pool[np.argsort(-worth, kind="stable")[: len(pool) // 2]]
    predicted = np.stack([fitted.predict(pool) for fitted in models], axis=1)
    best = max(len(pool) // 10, 1)
    chosen = favourites(random, predicted, known.scores, known.size - 1, best)
    return np.vstack([from_here[None], pool[chosen]])


def fisher(models: Sequence[quadratic.Quadratic], points: FloatArray, known: Known) -> FloatArray:
    """What the scores of each point (n, d) tell of each gene: the diagonal, (n, d)."""
    total = np.zeros(points.shape)
    for fitted, column in zip(models, known.scores.T, strict=True):
        left = column - fitted.predict(known.genomes)
        variance = float(np.mean(left**2)) + 1e-6 * fitted.width**2
        total += fitted.gradient(points) ** 2 / variance
    return total


def weak_to_strong(
    random: np.random.Generator,
    genomes: FloatArray,
    strong: Sequence[int],
    moved: np.ndarray[tuple[int], np.dtype[np.int64]],
    count: int,
) -> FloatArray:
    """Points (count, d) beyond those of the front, seen from dominated ones, in the genes moved.

    Where nothing is dominated, seen from any other point.
    """
    weak = [i for i in range(len(genomes)) if i not in set(strong)] or list(range(len(genomes)))
    s = genomes[random.choice(np.array(strong), size=count)]
    w = genomes[random.choice(np.array(weak), size=count)]
    step = np.zeros_like(s)
    step[:, moved] = (random.random((count, 1)) * (s - w))[:, moved]
    return np.asarray(np.clip(s + step, 0.0, 1.0))


def front_of(scores: FloatArray) -> list[int]:
    """Which points (n, m) no other one dominates."""
    better = (scores[:, None] >= scores[None]).all(axis=2) & (scores[:, None] > scores[None]).any(
        axis=2
    )
    return [int(i) for i in np.flatnonzero(~better.any(axis=0))]


def _recent(known: Known) -> Known:
    """What the models are fitted to: the front and the latest points."""
    count = len(known.genomes)
    if count <= FITTED:
        return known
    front = front_of(known.scores)[-FITTED:]
    rest = [i for i in range(count) if i not in set(front)]
    kept = sorted(front + rest[len(rest) - (FITTED - len(front)) :])
    return Known(known.genomes[kept], known.scores[kept], known.taken, known.round, known.size)


def _improvement(
    seed: int, known: Known, moved: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> FloatArray:
    """Where the Gaussian processes over the genes moved expect the largest improvement."""
    options = {"startup": 1, "deterministic": False}
    search = OptunaSearch("gp", seed, options, len(moved), known.scores.shape[1])
    for genome, scores in zip(known.genomes, known.scores, strict=True):
        search.tell(-1, tuple(genome[moved].tolist()), tuple(scores.tolist()))
    for number, genome in enumerate(known.taken):
        search.replay(-2 - number, tuple(genome[moved].tolist()))
    (found,) = search.ask([known.round])
    return np.array(found)
