"""Gaussian processes, TPE, NSGA and CMA-ES from Optuna, in memory.

Optuna's samplers keep hidden state (generators, fitted kernels). Here each ask gets a fresh sampler
whose seed is a function of the search's seed and the candidate id, so that a proposal depends on
the told trials, the pending ones and the candidate alone; that is what makes exact resume simple.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from evomerge.errors import MissingDependency
from evomerge.search.base import Genome, OptionValue, check_replay

MODEL_BASED = ("gp", "tpe")
"""Replayed without asking again, which would fit every model of the recorded run once more.

Possible because these samplers read no more of a pending trial than its parameters; NSGA and CMA-ES
keep marks and state in it.
"""


class OptunaSearch:
    """Adapter to an Optuna study in memory."""

    def __init__(
        self,
        algorithm: str,
        seed: int,
        options: Mapping[str, OptionValue],
        dimension: int,
        objectives: int,
    ) -> None:
        import optuna

        if algorithm == "cma-es":
            _require_cmaes()
        self._algorithm = algorithm
        self._seed = seed
        self._options = options
        self._numbers: dict[int, int] = {}  # pending candidate -> number of its trial
        self._references: list[Any] = []  # trials told before the first ask
        self._asked = False
        self._box = {
            f"x{gene:06d}": optuna.distributions.FloatDistribution(0.0, 1.0)
            for gene in range(dimension)
        }
        with _quiet():
            self._study = optuna.create_study(directions=["maximize"] * objectives)

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        with _quiet():
            return [self._ask(candidate) for candidate in candidates]

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        with _quiet():
            if candidate in self._numbers:
                self._study.tell(self._numbers.pop(candidate), list(scores))
            else:
                self._add_reference(genome, scores)

    def fail(self, candidate: int) -> None:
        import optuna

        with _quiet():
            number = self._numbers.pop(candidate, None)
            if number is not None:
                self._study.tell(number, state=optuna.trial.TrialState.FAIL)

    def replay(self, candidate: int, genome: Genome) -> None:
        import optuna

        with _quiet():
            if self._algorithm not in MODEL_BASED:
                check_replay(candidate, genome, self._ask(candidate))
                return
            self._study.add_trial(self._trial(optuna.trial.TrialState.RUNNING, genome))
            self._register(candidate, len(self._study.get_trials(deepcopy=False)) - 1)

    def _ask(self, candidate: int) -> Genome:
        seed = int(np.random.SeedSequence([self._seed, candidate]).generate_state(1)[0])
        self._study.sampler = self._sampler(seed)
        trial = self._study.ask(self._box)
        self._register(candidate, trial.number)
        return tuple(float(trial.params[name]) for name in self._box)

    def _register(self, candidate: int, number: int) -> None:
        self._numbers[candidate] = number
        self._asked = True

    def _add_reference(self, genome: Genome, scores: tuple[float, ...]) -> None:
        import optuna

        # A generation mark makes a reference a parent in NSGA; other samplers ignore it.
        marks = {}
        if self._algorithm.startswith("nsga"):
            key = f"{type(self._sampler(0)).__name__}:generation"
            marks[key] = self._generation(key)
        state = optuna.trial.TrialState.COMPLETE
        trial = self._trial(state, genome, values=list(scores), system_attrs=marks)
        self._study.add_trial(trial)
        if not self._asked:
            self._references.append(trial)

    def _generation(self, key: str) -> int:
        trials = self._study.get_trials(deepcopy=False)
        return max((trial.system_attrs.get(key, 0) for trial in trials), default=0)

    def _warm_start(self) -> Any:
        """For CMA-ES: start at the best reference with a standard deviation of 0.1.

        The warm start fits a Gaussian to the best tenth of the given trials (Nomura and others
        2021, doi:10.1609/aaai.v35i10.17109), so ten copies make that tenth the best one.
        """
        if not self._references:
            return None
        return [max(self._references, key=lambda trial: trial.value)] * 10

    def _trial(self, state: Any, genome: Genome, **rest: Any) -> Any:
        import optuna

        params = dict(zip(self._box, genome, strict=True))
        return optuna.trial.create_trial(
            state=state, params=params, distributions=self._box, **rest
        )

    def _sampler(self, seed: int) -> Any:
        from optuna import samplers

        options: Any = self._options
        match self._algorithm:
            case "gp":
                return samplers.GPSampler(
                    seed=seed,
                    n_startup_trials=options["startup"],
                    deterministic_objective=options["deterministic"],
                )
            case "tpe":
                return samplers.TPESampler(
                    seed=seed,
                    n_startup_trials=options["startup"],
                    n_ei_candidates=options["candidates"],
                )
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=options["population"])
            case "nsga3":
                return samplers.NSGAIIISampler(seed=seed, population_size=options["population"])
            case "cma-es":
                return samplers.CmaEsSampler(
                    seed=seed,
                    popsize=options["population"],
                    source_trials=self._warm_start(),
                )
        raise AssertionError(self._algorithm)


def _require_cmaes() -> None:
    if importlib.util.find_spec("cmaes") is None:
        raise MissingDependency(
            "search algorithm 'cma-es' needs the package cmaes: run `pip install cmaes`, "
            "or use 'cma', which is installed"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Optuna's log and its notes on experimental features, and nothing else's."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
