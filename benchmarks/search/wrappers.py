"""What makes searches of others searches of the harness: generations, shared genes, one aim.

Failures and replays do not occur here.
"""

from __future__ import annotations

import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from evomerge.search.base import Genome, Search
from evomerge.space import Gene

Scores = tuple[float, ...]


class Rival:
    """The parts of a Search that a benchmark never calls."""

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        raise NotImplementedError

    def fail(self, candidate: int) -> None:
        raise NotImplementedError("rivals are not told of failures")

    def replay(self, candidate: int, genome: Genome) -> None:
        raise NotImplementedError("rivals are not resumed")


class Generations(Rival):
    """A search that proposes a generation and learns when all of it is told.

    Subclasses propose points of the unit box and take the scores of all of them, in order.
    """

    def __init__(self) -> None:
        self.known: list[tuple[Genome, Scores]] = []
        self._points: list[Genome] = []
        self._asked: dict[int, int] = {}
        self._scores: dict[int, Scores] = {}

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        found = []
        for candidate in candidates:
            if len(self._asked) == len(self._points):
                if len(self._scores) < len(self._points):
                    break  # the generation is still on its way
                self._turn()
            place = len(self._asked)
            self._asked[candidate] = place
            found.append(self._points[place])
        return found

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        if candidate in self._asked:
            self._scores[self._asked[candidate]] = scores
        else:
            self.known.append((genome, scores))

    def _turn(self) -> None:
        if self._points:
            self.learn([self._scores[i] for i in range(len(self._points))])
        self._points, self._asked, self._scores = self.propose(), {}, {}

    @abstractmethod
    def propose(self) -> list[Genome]: ...

    @abstractmethod
    def learn(self, scores: list[Scores]) -> None: ...


class Tied(Rival):
    """A search over fewer genes: those of one parameter and expert share a value."""

    def __init__(self, genes: Sequence[Gene], make: Callable[[tuple[Gene, ...]], Search]) -> None:
        heads = [gene.name.split(" ")[0] for gene in genes]
        self.names = list(dict.fromkeys(heads))
        self._genes = genes
        self._places = [[i for i, h in enumerate(heads) if h == name] for name in self.names]
        firsts = [genes[places[0]] for places in self._places]
        self.genes = tuple(
            Gene(name, g.low, g.high, g.log) for name, g in zip(self.names, firsts, strict=True)
        )
        self._search = make(self.genes)
        self._points: dict[int, Genome] = {}

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        points = self._search.ask(candidates)
        self._points |= dict(zip(candidates, points, strict=False))
        return [self.spread(point) for point in points]

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        if candidate in self._points:
            self._search.tell(candidate, self._points.pop(candidate), scores)
            return
        point = tuple(genome[places[0]] for places in self._places)
        if self.spread(point) == genome:
            self._search.tell(candidate, point, scores)

    def spread(self, point: Genome) -> Genome:
        genome = [0.0] * len(self._genes)
        for value, gene, places in zip(point, self.genes, self._places, strict=True):
            for i in places:
                genome[i] = clip(self._genes[i].encode(gene.decode(value)))
        return tuple(genome)


class OneAim(Rival):
    """Gives a search of one objective the mean alone; with `references` false nothing before it."""

    def __init__(self, search: Search, references: bool = True) -> None:
        self._search = search
        self._references = references
        self._asked: set[int] = set()

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        points = self._search.ask(candidates)
        self._asked |= set(candidates[: len(points)])
        return points

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        if self._references or candidate in self._asked:
            self._search.tell(candidate, genome, scores[:1])


def clip(unit: float) -> float:
    return min(max(unit, 0.0), 1.0)


def parameter_of(gene: Gene) -> str:
    """``weight`` of ``weight[vqa] language/0/mlp``."""
    return gene.name.split(" ")[0].split("[")[0]


def expert_of(gene: Gene) -> str:
    return gene.name.partition("[")[2].partition("]")[0]


class quiet:
    """No warnings, and the global generators as they were."""

    def __enter__(self) -> None:
        self._states = random.getstate(), np.random.get_state()
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._filters.__exit__(None, None, None)
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
