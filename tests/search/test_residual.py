"""What full scores leave over: against a Gaussian process written out, and on known leftovers."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from evomerge.search import residual
from evomerge.search.residual import LEVEL, Residual, fit_residual
from evomerge.search.surrogate import Array

D, T = 4, 2
SIZE, REACH, NOISE = 0.8, 0.3, 0.4
NOWHERE = np.empty((0, D))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variances are known instead of estimated."""
    known = np.array([SIZE, REACH, NOISE])
    monkeypatch.setattr(residual, "likeliest", lambda *arguments: known)


def places(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.3, (count, D))


def fit(at: Array, left: Array, awaited: Array = NOWHERE) -> Residual:
    return fit_residual(at, left, awaited)


def bell(a: Array, b: Array) -> float:
    apart = sum((a[i] - b[i]) ** 2 for i in range(D))
    return SIZE * exp(-apart / (2 * REACH**2 * D))


@pytest.mark.usefixtures("given")
def test_it_is_the_posterior_of_the_written_kernel() -> None:
    at, left = places(9), np.random.default_rng(1).normal(0.4, [0.1, 30.0], (9, T))
    fitted = fit(at, left)
    bells = np.array([[bell(a, b) for b in at] for a in at]) + (NOISE + 1e-6) * np.eye(9)
    for place in places(5, seed=2):
        shared = np.array([bell(place, a) for a in at])
        mean = (LEVEL + shared) @ np.linalg.inv(LEVEL + bells) @ left
        assert fitted.mean(place)[0] == pytest.approx(mean, rel=1e-8)
        variance = SIZE - shared @ np.linalg.inv(bells) @ shared
        assert fitted.deviation(place)[0] == pytest.approx(variance**0.5, rel=1e-8)
    assert fitted.units == pytest.approx(left.std(axis=0), rel=1e-4)


@pytest.mark.usefixtures("given")
def test_where_scores_are_awaited_less_is_open_but_nothing_is_expected() -> None:
    """The deviation is that of whoever knows them, the mean that of whoever does not."""
    at, coming = places(9), places(4, seed=3)
    left = np.random.default_rng(1).normal(size=(9, T))
    known = np.concatenate([at, coming])
    bells = np.array([[bell(a, b) for b in known] for a in known]) + (NOISE + 1e-6) * np.eye(13)
    before, after = fit(at, left), fit(at, left, coming)
    for place in (*coming, *places(3, seed=2)):
        shared = np.array([bell(place, a) for a in known])
        deviation = (SIZE - shared @ np.linalg.inv(bells) @ shared) ** 0.5
        assert after.deviation(place)[0] == pytest.approx(deviation, rel=1e-8)
        assert after.deviation(place)[0] < before.deviation(place)[0]
        for a, b in zip(before.mean(place), after.mean(place), strict=True):
            assert (a == b).all()
    assert (after.units == before.units).all()


@pytest.mark.parametrize("seed", range(3))
def test_slopes_are_those_of_the_values(seed: int) -> None:
    at = places(8, seed)
    fitted = fit(at, np.sin(at @ np.full((D, T), [4.0, 9.0])), places(2, seed + 20))
    place, step = places(1, seed + 10)[0], 1e-5
    _, slopes = fitted.mean(place)
    _, slope = fitted.deviation(place)
    assert slopes.shape == (D, T)
    for gene, move in enumerate(np.eye(D) * step):
        up, down = fitted.mean(place + move)[0], fitted.mean(place - move)[0]
        assert slopes[gene] == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-8)
        rise = fitted.deviation(place + move)[0] - fitted.deviation(place - move)[0]
        assert slope[gene] == pytest.approx(rise / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("count", [3, 10, 30])
def test_what_all_have_in_common_is_the_level_everywhere(count: int) -> None:
    common = np.array([0.07, -5.0])
    fitted = fit(places(count), np.tile(common, (count, 1)))
    for place in (places(1)[0], np.zeros(D), np.full(D, 3.0)):
        assert fitted.mean(place)[0] == pytest.approx(common, rel=0.05)


def test_far_from_all_there_is_the_level_and_nothing_is_known() -> None:
    at = places(20)
    fitted = fit(at, 1.0 + at[:, :T])
    far = np.full(D, 100.0)

    assert fitted.mean(far)[0] == pytest.approx(1.0 + at[:, :T].mean(axis=0), abs=0.15)
    assert fitted.mean(far)[1] == pytest.approx(0.0, abs=1e-12)
    at_one = max(fitted.deviation(a)[0] for a in at)
    assert fitted.deviation(far)[0] == pytest.approx(np.sqrt(fitted._size), rel=1e-12)
    assert at_one < 0.8 * fitted.deviation(far)[0]


def smooth(at: Array) -> Array:
    """(n, T): a hill, and a slant."""
    hill = np.exp(-((at - 0.1) ** 2).sum(axis=1) / 0.3)
    return np.stack([hill, 20 * at[:, 0] - 7 * at[:, 1]], axis=1)


def test_what_is_smooth_is_found_between_the_points() -> None:
    at, new = places(60), places(40, seed=5) / 2
    fitted = fit(at, smooth(at))
    found = np.array([fitted.mean(place)[0] for place in new])
    error = np.abs(found - smooth(new)).mean(axis=0)

    assert (error < 0.3 * np.abs(smooth(new) - smooth(at).mean(axis=0)).mean(axis=0)).all()


@pytest.mark.parametrize("seed", range(3))
def test_noise_says_nothing_about_other_places(seed: int) -> None:
    at, left = places(40, seed), np.random.default_rng(seed + 50).normal(size=(40, T))
    fitted = fit(at, left)
    found = np.array([fitted.mean(place)[0] for place in places(40, seed + 90)])

    assert (found.std(axis=0) < 0.25 * left.std(axis=0)).all()


def test_nothing_left_over_is_nothing_to_add() -> None:
    fitted = fit(places(10), np.zeros((10, T)))
    values, slopes = fitted.mean(np.full(D, 0.1))

    assert values.tolist() == [0.0] * T
    assert slopes.tolist() == [[0.0] * T] * D
    assert (fitted.units <= 1e-6).all()  # so that hoping for its deviation changes nothing


def test_three_points_suffice() -> None:
    at = places(3)
    left = np.array([[0.3, 0.0], [-0.1, 4.0], [0.1, 1.0]])
    fitted = fit(at, left)
    found = np.array([fitted.mean(place)[0] for place in at])

    assert (np.sign(found - found.mean(axis=0)) == np.sign(left - left.mean(axis=0))).all()
    assert all(0 < fitted.deviation(place)[0] < 2 for place in at)


@pytest.mark.parametrize("count", [1, 5])
def test_the_same_place_again_is_no_obstacle(count: int) -> None:
    fitted = fit(np.zeros((count, D)), np.full((count, T), 0.5))

    assert fitted.mean(np.zeros(D))[0] == pytest.approx(0.5, rel=0.3)
    assert np.isfinite(fitted.deviation(np.zeros(D))[0])


def test_no_order_matters() -> None:
    at = places(20)
    left, order = smooth(at), np.random.default_rng(0).permutation(20)
    first, second = fit(at, left), fit(at[order], left[order][:, ::-1])
    place = np.full(D, 0.1)

    assert second.mean(place)[0][::-1] == pytest.approx(first.mean(place)[0], rel=1e-8)
    assert second.deviation(place)[0] == pytest.approx(first.deviation(place)[0], rel=1e-8)
