"""What is particular to the nevergrad searches."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.search import make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.nevergrad import best_reference

BOTH_CMA = pytest.mark.parametrize("algorithm", ["cma", "diagonal-cma"])


def first_generation(
    algorithm: str, dimension: int, told: float | None, **options: float
) -> NDArray[np.float64]:
    settings = SearchSettings(algorithm, 1, {"population": 400, **options})
    search = make_search(settings, dimension, objectives=1)
    if told is not None:
        search.tell(0, (told,) * dimension, (1.0,))
        search.tell(1, (1.0,) * dimension, (0.5,))
    return np.array(search.ask(range(2, 402)))


@BOTH_CMA
@pytest.mark.parametrize("dimension", [2, 17, 18, 40])  # nevergrad changes its scale at 18
def test_cma_starts_around_the_best_reference_with_sigma(algorithm: str, dimension: int) -> None:
    points = first_generation(algorithm, dimension, told=0.4, sigma=0.05)
    assert points.mean() == pytest.approx(0.4, abs=0.01)
    assert points.std() == pytest.approx(0.05, rel=0.1)


@BOTH_CMA
def test_cma_starts_in_the_middle_without_references(algorithm: str) -> None:
    points = first_generation(algorithm, 5, told=None, sigma=0.05)
    assert points.mean() == pytest.approx(0.5, abs=0.01)


def test_cma_at_a_corner_stays_in_the_box_and_is_not_mirrored_into_it() -> None:
    points = first_generation("cma", 5, told=0.0, sigma=0.1)
    assert points.min() == 0.0
    assert np.mean(points == 0.0) == pytest.approx(0.5, abs=0.05)


def test_cma_finds_an_optimum_on_the_border() -> None:
    search = make_search(SearchSettings("cma", 1), dimension=5, objectives=1)
    best = -np.inf
    for candidate in range(150):
        (genome,) = search.ask([candidate])
        score = -float(np.sum((np.array(genome) - [0.0, 0.0, 1.0, 1.0, 0.5]) ** 2))
        search.tell(candidate, genome, (score,))
        best = max(best, score)
    assert best > -0.01


def test_best_reference_ignores_units_and_is_not_dominated() -> None:
    # By plain sums the first would win by its second objective, which is counted in thousands.
    references = [
        ((0.1,), (0.2, -1000.0)),
        ((0.2,), (0.9, -1100.0)),
        ((0.3,), (0.8, -1100.0)),
        ((0.4,), (0.0, -2000.0)),
    ]
    assert best_reference(references, 1).tolist() == [0.2]
    assert best_reference([], 2).tolist() == [0.5, 0.5]
    assert best_reference([((0.3,), (1.0, 1.0))], 1).tolist() == [0.3]


@pytest.mark.parametrize("algorithm", ["de", "two-points-de"])
def test_de_proposes_fewer_while_every_individual_waits(algorithm: str) -> None:
    search = make_search(SearchSettings(algorithm, 1, {"population": 6}), 4, objectives=2)
    genomes = search.ask(range(10))
    assert len(genomes) == 6
    assert search.ask([10]) == []
    search.fail(3)
    assert len(search.ask([10, 11])) == 1
    search.tell(4, genomes[4], (1.0, 1.0))
    assert len(search.ask([11])) == 1


def test_de_takes_references_into_its_population() -> None:
    search = make_search(SearchSettings("de", 1, {"population": 6}), 4, objectives=1)
    for candidate in range(4):
        search.tell(candidate, (0.2 * candidate,) * 4, (0.0,))
    search.ask(range(4, 6))  # fills the population
    # The next is a child of the first reference (its crossover keeps some of the parent's genes).
    assert 0.0 in search.ask([6])[0]


def test_asking_for_nothing_does_not_start_the_search() -> None:
    search = make_search(SearchSettings("cma", 1), 40, objectives=1)
    assert search.ask([]) == []
    search.tell(0, (0.2,) * 40, (1.0,))
    assert np.mean(search.ask([1])) == pytest.approx(0.2, abs=0.1)
