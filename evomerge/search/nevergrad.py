"""CMA-ES and differential evolution from nevergrad.

Each optimiser is named: nevergrad's NGOpt would silently choose another one by budget and workers.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.search.base import Genome, OptionValue, check_replay

FloatArray = NDArray[np.float64]


class NevergradSearch:
    """Adapter to nevergrad's ask and tell.

    The optimiser is created at the first ask, because the references told before it decide where
    it starts. It is deterministic given its seed, so `replay` asks again and compares. A reference
    told later joins the next generation of CMA, and is left out by differential evolution.
    """

    def __init__(
        self,
        algorithm: str,
        seed: int,
        options: Mapping[str, OptionValue],
        dimension: int,
        objectives: int,
    ) -> None:
        self._algorithm = algorithm
        self._seed = seed
        self._options = options
        self._dimension = dimension
        self._objectives = objectives
        self._references: list[tuple[Genome, tuple[float, ...]]] = []
        self._pending: dict[int, Any] = {}
        self._optimiser: Any = None
        self._bounded = False  # whether the origin of the hypervolume is set

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        genomes: list[Genome] = []
        if not candidates:
            return genomes
        with _quiet():
            self._start()
            for candidate in candidates:
                if self._everyone_is_waiting():
                    break
                proposal = self._optimiser.ask()
                self._pending[candidate] = proposal
                genomes.append(tuple(np.clip(proposal.value, 0.0, 1.0).tolist()))
        return genomes

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        if self._optimiser is None:
            self._references.append((genome, scores))
            return
        proposal = self._pending.pop(candidate, None)
        if proposal is None and self._is_de:
            # Nevergrad would drop an individual for it, chosen by the order of a set (another in
            # each process), whose child may still be waiting.
            return
        with _quiet():
            self._tell(self._point(genome) if proposal is None else proposal, scores)

    def fail(self, candidate: int) -> None:
        proposal = self._pending.pop(candidate, None)
        if self._is_de and proposal is not None:
            # The parent keeps its place and may have another child; CMA samples as many
            # points as it needs and never waits.
            self._optimiser._uid_queue.tell(proposal.heritage["lineage"])

    def replay(self, candidate: int, genome: Genome) -> None:
        for proposed in self.ask([candidate]) or [()]:
            check_replay(candidate, genome, proposed)

    @property
    def _is_de(self) -> bool:
        return self._algorithm.endswith("de")

    def _start(self) -> None:
        if self._optimiser is not None:
            return
        import nevergrad as ng

        box = ng.p.Array(init=best_reference(self._references, self._dimension))
        box.set_mutation(sigma=self._options.get("sigma", 0.15))
        # Clipping also moves the optimiser's own copy of the point to the border, so that it
        # learns from exactly what was scored; no mirrored images (bouncing), and no stretched
        # borders that are never reached (arctan).
        box.set_bounds(0.0, 1.0, method="clipping", full_range_sampling=True)
        box.random_state = np.random.RandomState(_state(self._seed))
        make = self._family(ng)
        # Neither the budget nor the number of workers is told: they may change when a study is
        # resumed, and the optimiser would then propose something else.
        self._optimiser = make(box)
        self._tell_references()

    def _family(self, ng: Any) -> Any:
        families = ng.families
        if self._is_de:
            crossover = "twopoints" if self._algorithm == "two-points-de" else 0.5
            population = int(self._options["population"] or 0)
            return families.DifferentialEvolution(crossover=crossover, popsize=population)
        # Nevergrad shrinks the first step of a bounded CMA by these factors; undone here.
        shrinkage = 0.3 if self._dimension < 18 else 0.15
        return families.ParametrizedCMA(
            scale=1.0 / shrinkage,
            popsize=self._options["population"],
            diagonal=self._algorithm == "diagonal-cma",
        )

    def _tell_references(self) -> None:
        if self._references and self._objectives > 1:
            self._bound(np.min([scores for _, scores in self._references], axis=0))
        if self._is_de:
            # References become individuals. CMA only starts at the best of them: its update
            # presumes samples of its own distribution, and far references would inflate it.
            for genome, scores in self._references[: self._optimiser.llambda]:
                self._tell(self._point(genome), scores)

    def _tell(self, proposal: Any, scores: tuple[float, ...]) -> None:
        if self._objectives == 1:
            self._optimiser.tell(proposal, -scores[0])
            return
        self._bound(np.array(scores))
        self._optimiser.tell(proposal, [-score for score in scores])

    def _bound(self, worst: FloatArray) -> None:
        """Sets the origin of the hypervolume (scores), once.

        Without it nevergrad calls the first fifteen points equally good while it estimates one.
        """
        import nevergrad as ng

        if not self._bounded:
            self._optimiser.tell(ng.p.MultiobjectiveReference(), (-worst).tolist())
            self._bounded = True

    def _point(self, genome: Genome) -> Any:
        point = self._optimiser.parametrization.spawn_child(new_value=np.array(genome))
        point.heritage["lineage"] = point.uid
        return point

    def _everyone_is_waiting(self) -> bool:
        """Whether each individual of a full DE population has a child whose score is awaited."""
        if not self._is_de or len(self._optimiser.population) < self._optimiser.llambda:
            return False
        return not self._optimiser._uid_queue.told and bool(self._pending)


def best_reference(
    references: Sequence[tuple[Genome, tuple[float, ...]]], dimension: int
) -> FloatArray:
    """Where to start: the reference with the largest sum of scores, or the middle of the box.

    Each objective is first scaled to its range among the references, so that units do not matter;
    no other reference dominates the chosen one. Returns shape (dimension,), float64.
    """
    if not references:
        return np.full(dimension, 0.5)
    scores = np.array([scores for _, scores in references], dtype=np.float64)
    width = np.ptp(scores, axis=0)
    scaled = (scores - scores.min(axis=0)) / np.where(width > 0, width, 1.0)
    return np.array(references[int(np.argmax(scaled.sum(axis=1)))][0])


def _state(seed: int) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps nevergrad to itself: no warnings, and the global generators as they were.

    It warns of its own imports and of small budgets, and draws from the global generators when it
    is imported and its classes try themselves out; what is proposed does not depend on that.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
