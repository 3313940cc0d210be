"""The quadratic learned from slopes: against plain formulas, and on data of known make."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import pairwise

import numpy as np
import pytest

from evomerge.search import slopes as module
from evomerge.search.slopes import SlopeModel, Slopes, fit_slopes
from evomerge.search.surrogate import Array

D, T, BLOCKS = 6, 3, 20
A, C, LEAN, NOISE = 0.7, 0.9, 0.4, 0.3


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variances are known instead of estimated."""
    known = module._Variances(A, C, LEAN, NOISE)
    monkeypatch.setattr(module, "_estimate", lambda *seen: known)


def turns(count: int, blocks: int = BLOCKS) -> Array:
    """Each observation is of the next block."""
    return np.asarray(np.eye(blocks)[np.arange(count) % blocks])


def noisy(count: int, d: int = D, t: int = T, seed: int = 0) -> Slopes:
    """Of nothing in particular; every third observation is of two blocks."""
    random = np.random.default_rng(seed)
    blocks = turns(count, 4)
    blocks[::3] = (blocks[::3] + np.roll(blocks[::3], 1, axis=1)) / 2
    places = random.normal(0, 0.4, (count, d))
    return Slopes(places, blocks, random.normal(0.3, 2.0, (count, t, d)))


class Quadratic:
    """Some objectives with random slopes at the centre and random Hessians."""

    def __init__(self, d: int, t: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.b = random.normal(size=(t, d)) * 10.0 ** np.arange(t)[:, None]
        turned = random.normal(size=(t, d, d)) * 10.0 ** np.arange(t)[:, None, None]
        self.hessian = (turned + turned.transpose(0, 2, 1)) / 2

    def values(self, place: Array) -> Array:
        return np.asarray(self.b @ place + self.hessian @ place @ place / 2)

    def slopes(self, place: Array) -> Array:
        return np.asarray(self.b + self.hessian @ place)

    def seen(self, count: int, reach: float = 0.2) -> Slopes:
        places = np.random.default_rng(count).normal(0, reach, (count, self.b.shape[1]))
        return Slopes(places, turns(count), np.array([self.slopes(place) for place in places]))


def regression(seen: Slopes, place: Array, origin: Array) -> tuple[Array, float]:
    """Change of the values and its deviation, in units: all n·d derivatives in one covariance.

    The Hessian's d² entries are independent here: its antisymmetric half has no value.
    """
    n, t, d = seen.slopes.shape
    units = np.array([np.sqrt(sum(seen.slopes[:, o].ravel() ** 2) / (n * d)) for o in range(t)])
    kernel = np.zeros((n, d, n, d))
    for i in range(n):
        for j in range(n):
            for gene in range(d):
                near = sum(seen.places[i, k] * seen.places[j, k] for k in range(d))
                kernel[i, gene, j, gene] = A * (1 + 2 * C * near)
                kernel[i, gene, j, gene] += LEAN * float(seen.blocks[i] @ seen.blocks[j])
                kernel[i, gene, j, gene] += NOISE * (i == j)
    whole = kernel.reshape(n * d, n * d)
    away, middle = place - origin, (place + origin) / 2
    cross = np.zeros((n, d))  # of the derivatives with (z - y)·∇f((y + z)/2)
    for i in range(n):
        cross[i] = away * A * (1 + 2 * C * float(middle @ seen.places[i]))
    changes = []
    for o in range(t):
        y = (seen.slopes[:, o] / units[o]).ravel()
        w = (seen.slopes[:, o] ** 2).mean(axis=0)
        w = w / w.mean()
        x = (-seen.places * w).ravel()
        bend = max(0.0, float(x @ np.linalg.solve(whole, y) / (x @ np.linalg.solve(whole, x))))
        rest = cross.ravel() @ np.linalg.solve(whole, y - bend * x)
        changes.append((rest - bend * float(w @ (place**2 - origin**2)) / 2) * units[o])
    own = float(away @ away) * A * (1 + 2 * C * float(middle @ middle))
    variance = own - float(cross.ravel() @ np.linalg.solve(whole, cross.ravel()))
    return np.array(changes), float(np.sqrt(variance))


@pytest.mark.usefixtures("given")
def test_it_is_the_posterior_of_all_derivatives_at_once() -> None:
    seen = noisy(5, d=3, t=2)
    seen.slopes[:, 0] -= 4.0 * seen.places  # this one bends down, the other up
    seen.slopes[:, 1] += 9.0 * seen.places
    fitted = fit_slopes(seen)
    for place, origin in np.random.default_rng(9).normal(0, 0.5, (5, 2, 3)):
        mean, deviation = regression(seen, place, 0 * origin)
        assert fitted.mean(place)[0] == pytest.approx(mean, rel=1e-8)
        assert fitted.deviation(place)[0] == pytest.approx(deviation, rel=1e-8)
        _, deviation = regression(seen, place, origin)  # along the straight way
        assert fitted.deviation(place, origin)[0] == pytest.approx(deviation, rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_seen_without_noise_is_recovered(seed: int) -> None:
    """The model always expects some noise, so not quite; more places are more."""
    truth = Quadratic(D, T, seed)
    new = np.random.default_rng(7).normal(0, 0.2, (50, D))
    values = np.array([truth.values(place) for place in new])
    slopes = np.array([truth.slopes(place).T for place in new])

    def errors(count: int) -> tuple[Array, Array]:
        """By objective, in standard deviations of what is to be found."""
        fitted = fit_slopes(truth.seen(count))
        found = [fitted.mean(place) for place in new]
        of_values = np.abs(np.array([v for v, _ in found]) - values).max(axis=0)
        of_slopes = np.abs(np.array([s for _, s in found]) - slopes).max(axis=(0, 1))
        return of_values / values.std(axis=0), of_slopes / slopes.std(axis=(0, 1))

    few, many = errors(20), errors(100)
    assert (many[0] < 0.04).all()
    assert (many[1] < 0.06).all()
    assert all((b < a / 3).all() for a, b in zip(few, many, strict=True))
    flat = np.abs(new @ truth.b.T - values).max(axis=0) / values.std(axis=0)
    assert (flat > 0.3).all()  # what the linear part alone would leave


@pytest.mark.parametrize("seed", range(3))
def test_slopes_are_those_of_the_values(seed: int) -> None:
    fitted, step = fit_slopes(noisy(12, seed=seed)), 1e-5
    at, origin = np.random.default_rng(seed).normal(0, 0.5, (2, D))
    _, slopes = fitted.mean(at)
    _, slope = fitted.deviation(at, origin)
    for gene, move in enumerate(np.eye(D) * step):
        up, down = fitted.mean(at + move)[0], fitted.mean(at - move)[0]
        assert slopes[gene] == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-8)
        rise = fitted.deviation(at + move, origin)[0] - fitted.deviation(at - move, origin)[0]
        assert slope[gene] == pytest.approx(rise / (2 * step), rel=1e-6, abs=1e-8)


def test_at_the_centre_nothing_is_changed_or_unsure() -> None:
    fitted = fit_slopes(noisy(12))
    deviation, slope = fitted.deviation(np.zeros(D))

    assert fitted.mean(np.zeros(D))[0].tolist() == [0.0] * T
    assert deviation < 1e-11
    assert np.isfinite(slope).all()


def test_the_farther_the_less_is_known() -> None:
    fitted = fit_slopes(noisy(12))
    for ray in np.random.default_rng(2).normal(size=(5, D)):
        along = [fitted.deviation(share * ray)[0] for share in np.linspace(0, 2, 15)]
        assert (np.diff(along) > 0).all()


@pytest.mark.usefixtures("given")
def test_more_observations_say_more() -> None:
    seen = noisy(40)
    place = np.full(D, 0.3)
    unsure = [
        fit_slopes(Slopes(seen.places[:n], seen.blocks[:n], seen.slopes[:n])).deviation(place)[0]
        for n in (1, 5, 10, 20, 40)
    ]
    assert all(b < 0.95 * a for a, b in pairwise(unsure))


@pytest.mark.usefixtures("given")
def test_another_block_says_more_than_the_same_again() -> None:
    seen = noisy(8)
    place = np.full(D, 0.3)
    others = fit_slopes(replace(seen, blocks=np.eye(8))).deviation(place)[0]
    same = fit_slopes(replace(seen, blocks=np.eye(8)[[0] * 8])).deviation(place)[0]

    assert others < 0.9 * same


@pytest.mark.parametrize("seed", range(4))
def test_a_block_that_is_seen_often_does_not_drown_the_others(seed: int) -> None:
    """Six blocks lean each to its own; the first is seen in 50 of 60 observations."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(T, 30))
    lean = random.normal(size=(6, T, 30))
    lean -= lean.mean(axis=0)
    which = np.where(np.arange(60) < 48, 0, np.arange(60) % 6)
    slopes = common + lean[which] + random.normal(0, 0.3, (60, T, 30))
    fitted = fit_slopes(Slopes(random.normal(0, 0.05, (60, 30)), np.eye(6)[which], slopes))

    def likeness(found: Array) -> Array:
        """Cosines with what the blocks have in common."""
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(common, axis=1)
        return np.asarray((found * common).sum(axis=1) / lengths)

    assert (likeness(fitted.linear.T) > 0.98).all()
    assert (likeness(slopes.mean(axis=0)) < 0.92).all()


def bent(curvature: float, seed: int = 0) -> tuple[SlopeModel, Array, Array]:
    """A model of 25 observations close to the centre, that differ in the first 6 genes of 12.

    The objective bends down by ``curvature`` times the square of each gene's slope.
    """
    random = np.random.default_rng(seed)
    b = random.uniform(0.5, 2.0, 12) * random.choice([-1.0, 1.0], 12)
    hessian = -curvature * np.diag(b**2)
    places = np.zeros((25, 12))
    places[:, :6] = random.normal(0, 0.02, (25, 6))
    slopes = (b + places @ hessian)[:, None]
    return fit_slopes(Slopes(places, turns(25, 5), slopes)), b, np.diag(hessian)


@pytest.mark.parametrize("seed", range(3))
def test_what_bends_down_is_expected_to_do_so_along_genes_that_never_moved(seed: int) -> None:
    fitted, _, hessian = bent(2.0, seed)
    far = np.zeros(12)
    far[6:] = 0.8
    line = float(far @ fitted.linear[:, 0])

    assert 2 * np.diag(fitted.square[0])[6:] == pytest.approx(hessian[6:], rel=0.05)
    below = fitted.mean(far)[0][0] - line
    assert below == pytest.approx(hessian @ far**2 / 2, rel=0.05)
    assert below < -1.0


def test_what_bends_up_is_not_expected_to_go_on() -> None:
    fitted, _, hessian = bent(-2.0)

    assert (np.diag(fitted.square[0])[:6] > 0.1 * hessian[:6]).all()
    assert fitted.square[0, 6:, 6:].tolist() == np.zeros((6, 6)).tolist()


def test_no_order_matters() -> None:
    seen = noisy(30, seed=3)
    order, swap = np.random.default_rng(0).permutation(30), [2, 0, 1]
    turned = Slopes(seen.places[order], seen.blocks[order], seen.slopes[order][:, swap])
    first, second, place = fit_slopes(seen), fit_slopes(turned), np.full(D, 0.4)

    for a, b in zip(first.mean(place), second.mean(place), strict=True):
        assert b == pytest.approx(a[..., swap], rel=1e-8)
    assert second.units == pytest.approx(first.units[swap])
    assert second.deviation(place)[0] == pytest.approx(first.deviation(place)[0], rel=1e-8)


def test_objectives_in_other_units_give_proportional_answers() -> None:
    seen, place, factors = noisy(30), np.full(D, 0.4), np.array([1.0, 1000.0, 0.01])
    plain = fit_slopes(seen)
    other = fit_slopes(replace(seen, slopes=seen.slopes * factors[:, None]))

    assert other.mean(place)[0] == pytest.approx(plain.mean(place)[0] * factors, rel=1e-8)
    assert other.units == pytest.approx(plain.units * factors, rel=1e-8)
    assert other.deviation(place)[0] == pytest.approx(plain.deviation(place)[0], rel=1e-8)


def test_genes_in_other_units_change_nothing_either() -> None:
    """A place twice as far with slopes half as steep is the same."""
    seen, place = noisy(30), np.full(D, 0.4)
    other = fit_slopes(Slopes(2 * seen.places, seen.blocks, seen.slopes / 2))

    assert other.mean(2 * place)[0] == pytest.approx(fit_slopes(seen).mean(place)[0], rel=1e-8)


def test_what_never_changes_stays_as_it_is() -> None:
    seen = noisy(20)
    seen.slopes[:, 1] = 0.0
    flat, alone = fit_slopes(seen), fit_slopes(replace(seen, slopes=0 * seen.slopes))
    place = np.full(D, 0.4)

    assert flat.mean(place)[0][1] == 0.0
    assert (flat.mean(place)[0][[0, 2]] != 0.0).all()
    assert alone.mean(place)[0].tolist() == [0.0] * T
    assert np.isfinite(alone.deviation(place)[0])


@pytest.mark.parametrize(("count", "d", "t"), [(1, D, T), (1, 1, 1), (20, 1, 1), (5, 3, 1)])
def test_little_is_no_obstacle(count: int, d: int, t: int) -> None:
    fitted, place = fit_slopes(noisy(count, d, t)), np.full(d, 0.4)
    values, slopes = fitted.mean(place)
    deviation, slope = fitted.deviation(place)

    assert (values.shape, slopes.shape, slope.shape) == ((t,), (d, t), (d,))
    assert np.isfinite(values).all()
    assert np.isfinite(slopes).all()
    assert deviation > 0
    assert np.isfinite(slope).all()


def test_one_place_again_and_again_tells_its_slope() -> None:
    """Where nothing says what changes from place to place."""
    slopes = np.random.default_rng(4).normal(size=(1, T, D))
    places = np.full((20, D), 0.1)
    fitted = fit_slopes(Slopes(places, turns(20), np.repeat(slopes, 20, axis=0)))
    there = fitted.mean(places[0])[1].T

    assert there == pytest.approx(0.8 * slopes[0], abs=0.15)


@pytest.mark.parametrize(("count", "d"), [(40, 60), (100, 10)])
def test_variances_that_data_were_drawn_with_are_found(count: int, d: int) -> None:
    """Slopes drawn from the model: nothing but their number keeps the estimates from the truth."""
    random = np.random.default_rng(count)
    places, blocks = random.normal(0, 0.15, (count, d)), turns(count)
    near, shared = places @ places.T, blocks @ blocks.T
    truth = np.array([A, 6.0, LEAN, NOISE])
    whole = A * (1 + 2 * truth[1] * near) + LEAN * shared + NOISE * np.eye(count)
    drawn = np.linalg.cholesky(whole) @ random.normal(size=(count, 5 * d))
    found = module._estimate(near, shared, drawn.reshape(count, 5, d))
    again = module._estimate(near, shared, drawn.reshape(count, 5, d), found)

    assert np.array(astuple(found)) == pytest.approx(truth, rel=0.4)
    assert found.noise + found.lean == pytest.approx(NOISE + LEAN, rel=0.1)
    assert astuple(again) == pytest.approx(astuple(found), rel=0.05)
