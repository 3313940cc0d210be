"""Every algorithm keeps every promise of the Search protocol."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import pytest

from evomerge.search import make_search, testing
from evomerge.search.algorithms import ALGORITHMS, SearchSettings
from evomerge.search.base import Search
from evomerge.search.guided import GuidedSearch
from evomerge.space import Gene

HAS_CMAES = importlib.util.find_spec("cmaes") is not None
SMALL = {"population": 8}
FAST = {"gp": {"startup": 4}, "tpe": {"startup": 5}} | dict.fromkeys(
    ("de", "two-points-de", "nsga2", "nsga3"), SMALL
)
FAST["evo-merging"] = {"denoising": 12, "population": 4}
FAST |= {name: {"samples": 6, "batch": 6} for name in ("map", "map-bayesian", "map-nested")}
FAST["map-bayesian"] |= {"updates": 1}
FAST["mm-mo"] = {"startup": 4, "batch": 4}
FAST["demix"] = {"samples": 4, "batch": 8, "pool": 100}
FAST["guided"] = {"startup": 4}
SLOW = {"gp": 5, "auto": 5, "mm-mo": 5, "demix": 12, "guided": 20}
DIMENSION = 4
GENES = [
    Gene(f"{name}[{expert}]", low, high, log=False)
    for name, low, high in (("density", 0.0, 1.0), ("weight", -1.5, 1.5))
    for expert in "ab"
]


class Case(NamedTuple):
    algorithm: str
    objectives: int
    asks: int
    slopes: bool = False

    def make(self, seed: int) -> Search:
        settings = SearchSettings(self.algorithm, seed, FAST.get(self.algorithm, {}))
        if not self.slopes:
            return make_search(settings, DIMENSION, self.objectives, GENES)
        known = testing.Shown.measured(self.objectives)
        search = make_search(settings, DIMENSION, self.objectives, GENES, known)
        assert isinstance(search, GuidedSearch)
        return testing.Shown(search, self.objectives)


def cases() -> list[Case]:
    """Gaussian processes, which `auto` chooses too where no items are known, get few asks."""
    return [
        Case(algorithm.name, objectives, SLOW.get(algorithm.name, 30))
        for algorithm in ALGORITHMS.values()
        for objectives in ((1, 2) if algorithm.several_objectives else (1,))
        if algorithm.name != "cma-es" or HAS_CMAES
    ] + [Case("guided", objectives, 30, slopes=True) for objectives in (1, 2)]


each_case = pytest.mark.parametrize(
    "case",
    cases(),
    ids=lambda case: f"{case.algorithm}{'-slopes' * case.slopes}-{case.objectives}",
)


@each_case
@pytest.mark.parametrize(
    "check",
    [
        testing.check_proposals_lie_in_the_box,
        testing.check_seed_decides,
        testing.check_replay_is_exact,
        testing.check_global_generators_are_untouched,
    ],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_it_keeps_its_promise(case: Case, check: Callable[..., None]) -> None:
    check(case.make, DIMENSION, case.objectives, asks=case.asks)


@each_case
def test_failures_never_block(case: Case) -> None:
    testing.check_failures_never_block(case.make, DIMENSION, case.objectives)


@each_case
@pytest.mark.parametrize(
    "check",
    [testing.check_batches_equal_single_asks, testing.check_unasked_tells_are_welcome],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_it_takes_what_engines_do(case: Case, check: Callable[..., None]) -> None:
    check(case.make, DIMENSION, case.objectives)


@each_case
def test_replay_notices_another_run(case: Case) -> None:
    if case.algorithm in ("gp", "tpe", "guided", "auto"):
        pytest.skip("replays without asking again, so it cannot see the difference")
    testing.check_replay_notices_another_run(case.make, DIMENSION, case.objectives)


@each_case
def test_it_learns(case: Case) -> None:
    few = {"gp": (8, (1,)), "mm-mo": (24, (1, 2, 3)), "tpe": (40, (1, 2)), "demix": (24, (1, 2, 3))}
    few |= {name: (24, (1, 2, 3)) for name in ("map", "map-bayesian", "map-nested", "guided")}
    few["auto"] = (16, (1,))
    asks, seeds = few.get(case.algorithm, (100, (1, 2, 3)))
    if case.algorithm in ("random", "qmc"):
        pytest.skip("samples without learning")
    testing.check_it_learns(case.make, DIMENSION, case.objectives, asks, seeds)
