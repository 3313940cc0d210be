"""MAP and its variants: what is sampled, and what the fitted models propose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.search import make_search, map
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Genome, Search
from evomerge.search.planned import FloatArray, Known
from evomerge.space import Gene

WEIGHTS = [Gene(f"weight[{e}] {g}", -0.5, 1.5, log=False) for g in ("g", "h") for e in "abcd"]


def make(name: str, dimension: int, genes: Any = (), **options: Any) -> Search:
    return make_search(SearchSettings(name, 1, options), dimension, 2, genes)


def scores(genome: Genome) -> tuple[float, float]:
    """Sigmoids of quadratics whose front is the line from (0.2, 0.6) to (0.7, 0.6)."""
    x, y = genome[0], genome[1]
    first, second = ((x - a) ** 2 + (y - 0.6) ** 2 for a in (0.2, 0.7))
    return 1 / (1 + np.exp(3 * first)), 1 / (1 + np.exp(3 * second))


def drive(search: Search, asks: int, start: int = 0) -> list[Genome]:
    genomes = []
    for candidate in range(start, start + asks):
        (genome,) = search.ask([candidate])
        search.tell(candidate, genome, scores(genome))
        genomes.append(genome)
    return genomes


def test_map_asks_for_the_front_of_a_surface_of_its_own_kind() -> None:
    search = make("map", 2, samples=12, batch=8)
    samples = np.array(drive(search, 12))
    assert np.ptp(samples, axis=0).min() > 0.5
    assert [bool(x == y) for x, y in samples] == [i % 5 == 0 for i in range(12)]
    front = np.array(drive(search, 8, start=12))
    assert front[:, 1] == pytest.approx(np.full(8, 0.6), abs=0.03)
    assert front[:, 0].min() == pytest.approx(0.2, abs=0.03)
    assert front[:, 0].max() == pytest.approx(0.7, abs=0.03)
    assert np.diff(np.sort(front[:, 0])).max() < 0.2


def test_map_samples_as_many_as_it_has_coefficients() -> None:
    assert [map.coefficients(d) for d in (1, 2, 5, 10)] == [3, 6, 21, 66]
    planned = make("map", 3)
    for candidate in range(10):
        (genome,) = planned.ask([candidate])
        assert genome == make("map", 3).ask(range(20))[candidate]  # design, whatever was told
        planned.tell(candidate, genome, scores(genome))
    (genome,) = planned.ask([10])
    assert genome != make("map", 3).ask(range(20))[10]


def test_angles_and_directions_are_inverse() -> None:
    points = np.random.default_rng(0).random((20, 4))
    at = map.angles(points)
    assert at.shape == (20, 3)
    assert (at >= 0).all()
    assert (at <= np.pi / 2).all()
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert map.directions(at) == pytest.approx(unit)


def test_bayesian_samples_go_where_the_model_errs() -> None:
    """A step that no quadratic follows, in the directions near the first gene alone."""
    random = np.random.default_rng(0)
    genomes = random.random((120, 2))
    angle = map.angles(genomes)[:, 0]
    steps = np.where(angle < np.pi / 8, (genomes[:, 0] * 8).astype(int) % 2, 0.5)
    known = Known(genomes, steps[:, None] * 0.8 + 0.1, genomes[:0], 0, 200)
    drawn = map.angles(map.uncertain_points(random, known))[:, 0]
    assert (drawn < np.pi / 8).mean() > 0.9


def test_bayesian_turns_to_the_front_after_its_updates() -> None:
    search = make("map-bayesian", 2, samples=10, batch=6, updates=2)
    drive(search, 10 + 12)
    front = np.array(drive(search, 6, start=22))
    assert front[:, 1] == pytest.approx(np.full(6, 0.6), abs=0.03)


def test_leaves_are_experts_from_where_nothing_is_merged() -> None:
    density = Gene("density g", 0.0, 1.0, log=False)
    off, vectors = map.leaves([*WEIGHTS, density], 9)
    assert off == pytest.approx([0.25] * 8 + [0.5])  # weight 0 lies a quarter up the range
    assert len(vectors) == 4
    assert vectors[1] == pytest.approx([0, 0.5, 0, 0, 0, 0.5, 0, 0, 0])  # b: weight 1, both groups
    off, vectors = map.leaves((), 3)
    assert (off.tolist(), np.array(vectors).tolist()) == ([0.0] * 3, np.eye(3).tolist())


def nested_scores(genome: Genome) -> tuple[float, float]:
    """Best at a = 1, b = 0, c = 0.5, d = 0.5, for both, the second less steep."""
    weights = np.array([gene.decode(u) for gene, u in zip(WEIGHTS, genome, strict=True)])[:4]
    away = float(((weights - [1.0, 0.0, 0.5, 0.5]) ** 2).sum())
    return 1 / (1 + np.exp(2 * away)), 1 / (1 + np.exp(away))


def values(genome: Genome) -> FloatArray:
    return np.array([g.decode(u) for g, u in zip(WEIGHTS, genome, strict=True)])


def test_nested_merges_pairs_and_then_what_was_merged() -> None:
    search = make("map-nested", 8, WEIGHTS, samples=10, batch=4)
    told: list[FloatArray] = []
    for candidate in range(34):
        (genome,) = search.ask([candidate])
        search.tell(candidate, genome, nested_scores(genome))
        told.append(values(genome))
    assert all((weights[:4] == pytest.approx(weights[4:])) for weights in told)  # both groups
    for number, weights in enumerate(told[:20]):  # the pairs (a, b) and (c, d) in turn
        others = weights[2:4] if number % 2 == 0 else weights[:2]
        assert others == pytest.approx([0, 0], abs=1e-12)
    merged = np.array(told[20:30])[:, :4]  # the two merges, one factor each
    assert np.linalg.matrix_rank(merged, tol=1e-9) == 2
    assert told[30][:4] == pytest.approx([1.0, 0.0, 0.5, 0.5], abs=0.1)


def test_nested_goes_on_where_all_of_a_pair_fails() -> None:
    search = make("map-nested", 8, WEIGHTS, samples=4, batch=4)
    for candidate in range(30):
        (genome,) = search.ask([candidate])
        if values(genome)[2:4].any() and not values(genome)[:2].any():
            search.fail(candidate)
        else:
            search.tell(candidate, genome, nested_scores(genome))
