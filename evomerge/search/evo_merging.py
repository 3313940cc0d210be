"""Evo-Merging's search: which entries of the experts to keep, then how much of each expert.

Chen et al. 2025, Black-box Model Merging for Language-Model-as-a-Service (arXiv 2509.12951). It
sees nothing of the models but scores. Two runs of CMA-ES follow each other:

1. sparsity-based denoising: the densities, from 1, with every weight at 1/N; it minimises
   loss + 0.05 · mean |density|;
2. sign-aware scaling: the weights, which may be negative, from 1/N, with the densities of the best
   candidate so far; it minimises loss + 0.05 · mean |weight|.

The loss is the negated score. Published lengths are 400 and 800 candidates, in generations of 20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import ConfigError
from evomerge.search.base import Genome, OptionValue, check_replay
from evomerge.search.names import expert_of, parameter_of
from evomerge.search.nevergrad import NevergradSearch

if TYPE_CHECKING:
    from evomerge.space import Gene

STAGES = ("density", "weight")


class EvoMergingSearch:
    """Adapter with the two stages; reference points are not learned from, as published.

    The second stage begins when every candidate of the first is told or has failed: until then an
    ask gives nothing.
    """

    def __init__(
        self, seed: int, options: Mapping[str, OptionValue], genes: Sequence[Gene]
    ) -> None:
        self._genes = genes
        self._places = check_genes(genes)
        self._options = {n: float(value) for n, value in options.items() if value is not None}
        self._seed = seed
        self._waiting: set[int] = set()
        self._asked = 0
        self._best: tuple[float, Genome] | None = None  # the least penalised loss of the stage
        experts = {expert_of(genes[i]) for i in self._places[1]}
        starts = (1.0, 1.0 / len(experts))
        self._point = [0.5] * len(genes)
        for places, start in zip(self._places, starts, strict=True):
            for i in places:
                self._point[i] = min(max(genes[i].encode(start), 0.0), 1.0)
        self._begin(0)

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        genomes: list[Genome] = []
        for candidate in candidates:
            if self._stage == 0 and self._asked >= self._options["denoising"]:
                if self._waiting:
                    break
                if self._best is not None:
                    self._point = list(self._best[1])
                self._begin(1)
            genomes.append(self._propose(candidate))
        return genomes

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        if candidate not in self._waiting:
            return
        self._waiting.remove(candidate)
        places = self._places[self._stage]
        size = np.mean([abs(self._genes[i].decode(genome[i])) for i in places])
        loss = -scores[0] + self._options["penalty"] * float(size)
        if self._best is None or loss < self._best[0]:
            self._best = (loss, genome)
        self._cma.tell(candidate, tuple(genome[i] for i in places), (-loss,))

    def fail(self, candidate: int) -> None:
        if candidate in self._waiting:
            self._waiting.remove(candidate)
            self._cma.fail(candidate)

    def replay(self, candidate: int, genome: Genome) -> None:
        for proposed in self.ask([candidate]) or [()]:
            check_replay(candidate, genome, proposed)

    def _begin(self, stage: int) -> None:
        """Starts CMA-ES over the genes of a stage, from where they are now."""
        self._stage, self._best = stage, None
        places = self._places[stage]
        gene = self._genes[places[0]]
        options = {
            "sigma": self._options["sigma"] / (gene.high - gene.low),
            "population": int(self._options["population"]),
        }
        seed = int(np.random.SeedSequence([self._seed, stage]).generate_state(1)[0])
        self._cma = NevergradSearch("cma", seed, options, len(places), objectives=1)
        self._cma.tell(-1, tuple(self._point[i] for i in places), (0.0,))  # where it starts

    def _propose(self, candidate: int) -> Genome:
        (moved,) = self._cma.ask([candidate])
        point = list(self._point)
        for i, value in zip(self._places[self._stage], moved, strict=True):
            point[i] = value
        self._asked += 1
        self._waiting.add(candidate)
        return tuple(point)


def check_genes(genes: Sequence[Gene]) -> tuple[tuple[int, ...], ...]:
    """The places of the densities and of the weights among the genes.

    Raises:
        ConfigError: there are other genes, fewer than two of a kind, or logarithmic ones.
    """
    kinds = [parameter_of(gene) for gene in genes]
    places = tuple(tuple(i for i, kind in enumerate(kinds) if kind == stage) for stage in STAGES)
    if set(kinds) != set(STAGES) or min(map(len, places)) < 2 or any(g.log for g in genes):
        found = ", ".join(f"{kinds.count(kind)} of {kind}" for kind in dict.fromkeys(kinds))
        raise ConfigError(
            "search algorithm 'evo-merging' takes a space of densities and weights, at least two "
            f"of each and none logarithmic, found genes: {found or 'none'}; use the space "
            "evo-merging, or the algorithm 'cma'"
        )
    return places
