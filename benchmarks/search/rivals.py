"""Searches of others, in the harness's terms: general libraries and the published set-ups.

A published set-up is its space, start, algorithm and aim. Where it has one value an expert, that
is broadcast to all groups of the expert (`Tied`); where it has densities, they are searched if the
bed has such genes, otherwise only the rest of it runs, which `NOTES` says. Each takes the two aims
(mean, min) of a bed; those of one aim take the mean. What their sources fix is kept; their lengths
(hundreds of evaluations) are replaced by the bed's budget.

Failures and replays do not occur here.
"""

from __future__ import annotations

import importlib.util
import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.bed import Bed
from evomerge.search import make_search
from evomerge.search.base import Genome, Measured, Search, SearchSettings
from evomerge.search.evo_merging import EvoMergingSearch
from evomerge.search.nevergrad import NevergradSearch
from evomerge.space import Gene

Array = NDArray[np.float64]
Scores = tuple[float, ...]

POPULATION = 20
"""Of genetic algorithms: the libraries' 100 would be a whole budget of random points."""

STARTUP = 10
"""Sobol points, beside the references, before a Gaussian process is used."""

CPU = "one weight an expert, broadcast to its groups"
NOTES = {
    "pymoo-nsga2": f"population {POPULATION}; the references are in the first one",
    "qlognehvi": f"BoTorch; references and {STARTUP} Sobol points first",
    "mergekit-evolve": "pycma, sigma 1/6, from weights 1/N, maximises the mean",
    "mergenetic-ga": f"{CPU}; pymoo GA of the mean, population {POPULATION}",
    "mergenetic-nsga2": f"{CPU}; pymoo NSGA-II, population {POPULATION}",
    "evo-merging": f"{CPU}; without density genes its second stage alone",
    "lorahub": f"{CPU}, in [-1.5, 1.5] cut to the box; nevergrad's NGOpt from 0, L1 penalty 0.05",
    "map-tied": f"{CPU}; evomerge's reading of MAP",
}


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
                genome[i] = _clip(self._genes[i].encode(gene.decode(value)))
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


class MergekitEvolve(Generations):
    """pycma in the units of the genes; negative weights count by their size, as is its default."""

    def __init__(self, seed: int, genes: Sequence[Gene]) -> None:
        import cma

        super().__init__()
        self._genes = genes
        experts = {_expert(g) for g in genes if _parameter(g) == "weight"} or {""}
        starts = {"weight": 1.0 / len(experts), "density": 1.0}
        start = [starts.get(_parameter(g), g.decode(0.5)) for g in genes]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._cma = cma.CMAEvolutionStrategy(start, 1 / 6, {"seed": seed + 1, "verbose": -9})

    def propose(self) -> list[Genome]:
        self._asked_points = self._cma.ask()
        return [
            tuple(_clip(g.encode(abs(float(x)))) for g, x in zip(self._genes, xs, strict=True))
            for xs in self._asked_points
        ]

    def learn(self, scores: list[Scores]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._cma.tell(self._asked_points, [-s[0] for s in scores])


class Pymoo(Generations):
    """A genetic algorithm of pymoo over the unit box; `aims` 1 takes the mean alone."""

    def __init__(self, kind: str, seed: int, dimension: int, aims: int, warm: bool) -> None:
        super().__init__()
        self._kind, self._seed, self._dimension = kind, seed, dimension
        self._aims, self._warm = aims, warm
        self._algorithm: Any = None

    def propose(self) -> list[Genome]:
        if self._algorithm is None:
            self._start()
        self._infills = self._algorithm.ask()
        found = [tuple(map(_clip, map(float, x))) for x in self._infills.get("X")]
        self._free = {i: dict(self.known).get(x) for i, x in enumerate(found)} if self._warm else {}
        self._open = [i for i in range(len(found)) if self._free.get(i) is None]
        if not self._open:  # a generation of references alone costs nothing
            self.learn([])
            return self.propose()
        return [found[i] for i in self._open]

    def learn(self, scores: list[Scores]) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        told = dict(zip(self._open, scores, strict=True)) | {
            i: s for i, s in self._free.items() if s is not None
        }
        values = np.array([[-v for v in told[i][: self._aims]] for i in range(len(told))])
        Evaluator().eval(StaticProblem(self._problem, F=values), self._infills)
        self._algorithm.tell(infills=self._infills)

    def _start(self) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import Problem

        self._problem = Problem(n_var=self._dimension, n_obj=self._aims, xl=0.0, xu=1.0)
        make = NSGA2 if self._kind == "nsga2" else GA
        options: dict[str, Any] = {"pop_size": POPULATION}
        if self._warm:
            rng = np.random.default_rng(self._seed)
            first = np.array([genome for genome, _ in self.known][:POPULATION])
            rest = rng.random((POPULATION - len(first), self._dimension))
            options["sampling"] = np.vstack((first.reshape(-1, self._dimension), rest))
        self._algorithm = make(**options)
        self._algorithm.setup(
            self._problem, termination=("n_gen", 10**9), seed=self._seed, verbose=False
        )


class LogNEHVI(Rival):
    """BoTorch's qLogNEHVI, one point at a time, with those that are waiting as pending.

    One GP with BoTorch's default priors for each aim, noise inferred; the reference point is
    BoTorch's inference from the told front.
    """

    def __init__(self, seed: int, dimension: int) -> None:
        from scipy.stats.qmc import Sobol

        self._seed, self._dimension = seed, dimension
        self._first = Sobol(dimension, scramble=True, rng=np.random.default_rng(seed))
        self._sampled = 0
        self._told: list[tuple[Genome, Scores]] = []
        self._waiting: dict[int, Genome] = {}
        self._fitted: Any = None

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        found = []
        for candidate in candidates:
            point = self._sample() if self._sampled < STARTUP else self._acquire(candidate)
            self._waiting[candidate] = point
            found.append(point)
        return found

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        self._waiting.pop(candidate, None)
        self._told.append((genome, scores))

    def _sample(self) -> Genome:
        self._sampled += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return tuple(map(float, self._first.random(1)[0]))

    def _acquire(self, candidate: int) -> Genome:
        import torch
        from botorch.acquisition.multi_objective.logei import (
            qLogNoisyExpectedHypervolumeImprovement,
        )
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import ModelListGP, SingleTaskGP
        from botorch.models.transforms import Standardize
        from botorch.optim import optimize_acqf
        from botorch.sampling import SobolQMCNormalSampler
        from botorch.utils.multi_objective.hypervolume import infer_reference_point
        from botorch.utils.multi_objective.pareto import is_non_dominated
        from gpytorch.mlls import SumMarginalLogLikelihood

        seed = int(np.random.SeedSequence([self._seed, candidate]).generate_state(1)[0] % 2**31)
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            x = torch.tensor([g for g, _ in self._told], dtype=torch.float64)
            y = torch.tensor([s for _, s in self._told], dtype=torch.float64)
            columns = [y[:, k : k + 1] for k in range(y.shape[1])]
            model = ModelListGP(
                *(SingleTaskGP(x, c, outcome_transform=Standardize(m=1)) for c in columns)
            )
            if self._fitted is not None:  # where the last fit ended: far fewer steps
                model.load_state_dict(self._fitted, strict=False)
            mll = SumMarginalLogLikelihood(model.likelihood, model)
            fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 50}})
            hyper = model.named_parameters()
            self._fitted = {name: value.detach().clone() for name, value in hyper}
            front = y[is_non_dominated(y)]
            pending = list(self._waiting.values())
            acquisition = qLogNoisyExpectedHypervolumeImprovement(
                model,
                ref_point=infer_reference_point(front),
                X_baseline=x,
                sampler=SobolQMCNormalSampler(torch.Size([64]), seed=seed),
                X_pending=torch.tensor(pending, dtype=torch.float64) if pending else None,
                prune_baseline=True,
            )
            box = torch.stack((torch.zeros(x.shape[1]), torch.ones(x.shape[1]))).double()
            point, _ = optimize_acqf(
                acquisition,
                bounds=box,
                q=1,
                num_restarts=4,
                raw_samples=128,
                options={"maxiter": 50},
            )
        return tuple(_clip(float(v)) for v in point[0])


class Scaling(Rival):
    """Evo-Merging's second stage alone, for spaces without densities: weights from 1/N."""

    def __init__(self, seed: int, genes: Sequence[Gene]) -> None:
        self._genes = genes
        sigma = 0.05 / (genes[0].high - genes[0].low)
        options = {"sigma": sigma, "population": 20}
        self._cma = NevergradSearch("cma", seed, options, len(genes), objectives=1)
        self._cma.tell(-1, tuple(_clip(g.encode(1.0 / len(genes))) for g in genes), (0.0,))

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
        with _quiet():
            box = ng.p.Array(init=[0.0] * len(genes), lower=-1.5, upper=1.5)
            box.random_state = np.random.RandomState(seed)
            self._optimiser = ng.optimizers.NGOpt(box, budget=budget, num_workers=1)

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        found = []
        for candidate in candidates:
            with _quiet():
                self._waiting[candidate] = self._optimiser.ask()
            weights = self._waiting[candidate].value
            found.append(
                tuple(_clip(g.encode(float(w))) for g, w in zip(self._genes, weights, strict=True))
            )
        return found

    def tell(self, candidate: int, genome: Genome, scores: Scores) -> None:
        proposal = self._waiting.pop(candidate)
        with _quiet():
            self._optimiser.tell(proposal, -scores[0] + 0.05 * np.abs(proposal.value).mean())


def _evo_merging(seed: int, genes: Sequence[Gene], budget: int) -> Search:
    """Both stages, a third and two thirds of the budget as published, if there are densities."""
    if not any(_parameter(g) == "density" for g in genes):
        return Scaling(seed, genes)
    options = {"denoising": budget // 3, "sigma": 0.05, "population": 20, "penalty": 0.05}
    return EvoMergingSearch(seed, options, genes)


Make = Callable[[Bed, int, int, Measured], Search]
"""(bed, seed, full evaluations of the budget, how candidates are measured) -> a fresh search."""


def _tied_map(bed: Bed, seed: int, budget: int, measured: Measured) -> Search:
    def make(genes: tuple[Gene, ...]) -> Search:
        return make_search(SearchSettings("map", seed), len(genes), 2, genes, measured)

    return Tied(bed.genes, make)


def _tied_pymoo(kind: str, aims: int) -> Make:
    def make(bed: Bed, seed: int, budget: int, measured: Measured) -> Search:
        return Tied(bed.genes, lambda g: Pymoo(kind, seed, len(g), aims, warm=False))

    return make


RIVALS: Mapping[str, Make] = {
    "pymoo-nsga2": lambda bed, seed, budget, _: Pymoo("nsga2", seed, len(bed.genes), 2, warm=True),
    "qlognehvi": lambda bed, seed, budget, _: LogNEHVI(seed, len(bed.genes)),
    "mergekit-evolve": lambda bed, seed, budget, _: MergekitEvolve(seed, bed.genes),
    "mergenetic-ga": _tied_pymoo("ga", 1),
    "mergenetic-nsga2": _tied_pymoo("nsga2", 2),
    "evo-merging": lambda bed, seed, budget, _: Tied(
        bed.genes, lambda g: OneAim(_evo_merging(seed, g, budget), references=False)
    ),
    "lorahub": lambda bed, seed, budget, _: Tied(
        bed.genes, lambda g: OneAim(LoraHub(seed, g, budget), references=False)
    ),
    "map-tied": _tied_map,
}

NEEDS = {
    "pymoo-nsga2": "pymoo",
    "mergenetic-ga": "pymoo",
    "mergenetic-nsga2": "pymoo",
    "qlognehvi": "botorch",
    "mergekit-evolve": "cma",
}


def missing(name: str) -> str | None:
    """The library that a rival needs and that is not installed."""
    library = NEEDS.get(name)
    found = library is None or importlib.util.find_spec(library) is not None
    return None if found else library


def _clip(unit: float) -> float:
    return min(max(unit, 0.0), 1.0)


def _parameter(gene: Gene) -> str:
    """``weight`` of ``weight[vqa] language/0/mlp``."""
    return gene.name.split(" ")[0].split("[")[0]


def _expert(gene: Gene) -> str:
    return gene.name.partition("[")[2].partition("]")[0]


class _quiet:
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
