"""The analytic surfaces: calibrated, exact in expectation, and pure."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.search import analytic
from benchmarks.search.bed import all_positions, fitness


@pytest.mark.parametrize("dimension", [10, 60])
def test_static_merges_have_the_values_of_real_ones(dimension: int) -> None:
    found = []
    for seed in range(6):
        surface = analytic.draw(dimension, seed)
        references = analytic.references(dimension)
        own = [surface.accuracy(np.array(references[t]))[i] for i, t in enumerate(analytic.TASKS)]
        names = ("base", "average", "task_arithmetic")
        means = [surface.accuracy(np.array(references[n])).mean() for n in names]
        found.append([*means, np.mean(own), analytic.best_single(surface)])
    base, average, arithmetic, own_mean, single = np.mean(found, axis=0)

    assert 0.6 < base < 0.7
    assert 0.72 < average < 0.8
    assert average < arithmetic < single
    assert own_mean > 0.93
    assert single == pytest.approx(analytic.SINGLE, abs=2e-3)


def test_a_search_has_something_to_find() -> None:
    from scipy.optimize import minimize

    surface = analytic.draw(60, 0)
    start, box = np.full(60, 0.4), [(0.0, 1.0)] * 60
    found = minimize(lambda w: -surface.accuracy(w).mean(), start, bounds=box, method="L-BFGS-B")

    assert 0.89 < -found.fun < 0.95


def test_the_held_out_value_is_the_expectation_over_items() -> None:
    rng = np.random.default_rng(0)
    n = 400_000
    for z in (-1.0, 0.5, 2.5):
        noise = analytic.OWN * np.sqrt(2) * np.cos(rng.uniform(0, 2 * np.pi, n))
        right = (z + rng.logistic(size=n) + noise > 0).mean()
        assert analytic.expected(np.array([z]))[0] == pytest.approx(right, abs=4e-3)


def test_items_agree_with_the_held_out_value_within_their_error() -> None:
    bed = analytic.make_bed(10, 3)
    rng = np.random.default_rng(1)
    for _ in range(5):
        genome = tuple(rng.random(10).tolist())
        items, truth = bed.metric(genome, all_positions(bed)), bed.held_out(genome)
        gaps = [np.mean(items[t]) - truth[t] for t in bed.objectives]
        assert np.abs(gaps).max() < 4 * 0.5 / np.sqrt(analytic.ITEMS)


def test_an_item_answers_the_same_in_any_company_and_signals_are_log_probabilities() -> None:
    bed = analytic.make_bed(60, 1)
    genome = bed.references["task_arithmetic"]
    every = all_positions(bed)
    some = {"ocr": (5, 2, 70)}
    for ask in (bed.metric, bed.signal):
        whole = ask(genome, every)["ocr"]
        assert ask(genome, some)["ocr"] == (whole[5], whole[2], whole[70])
    assert set(bed.metric(genome, every)["ocr"]) == {0.0, 1.0}
    assert max(bed.signal(genome, every)["ocr"]) < 0


def test_the_signal_follows_the_truth_and_is_not_it() -> None:
    bed = analytic.make_bed(60, 2)
    rng = np.random.default_rng(0)
    points = [tuple(rng.random(60).tolist()) for _ in range(40)]
    truth = [fitness(bed.held_out(p))[0] for p in points]
    values = [bed.signal(p, all_positions(bed)) for p in points]
    means = [np.mean([np.mean(v[t]) for t in bed.objectives]) for v in values]
    correlation = np.corrcoef(truth, means)[0, 1]

    assert 0.6 < correlation < 0.999


@pytest.mark.parametrize("dimension", [10, 60])
def test_slopes_are_the_derivatives_of_the_mean_soft_score(dimension: int) -> None:
    bed = analytic.make_bed(dimension, 4)
    rng = np.random.default_rng(2)
    asked = {"vqa": (7, 3, 60, 41), "chart": (0,), "ocr": tuple(range(80))}
    place, h = rng.random(dimension), 1e-5

    def mean(task: str, point: np.ndarray) -> float:
        signals = bed.signal(tuple(point.tolist()), {task: asked[task]})[task]
        return float(np.mean(np.exp(np.array(signals) / 2)))

    genome = tuple(place.tolist())
    signals, slopes = bed.slopes(genome, asked)
    assert signals == bed.signal(genome, asked)
    assert list(slopes) == list(asked)
    for task, found in slopes.items():
        ends = [(mean(task, place + h * e), mean(task, place - h * e)) for e in np.eye(dimension)]
        expected = [(up - down) / (2 * h) for up, down in ends]
        assert np.abs(expected).max() > 1e-3
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_names_are_those_of_a_real_space() -> None:
    names = [gene.name for gene in analytic.genes(20)]

    assert len(set(names)) == 20
    assert names[:2] == [
        "weight[chart] language/0/attention",
        "weight[geometry] language/0/attention",
    ]
    own = analytic.references(20)["geometry"]
    assert [n for n, u in zip(names, own, strict=True) if u] == [n for n in names if "[geom" in n]
    with pytest.raises(ValueError, match="multiple of 10"):
        analytic.draw(12, 0)
