"""The Bayesian quadratic: against a Gaussian process written out, and on data of known make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from evomerge.search import surrogate
from evomerge.search.surrogate import Array, Observations, fit, levels
from evomerge.space import Gene

PLACES = ("language/0/attention", "language/0/mlp", "language/1/mlp")
GENES = [Gene(f"weight[{e}] {p}", 0.0, 1.0, log=False) for e in ("adds", "names") for p in PLACES]
LEVELS = levels(GENES)
D, T, B = len(GENES), 2, 5
VARIANCES = np.array([3.0, 2.0, 1.5, 0.7, 0.4, 2.5, 0.8, 0.3, 0.6, 0.9])
NOISE = 7


def observations(count: int, seed: int = 0) -> Observations:
    """Places in all genes, some by the metric on all blocks, others by the signal on one."""
    random = np.random.default_rng(seed)
    by_metric = np.arange(count) % 4 == 0
    blocks = np.eye(B)[random.integers(B, size=count)]
    blocks[by_metric] = 1 / B
    return Observations(
        places=random.normal(0, 0.2, (count, D)),
        blocks=blocks,
        values=random.normal(0.5, 0.1, (count, T)),
        items=np.where(by_metric, 60.0, 12.0),
        by_metric=by_metric,
    )


def seen_as(places: Array, values: Array, items: float = 20.0) -> Observations:
    """By the signal, each on the next block."""
    n = len(places)
    blocks = np.eye(20)[np.arange(n) % 20]
    return Observations(places, blocks, values, np.full(n, items), np.zeros(n, dtype=np.bool_))


def common(a: Array, b: Array) -> float:
    """u of two displacements, group by group from the names of the genes."""
    kinds: list[Callable[[str], object]] = [
        lambda name: name.split("]")[0],
        lambda name: (name.split("]")[0], name.split("/")[-1]),
        lambda name: name.split("] ")[1],
        lambda name: name[: name.rindex("/")],
        lambda name: name,
    ]
    total = 0.0
    for variance, kind in zip(VARIANCES[:5], kinds, strict=True):
        for group in {kind(gene.name) for gene in GENES}:
            members = [i for i, gene in enumerate(GENES) if kind(gene.name) == group]
            total += variance * sum(a[i] for i in members) * sum(b[i] for i in members) / 10
    return float(total)


def of_metric(a: Array, b: Array, both: bool) -> float:
    """What is smooth in the kernel."""
    u = common(a, b)
    return float((u + VARIANCES[5] * u**2) * (1 + VARIANCES[8] * both))


def regression(seen: Observations, place: Array, origin: Array) -> tuple[Array, float]:
    """The posterior mean and deviation of the metric's change to a place, by plain formulas."""
    n = len(seen.places)
    kernel = np.zeros((n, n))
    items = [c / 2 if m else c for c, m in zip(seen.items, seen.by_metric, strict=True)]
    for i in range(n):
        for j in range(n):
            same = seen.by_metric[i] == seen.by_metric[j]
            both = bool(seen.by_metric[i] and seen.by_metric[j])
            kernel[i, j] = of_metric(seen.places[i], seen.places[j], both)
            leaning = VARIANCES[9] * common(seen.places[i], seen.places[j])
            shared_blocks = float(seen.blocks[i] @ seen.blocks[j])
            kernel[i, j] += ((leaning + VARIANCES[6]) * shared_blocks + 4.0) * same
        kernel[i, i] += VARIANCES[7] * 20 / items[i]
    y = seen.values.copy()
    for kind in (True, False):
        rows = [i for i in range(n) if seen.by_metric[i] == kind]
        total = sum(items[i] for i in rows)
        y[rows] -= sum(items[i] * seen.values[i] for i in rows) / total
    signals = y[~seen.by_metric]
    units = np.sqrt((signals**2).sum(axis=0) / len(signals))
    by_metric = [bool(m) for m in seen.by_metric]
    shared = np.array([of_metric(place, seen.places[i], by_metric[i]) for i in range(n)])
    shared -= np.array([of_metric(origin, seen.places[i], by_metric[i]) for i in range(n)])
    solved = np.linalg.solve(kernel, np.column_stack([y / units, shared]))
    own = of_metric(place, place, True) + of_metric(origin, origin, True)
    own -= 2 * of_metric(place, origin, True)
    return shared @ solved[:, :T] * units, float(np.sqrt(own - shared @ solved[:, T]))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variances are known instead of estimated."""
    monkeypatch.setattr(surrogate, "_estimate", lambda grams, scaled: VARIANCES)


@pytest.mark.usefixtures("given")
def test_it_is_the_posterior_of_the_written_kernel() -> None:
    seen = observations(20)
    fitted = fit(LEVELS, seen)
    for place, origin in np.random.default_rng(9).normal(0, 0.3, (5, 2, D)):
        mean, deviation = regression(seen, place, 0 * origin)
        assert fitted.mean(place)[0] == pytest.approx(mean, rel=1e-8)
        assert fitted.deviation(place)[0] == pytest.approx(deviation, rel=1e-8)
        mean, deviation = regression(seen, place, origin)
        change = fitted.mean(place)[0] - fitted.mean(origin)[0]
        assert change == pytest.approx(mean, rel=1e-8)
        assert fitted.deviation(place, origin)[0] == pytest.approx(deviation, rel=1e-8)


@pytest.mark.usefixtures("given")
def test_slopes_are_those_of_the_values() -> None:
    fitted = fit(LEVELS, observations(30))
    (at, origin), step = np.random.default_rng(3).normal(0, 0.3, (2, D)), 1e-5
    _, slopes = fitted.mean(at)
    _, slope = fitted.deviation(at, origin)
    for gene, move in enumerate(np.eye(D) * step):
        up, down = fitted.mean(at + move)[0], fitted.mean(at - move)[0]
        assert slopes[gene] == pytest.approx((up - down) / (2 * step), rel=1e-6)
        rise = fitted.deviation(at + move, origin)[0] - fitted.deviation(at - move, origin)[0]
        assert slope[gene] == pytest.approx(rise / (2 * step), rel=1e-5)


@pytest.mark.usefixtures("given")
def test_at_the_centre_nothing_is_changed_or_unsure() -> None:
    fitted = fit(LEVELS, observations(30))

    assert fitted.mean(np.zeros(D))[0] == pytest.approx(np.zeros(T), abs=0)
    assert fitted.deviation(np.zeros(D))[0] <= 1e-6


def quadratic(places: Array) -> Array:
    """(n, 2) of places (n, 6): an expert's genes add up, two of another's work together."""
    x = places
    first = 0.3 + 0.5 * x[:, :3].sum(axis=1) - 0.4 * x[:, :3].sum(axis=1) ** 2
    second = 0.7 - 0.2 * x[:, 0] + 0.8 * x[:, 3] * x[:, 4] - 0.3 * x[:, 5] ** 2
    return np.stack([first, second], axis=1)


def test_a_quadratic_seen_without_noise_is_recovered() -> None:
    random = np.random.default_rng(5)
    places = random.normal(0, 0.3, (90, D))
    fitted = fit(LEVELS, seen_as(places, quadratic(places), items=1e7))
    new = random.normal(0, 0.3, (50, D))
    expected = quadratic(new) - quadratic(np.zeros((1, D)))
    got = np.array([fitted.mean(place)[0] for place in new])

    assert (np.abs(got - expected).max(axis=0) < 0.1 * expected.std(axis=0)).all()


def test_noise_alone_has_no_slope() -> None:
    random = np.random.default_rng(6)
    places = random.normal(0, 0.3, (100, D))
    noise = random.normal(0, 0.1, (100, T))
    truth = quadratic(places)

    def expected(values: Array) -> Array:
        fitted = fit(LEVELS, seen_as(places, values))
        return np.array([fitted.mean(place)[0] for place in places])

    assert (expected(noise).std(axis=0) < 0.35 * noise.std(axis=0)).all()
    assert (expected(truth + noise / 5).std(axis=0) > 0.9 * truth.std(axis=0)).all()


def test_the_variances_say_what_the_data_are_like() -> None:
    random = np.random.default_rng(7)
    places = random.normal(0, 0.3, (100, D))
    noise = random.normal(0, 1, (100, T))

    def estimated(values: Array) -> Array:
        seen = seen_as(places, values)
        scaled = values - values.mean(axis=0)
        scaled = scaled / np.sqrt((scaled**2).mean(axis=0))
        return surrogate._estimate(surrogate._Grams.of(LEVELS, seen, seen.items), scaled)

    start = np.array(surrogate.HYPER)
    assert (estimated(noise)[:5] < start[:5]).all()
    slopes = np.array([[1, 1, 1, 0, 0, 0], [1, -1, 0, -1, 1, 0]]).T
    by_expert, by_gene = (estimated((places @ slope)[:, None] + noise * 0.05) for slope in slopes.T)
    assert by_expert[NOISE] < start[NOISE] / 5
    assert by_gene[NOISE] < start[NOISE] / 5
    assert by_expert[0] / by_expert[4] > 5 * by_gene[0] / by_gene[4]


def test_the_order_of_observations_does_not_matter() -> None:
    seen = observations(60, seed=2)
    order = np.random.default_rng(0).permutation(60)
    turned = Observations(*(getattr(seen, f)[order] for f in seen.__dataclass_fields__))
    place = np.full(D, 0.2)
    first, second = fit(LEVELS, seen), fit(LEVELS, turned)

    assert second.mean(place)[0] == pytest.approx(first.mean(place)[0], rel=1e-8)
    assert second.deviation(place)[0] == pytest.approx(first.deviation(place)[0], rel=1e-8)


def test_objectives_in_other_units_give_proportional_answers() -> None:
    seen = observations(60, seed=4)
    other = fit(LEVELS, replace(seen, values=seen.values * [1.0, -1000.0] + [3.0, -7.0]))
    plain, place = fit(LEVELS, seen), np.full(D, 0.2)

    assert other.mean(place)[0] == pytest.approx(plain.mean(place)[0] * [1, -1000], rel=1e-6)
    assert other.mean(place)[1] == pytest.approx(plain.mean(place)[1] * [1, -1000], rel=1e-6)
    assert other.units == pytest.approx(plain.units * [1, 1000], rel=1e-6)
    assert other.deviation(place)[0] == pytest.approx(plain.deviation(place)[0], rel=1e-6)


def test_an_objective_that_never_changes_stays_as_it_is() -> None:
    seen = observations(40)
    seen.values[:, 1] = 0.25
    fitted = fit(LEVELS, seen)

    assert np.abs(fitted.mean(np.full(D, 0.3))[0][1]) < 1e-9
    assert np.isfinite(fitted.mean(np.full(D, 0.3))[0]).all()


def test_easy_and_hard_blocks_are_no_change_of_the_genes() -> None:
    """Pairs of opposite displacements answer the same block; blocks differ more than genes do."""
    random = np.random.default_rng(8)
    half = random.normal(0, 0.2, (40, D))
    places = np.concatenate([half, -half])
    which = np.tile(np.arange(40) % B, 2)
    offsets = random.normal(0, 1.0, (B, T))
    values = quadratic(places) + offsets[which] + random.normal(0, 0.02, (80, T))
    seen = replace(seen_as(places, values), blocks=np.eye(B)[which])
    blind = replace(seen, blocks=np.eye(80))

    def error(of: Observations) -> float:
        fitted = fit(LEVELS, of)
        got = np.array([fitted.mean(place)[0] for place in places])
        return float(np.abs(got - quadratic(places) + quadratic(np.zeros((1, D)))).mean())

    change = np.abs(quadratic(places) - quadratic(np.zeros((1, D)))).mean()
    assert error(seen) < 0.5 * change
    assert error(blind) > change


def test_the_metric_may_differ_from_the_signal_where_it_was_seen_to() -> None:
    """The signal says less than half of the metric's slope; scores correct that, as far as known.

    Whoever has no scores trusts the signal.
    """
    places = np.random.default_rng(1).normal(0, 0.2, (120, D))
    by_metric = np.arange(120) % 2 == 0
    values = places[:, :3].sum(axis=1, keepdims=True) * np.where(by_metric, 2.0, 0.8)[:, None]
    seen = replace(seen_as(places, values, items=1e4), by_metric=by_metric)
    signals = Observations(*(getattr(seen, f)[~by_metric] for f in seen.__dataclass_fields__))
    ahead = np.array([0.2, 0.2, 0.2, 0, 0, 0])

    assert fit(LEVELS, seen).mean(ahead)[0][0] == pytest.approx(1.2, rel=0.1)
    assert fit(LEVELS, signals).mean(ahead)[0][0] == pytest.approx(0.48, rel=0.1)


def test_levels_group_genes_as_their_names_say() -> None:
    adds, names = (0, 1, 2), (3, 4, 5)
    expected = [
        [adds, names],
        [(0,), (1, 2), (3,), (4, 5)],
        [(0, 3), (1, 4), (2, 5)],
        [(0, 1), (2,), (3, 4), (5,)],
        [(i,) for i in range(6)],
    ]
    for member, groups in zip(LEVELS, expected, strict=True):
        assert [tuple(np.flatnonzero(column)) for column in member.T] == groups
        assert set(np.unique(member)) <= {0.0, 1.0}


def test_parameters_are_never_grouped_together() -> None:
    genes = [
        Gene(name, 0.0, 1.0, log=False)
        for name in ("weight[a] language/0/mlp", "density[a] language/0/mlp", "weight", "density")
    ]
    for member in levels(genes):
        assert [tuple(np.flatnonzero(column)) for column in member.T] == [(0,), (1,), (2,), (3,)]
