"""The sigmoid of a quadratic, and NSGA-III on what it predicts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from evomerge.search import nsga3, quadratic
from evomerge.search.planned import FloatArray


def surface(genomes: FloatArray) -> FloatArray:
    """σ(0.4 + 3u − 4u² + 2uv − 1.5v²) of genes u, v, written out; the others do nothing."""
    u, v = genomes[:, 0], genomes[:, 1]
    return np.asarray(1 / (1 + np.exp(-(0.4 + 3 * u - 4 * u * u + 2 * u * v - 1.5 * v * v))))


def test_a_known_surface_is_recovered() -> None:
    random = np.random.default_rng(0)
    told, other = random.random((40, 3)), random.random((200, 3))
    fitted = quadratic.fit(told, surface(told))
    assert fitted.predict(other) == pytest.approx(surface(other), abs=1e-5)
    # x = 2u − 1: the constant is 0.4 + 1.5 − 1 + 0.5 − 0.375, the term of u² −4/4, of uv 2/4
    constant, of_uu, of_uv, of_vv = (fitted.coefficients[i] for i in (0, 4, 5, 7))
    assert (constant, of_uu, of_uv, of_vv) == pytest.approx((1.025, -1, 0.5, -0.375), abs=1e-3)


def test_noise_and_few_points_are_penalised_instead_of_followed() -> None:
    errors = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        told, other = random.random((27, 6)), random.random((300, 6))  # 28 coefficients
        noisy = random.binomial(200, surface(told)) / 200
        followed, _ = quadratic._fit(quadratic.features(told), noisy, ridge=1e-8)
        models = (
            quadratic.fit(told, noisy).predict(other),
            quadratic.Quadratic(followed, 0.0, 1.0).predict(other),
            np.full(300, noisy.mean()),
        )
        errors.append([np.abs(found - surface(other)).mean() for found in models])
    fitted, followed_error, constant = np.mean(errors, axis=0)
    assert fitted < 0.8 * constant
    assert fitted < 0.5 * followed_error


def test_scores_outside_the_unit_interval_are_fitted_in_their_units() -> None:
    told = np.random.default_rng(2).random((60, 2))
    scores = -300.0 * ((told - 0.4) ** 2).sum(axis=1) - 50.0
    fitted = quadratic.fit(told, scores)
    assert fitted.predict(told) == pytest.approx(scores, abs=5.0)
    best = fitted.predict(np.array([[0.4, 0.4]]))[0]
    assert best > fitted.predict(np.array([[0.9, 0.1]]))[0] + 50


def test_equal_scores_make_a_flat_model() -> None:
    told = np.random.default_rng(3).random((8, 2))
    assert quadratic.fit(told, np.full(8, -7.0)).predict(told) == pytest.approx(np.full(8, -7.0))


def test_the_gradient_is_that_of_the_predictions() -> None:
    random = np.random.default_rng(4)
    told, at, step = random.random((30, 3)), random.random((5, 3)), 1e-6
    fitted = quadratic.fit(told, 100 * surface(told))
    for gene, move in enumerate(np.eye(3) * step):
        slope = (fitted.predict(at + move) - fitted.predict(at - move)) / (2 * step)
        assert fitted.gradient(at)[:, gene] == pytest.approx(slope, abs=1e-4)


def two_targets(genomes: FloatArray) -> FloatArray:
    """Nearness to 0.3 and to 0.7 in all genes: the front is the diagonal between them."""
    return np.stack([-((genomes - t) ** 2).sum(axis=1) for t in (0.3, 0.7)], axis=1)


def test_nsga3_finds_the_whole_front() -> None:
    random = np.random.default_rng(0)
    found, scores = nsga3.front(two_targets, random.random((60, 4)), 80, random)
    assert scores == pytest.approx(two_targets(found))
    along = np.sort(found.mean(axis=1))
    assert np.abs(found - found.mean(axis=1, keepdims=True)).max() < 0.1
    assert along[0] == pytest.approx(0.3, abs=0.05)
    assert along[-1] == pytest.approx(0.7, abs=0.05)
    assert max(b - a for a, b in pairwise(along)) < 0.05


def test_nsga3_with_one_score_maximises_it() -> None:
    random = np.random.default_rng(0)
    found, scores = nsga3.front(lambda g: two_targets(g)[:, :1], random.random((50, 5)), 80, random)
    assert len(found) == 1
    assert scores[0, 0] > -0.002


@pytest.mark.parametrize(("objectives", "count"), [(1, 1), (2, 60), (3, 55), (4, 56)])
def test_reference_directions_are_even(objectives: int, count: int) -> None:
    """Binomials (parts + m − 1 over m − 1): 59 parts, 9 parts, 5 parts."""
    points = nsga3.reference_directions(objectives, 60)
    assert len(np.unique(points, axis=0)) == len(points) == count
    assert points.sum(axis=1) == pytest.approx(np.ones(count))
    assert points.min() >= 0
