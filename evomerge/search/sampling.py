"""Searches that never learn: uniform random points and scrambled Sobol points."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from evomerge.search.base import Genome, check_replay


class RandomSearch:
    """Independent uniform points; each is a function of the seed and the candidate id alone."""

    def __init__(self, seed: int, dimension: int) -> None:
        self._seed = seed
        self._dimension = dimension

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        return [self._point(candidate) for candidate in candidates]

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        """Nothing to learn."""

    def fail(self, candidate: int) -> None:
        """Nothing to learn."""

    def replay(self, candidate: int, genome: Genome) -> None:
        check_replay(candidate, genome, self._point(candidate))

    def _point(self, candidate: int) -> Genome:
        generator = np.random.default_rng([self._seed, candidate])
        return tuple(generator.random(self._dimension).tolist())


class QmcSearch:
    """Scrambled Sobol points, in the order of the asks (at most 21,201 genes)."""

    def __init__(self, seed: int, dimension: int) -> None:
        from scipy.stats.qmc import Sobol

        self._points = Sobol(dimension, scramble=True, rng=np.random.default_rng(seed))

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        return [self._next() for _ in candidates]

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        """Nothing to learn."""

    def fail(self, candidate: int) -> None:
        """Nothing to learn."""

    def replay(self, candidate: int, genome: Genome) -> None:
        check_replay(candidate, genome, self._next())

    def _next(self) -> Genome:
        with warnings.catch_warnings():
            # Sobol points are balanced only at powers of two; a search may stop anywhere.
            warnings.simplefilter("ignore", UserWarning)
            return tuple(self._points.random(1)[0].tolist())
