"""The published set-ups that are no library of their own, as their sources have them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.search.wrappers import (
    Generations,
    Rival,
    Scores,
    clip,
    expert_of,
    parameter_of,
    quiet,
)
from evomerge.search.base import Genome, Search
from evomerge.search.evo_merging import EvoMergingSearch
from evomerge.search.nevergrad import NevergradSearch
from evomerge.space import Gene


class MergekitEvolve(Generations):
    """pycma in the units of the genes; negative weights count by their size, as is its default."""

    def __init__(self, seed: int, genes: Sequence[Gene]) -> None:
        import cma

        super().__init__()
        self._genes = genes
        experts = {expert_of(g) for g in genes if parameter_of(g) == "weight"} or {""}
        starts = {"weight": 1.0 / len(experts), "density": 1.0}
        start = [starts.get(parameter_of(g), g.decode(0.5)) for g in genes]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._cma = cma.CMAEvolutionStrategy(start, 1 / 6, {"seed": seed + 1, "verbose": -9})

    def propose(self) -> list[Genome]:
        self._asked_points = self._cma.ask()
        return [
            tuple(clip(g.encode(abs(float(x)))) for g, x in zip(self._genes, xs, strict=True))
            for xs in self._asked_points
        ]

    def learn(self, scores: list[Scores]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._cma.tell(self._asked_points, [-s[0] for s in scores])


class Scaling(Rival):
    """Evo-Merging's second stage alone, for spaces without densities: weights from 1/N."""

    def __init__(self, seed: int, genes: Sequence[Gene]) -> None:
        self._genes = genes
        sigma = 0.05 / (genes[0].high - genes[0].low)
        options = {"sigma": sigma, "population": 20}
        self._cma = NevergradSearch("cma", seed, options, len(genes), objectives=1)
        self._cma.tell(-1, tuple(clip(g.encode(1.0 / len(genes))) for g in genes), (0.0,))

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        return self._cma.ask(candidates)

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        size = np.mean([abs(g.decode(u)) for g, u in zip(self._genes, genome, strict=True)])
        self._cma.tell(candidate, genome, (scores[0] - 0.05 * float(size),))


class LoraHub(Rival):
    """NGOpt over weights in [-1.5, 1.5], from 0; it is told the budget, as published.

    For five weights and 100 evaluations NGOpt chooses Cobyla.
    """

    def __init__(self, seed: int, genes: Sequence[Gene], budget: int) -> None:
        import nevergrad as ng

        self._genes = genes
        self._waiting: dict[int, Any] = {}
        with quiet():
            box = ng.p.Array(init=[0.0] * len(genes), lower=-1.5, upper=1.5)
            box.random_state = np.random.RandomState(seed)
            self._optimiser = ng.optimizers.NGOpt(box, budget=budget, num_workers=1)

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        found = []
        for candidate in candidates:
            with quiet():
                self._waiting[candidate] = self._optimiser.ask()
            weights = self._waiting[candidate].value
            found.append(
                tuple(clip(g.encode(float(w))) for g, w in zip(self._genes, weights, strict=True))
            )
        return found

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        proposal = self._waiting.pop(candidate)
        with quiet():
            self._optimiser.tell(proposal, -scores[0] + 0.05 * np.abs(proposal.value).mean())


def evo_merging(seed: int, genes: Sequence[Gene], budget: int) -> Search:
    """Both stages, a third and two thirds of the budget as published, if there are densities."""
    if not any(parameter_of(g) == "density" for g in genes):
        return Scaling(seed, genes)
    options = {"denoising": budget // 3, "sigma": 0.05, "population": 20, "penalty": 0.05}
    return EvoMergingSearch(seed, options, genes)
