"""Searches of others, in the harness's terms: general libraries and the published set-ups.

A published set-up is its space, start, algorithm and aim. Where it has one value an expert, that
is broadcast to all groups of the expert (`Tied`); where it has densities, they are searched if the
bed has such genes, otherwise only the rest of it runs, which `NOTES` says. Each takes the two aims
(mean, min) of a bed; those of one aim take the mean. What their sources fix is kept; their lengths
(hundreds of evaluations) are replaced by the bed's budget.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.search.bed import Bed
from benchmarks.search.published import LoraHub, MergekitEvolve, evo_merging
from benchmarks.search.wrappers import Generations, OneAim, Rival, Scores, Tied, clip
from evomerge.search import make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Genome, Measured, Search
from evomerge.space import Gene

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
        found = [tuple(map(clip, map(float, x))) for x in self._infills.get("X")]
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
        return tuple(clip(float(v)) for v in point[0])


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
        bed.genes, lambda g: OneAim(evo_merging(seed, g, budget), references=False)
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
