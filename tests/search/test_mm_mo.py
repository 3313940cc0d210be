"""MM-MO's parts: Fisher information, steps from weak to strong, and what a round is made of."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.search import make_search, mm_mo, quadratic
from evomerge.search.algorithms import SearchSettings
from evomerge.search.planned import FloatArray, Known


def known(count: int = 40, dimension: int = 6, size: int = 4) -> Known:
    """Scores of genes 1 and 4 alone, gene 1 four times as steep."""
    genomes = np.random.default_rng(0).random((count, dimension))
    level = 2.0 * (genomes[:, 1] - 0.5) + 0.5 * (genomes[:, 4] - 0.5)
    scores = np.stack([1 / (1 + np.exp(-level)), 1 / (1 + np.exp(level))], axis=1)
    return Known(genomes, scores, genomes[:0], 0, size)


def test_the_front_of_what_is_told() -> None:
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.4], [0.5, 0.5], [0.2, 0.2]])
    assert mm_mo.front_of(scores) == [0, 1, 2, 4]
    assert mm_mo.front_of(scores[:, :1]) == [0]


def test_fisher_information_ranks_the_genes_that_matter() -> None:
    told = known()
    models = [quadratic.fit(told.genomes, column) for column in told.scores.T]
    of_genes = mm_mo.fisher(models, told.genomes, told).mean(axis=0)
    assert np.argsort(-of_genes)[:2].tolist() == [1, 4]
    assert of_genes[1] / of_genes[4] == pytest.approx(16, rel=0.1)  # squared slopes


def test_a_round_moves_the_genes_with_most_information() -> None:
    told = known()
    points = mm_mo.round_points(1, told, genes=2)
    assert points.shape == (4, 6)
    for point in points:
        origin = [g for g in told.genomes if (g[[0, 2, 3, 5]] == point[[0, 2, 3, 5]]).all()]
        assert len(origin) == 1
        assert (origin[0][[1, 4]] != point[[1, 4]]).any()


def test_strong_points_are_passed_on_the_side_away_from_weak_ones() -> None:
    genomes = np.array([[0.5, 0.5], [0.3, 0.6], [0.4, 0.2]])
    random, moved = np.random.default_rng(0), np.array([0, 1])
    beyond = mm_mo.weak_to_strong(random, genomes, [0], moved, 100) - genomes[0]
    ways = [genomes[0] - weak for weak in genomes[1:]]
    for step in beyond:
        way = min(ways, key=lambda w: abs(w[0] * step[1] - w[1] * step[0]))
        assert step[0] * way[1] == pytest.approx(step[1] * way[0])
        assert 0 <= step @ way <= way @ way
    one = mm_mo.weak_to_strong(random, genomes, [0], np.array([1]), 10)
    assert (one[:, 0] == 0.5).all()


def test_points_of_the_front_that_are_old_stay_in_the_models() -> None:
    random = np.random.default_rng(0)
    genomes, scores = random.random((300, 3)), random.random((300, 2)) * 0.5
    scores[7] = 1.0
    recent = mm_mo._recent(Known(genomes, scores, genomes[:0], 2, 4))
    assert recent.genomes.shape == (200, 3)
    assert recent.genomes[0].tolist() == genomes[7].tolist()
    assert recent.genomes[1:].tolist() == genomes[-199:].tolist()


def test_a_round_needs_one_fit_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FloatArray] = []

    def improvement(seed: int, known: Known, moved: FloatArray) -> FloatArray:
        asked.append(moved)
        return np.full(len(moved), 0.25)

    monkeypatch.setattr(mm_mo, "_improvement", improvement)
    search = make_search(SearchSettings("mm-mo", 1, {"startup": 5, "batch": 4}), 3, 2)
    for candidate in range(5 + 12):
        (genome,) = search.ask([candidate])
        assert (genome == (0.25, 0.25, 0.25)) == (candidate in (5, 9, 13))
        search.tell(candidate, genome, (genome[0], genome[1]))
    assert len(asked) == 3
