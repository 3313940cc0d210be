"""The algorithms of search: the table of them, their options, and settings that name one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.search.base import OptionValue, Search

if TYPE_CHECKING:
    from evomerge.space import Gene


@dataclass(frozen=True)
class Option:
    """One option of an algorithm: `None` as default means that the algorithm chooses."""

    type: type[int] | type[float] | type[bool]
    default: OptionValue
    low: float
    high: float
    help: str


Make = Callable[[int, Mapping[str, OptionValue], Sequence["Gene"], int], Search]


@dataclass(frozen=True)
class Algorithm:
    """One row of the table of algorithms."""

    name: str
    library: str
    several_objectives: bool
    help: str
    options: Mapping[str, Option]
    make: Make | None = None
    """Of a registered one: (seed, options, genes, objectives) -> Search."""


@dataclass(frozen=True)
class SearchSettings:
    """What to search with; `options` that are left out keep the defaults of the table."""

    algorithm: str
    seed: int
    options: Mapping[str, OptionValue] = field(default_factory=lambda: MappingProxyType({}))


_SIGMA = Option(float, 0.15, 1e-4, 1.0, "first standard deviation, in widths of the box")
_CMA_POPULATION = Option(int, None, 3, 10_000, "candidates a generation; by default 4 + 3 ln(d)")
_DE_POPULATION = Option(int, 30, 4, 10_000, "individuals; more workers than that would wait")
_NSGA_POPULATION = Option(int, 20, 2, 10_000, "individuals of a generation")
_STARTUP = Option(int, 10, 1, 10_000, "told points, references included, before the model is used")
_SAMPLES = Option(int, None, 1, 10_000, "samples first; by default (d+1)(d+2)/2, at most 50")
_BATCH = Option(int, 10, 1, 10_000, "points planned at once, between fits")

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm(
            "auto",
            "scipy",
            True,
            "chooses among the others by genes, items, likelihoods and budget, and says why",
            {},
        ),
        Algorithm(
            "cma",
            "nevergrad",
            True,
            "CMA-ES: learns a full covariance; starts at the best reference",
            {"sigma": _SIGMA, "population": _CMA_POPULATION},
        ),
        Algorithm(
            "diagonal-cma",
            "nevergrad",
            True,
            "CMA-ES with a diagonal covariance: for hundreds of genes",
            {"sigma": _SIGMA, "population": _CMA_POPULATION},
        ),
        Algorithm(
            "de",
            "nevergrad",
            True,
            "differential evolution: global, for budgets of several hundred",
            {"population": _DE_POPULATION},
        ),
        Algorithm(
            "two-points-de",
            "nevergrad",
            True,
            "differential evolution that keeps runs of neighbouring genes together",
            {"population": _DE_POPULATION},
        ),
        Algorithm(
            "gp",
            "optuna",
            True,
            "Bayesian optimisation with Gaussian processes: most for few evaluations",
            {
                "startup": _STARTUP,
                "deterministic": Option(bool, False, 0, 1, "scores carry no noise"),
            },
        ),
        Algorithm(
            "tpe",
            "optuna",
            True,
            "tree-structured Parzen estimator: robust against noise and failures",
            {
                "startup": _STARTUP,
                "candidates": Option(int, 24, 1, 10_000, "samples compared at each ask"),
            },
        ),
        Algorithm(
            "nsga2",
            "optuna",
            True,
            "genetic algorithm for two or three objectives and large budgets",
            {"population": _NSGA_POPULATION},
        ),
        Algorithm(
            "nsga3",
            "optuna",
            True,
            "genetic algorithm for four or more objectives and large budgets",
            {"population": _NSGA_POPULATION},
        ),
        Algorithm(
            "cma-es",
            "optuna",
            False,
            "CMA-ES for one objective, warm-started from the references (needs cmaes)",
            {"population": _CMA_POPULATION},
        ),
        Algorithm(
            "evo-merging",
            "nevergrad",
            False,
            "Evo-Merging's two stages of CMA-ES: densities first, then weights",
            {
                "denoising": Option(
                    int, 400, 1, 1_000_000, "candidates of the first stage; the rest scale"
                ),
                "sigma": Option(
                    float, 0.05, 1e-4, 1.0, "first standard deviation, in units of the genes"
                ),
                "population": Option(int, 20, 3, 10_000, "candidates a generation"),
                "penalty": Option(
                    float, 0.05, 0.0, 1e6, "taken off the score for each unit of mean |gene|"
                ),
            },
        ),
        Algorithm(
            "map",
            "numpy",
            True,
            "MAP: a sigmoid of a quadratic for each score, and the front that they predict",
            {"samples": _SAMPLES, "batch": _BATCH},
        ),
        Algorithm(
            "map-bayesian",
            "numpy",
            True,
            "MAP that samples again where its models err most; for up to about six genes",
            {
                "samples": _SAMPLES,
                "batch": _BATCH,
                "updates": Option(int, 3, 0, 1000, "rounds of samples before the first front"),
            },
        ),
        Algorithm(
            "map-nested",
            "numpy",
            True,
            "MAP of two experts at a time, then of what was merged; for eight experts or more",
            {"samples": Option(int, 20, 3, 10_000, "samples a pair"), "batch": _BATCH},
        ),
        Algorithm(
            "mm-mo",
            "optuna",
            True,
            "MM-MO: Gaussian processes, and steps on from what was good; screened genes",
            {
                "startup": Option(int, 10, 1, 10_000, "samples first"),
                "batch": Option(int, 10, 1, 10_000, "points planned at once; one by the processes"),
                "genes": Option(int, 20, 1, 1000, "genes moved in a round, by Fisher information"),
            },
        ),
        Algorithm(
            "demix",
            "scikit-learn",
            True,
            "DeMix: weights on the simplex, boosted trees that predict their scores",
            {
                "samples": Option(int, 30, 1, 10_000, "mixtures drawn first"),
                "batch": _BATCH,
                "pool": Option(int, 10_000, 100, 1_000_000, "mixtures predicted a round"),
            },
        ),
        Algorithm(
            "guided",
            "scipy",
            True,
            "probes by likelihood on a few items, with slopes where a model gives them",
            {
                "probes": Option(
                    int,
                    None,
                    0,
                    10_000,
                    "for each scored candidate; by default 20, with slopes 4",
                ),
                "startup": Option(
                    int, None, 1, 10_000, "probes before the first; by default 60, with slopes 20"
                ),
                "step": Option(
                    float, None, 1e-3, 10.0, "of a probe, a gene; by default 0.2, with slopes 0.1"
                ),
                "radius": Option(
                    float, None, 1e-3, 100.0, "of a step; by default 0.77, with slopes 1.5"
                ),
                "signal": Option(bool, True, 0, 1, "probe by likelihoods, where there are any"),
                "slopes": Option(bool, True, 0, 1, "and by their slopes, where a model gives any"),
                "structure": Option(bool, True, 0, 1, "genes of an expert or place go together"),
            },
        ),
        Algorithm("random", "numpy", True, "independent uniform points: the baseline", {}),
        Algorithm("qmc", "scipy", True, "scrambled Sobol points: an even cover of the box", {}),
    )
}


def register_search(
    name: str, make: Make, help: str, options: Mapping[str, Option] | None = None
) -> None:
    """Makes a search of one's own known by its name; experiments then take it like the others.

    ``make(seed, options, genes, objectives)`` gives the search before any call.
    """
    if name in ALGORITHMS:
        raise ValueError(f"search algorithm {name!r} is registered twice")
    ALGORITHMS[name] = Algorithm(name, "own", True, help, dict(options or {}), make)


def check_settings(
    settings: SearchSettings, objectives: int
) -> tuple[Algorithm, Mapping[str, OptionValue]]:
    """The algorithm that `settings` name and all its options, if it takes so many objectives.

    Raises ConfigError for an unknown algorithm or option, a value out of range, or several
    objectives where the algorithm takes one.
    """
    algorithm = find_algorithm(settings.algorithm)
    options = _options(algorithm, settings.options)
    if settings.seed < 0:
        raise ConfigError(f"search seed {settings.seed}: expected 0 or greater; give another seed")
    if objectives > 1 and not algorithm.several_objectives:
        raise ConfigError(
            f"search algorithm {algorithm.name!r} takes one objective, not {objectives}; "
            "use 'cma' or 'gp', or combine the objectives into one by weights"
        )
    return algorithm, options


def find_algorithm(name: str) -> Algorithm:
    """The table's row of that name; raises ConfigError with the nearest name."""
    if name not in ALGORITHMS:
        raise ConfigError(
            f"search algorithm {name!r} is unknown; {did_you_mean(name, list(ALGORITHMS))}"
        )
    return ALGORITHMS[name]


def _options(algorithm: Algorithm, given: Mapping[str, OptionValue]) -> Mapping[str, OptionValue]:
    for name, value in given.items():
        if name not in algorithm.options:
            raise ConfigError(
                f"search algorithm {algorithm.name!r} has no option {name!r}; "
                f"{did_you_mean(name, list(algorithm.options))}"
            )
        _check_option(algorithm.name, name, algorithm.options[name], value)
    return {name: option.default for name, option in algorithm.options.items()} | dict(given)


def _check_option(algorithm: str, name: str, option: Option, value: OptionValue) -> None:
    if value is None and option.default is None:
        return
    accepted = (int, float) if option.type is float else (option.type,)
    # bool is a subclass of int, but `population: true` is a mistake.
    mistaken_bool = isinstance(value, bool) and option.type is not bool
    if not isinstance(value, accepted) or mistaken_bool or not option.low <= value <= option.high:
        expected = (
            "true or false"
            if option.type is bool
            else f"{option.type.__name__} from {option.low:g} to {option.high:g}"
        )
        raise ConfigError(
            f"search option {algorithm}.{name} is {value!r}; expected {expected} ({option.help})"
        )
