"""Racing: what is dropped, what never is, and how often wrongly."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from evomerge.front import non_dominated
from evomerge.ledger.fold import Scores
from evomerge.ledger.results import value_of
from evomerge.scoring import racing
from evomerge.scoring.racing import Aim, aims_of, estimate, verdict
from evomerge.scoring.statistics import Value

Floats = NDArray[np.float64]
TASKS = ("a", "b", "c")
MEAN_MIN = aims_of(("mean", "min"), (1.0, 1.0), dict.fromkeys(TASKS, "maximise"))


def named(answers: Floats) -> list[dict[str, Floats]]:
    """(candidates, tasks, items) as scored candidates."""
    return [dict(zip(TASKS, one, strict=True)) for one in answers]


def first(answers: Floats, n: int) -> dict[str, tuple[range, Floats]]:
    """The first n items of (tasks, items); the items of these tests are in random order."""
    return {t: (range(n), row[:n]) for t, row in zip(TASKS, answers, strict=True)}


def counts(answers: Floats) -> dict[str, int]:
    return dict.fromkeys(TASKS, answers.shape[-1])


def study(rng: np.random.Generator, size: int, items: int) -> Floats:
    """Answers 0 or 1 of candidates of different skill to items of different difficulty."""
    skill = 1 + 0.3 * rng.normal(size=(size, len(TASKS), 1))
    margin = skill + rng.normal(size=(len(TASKS), items)) * 1.2
    return np.asarray(margin + 0.3 * rng.normal(size=margin.shape) > 0, dtype=np.float64)


def points(answers: Floats, aims: tuple[Aim, ...]) -> Floats:
    values = [dict(zip(TASKS, one.mean(axis=1), strict=True)) for one in answers]
    return np.array([[aim.of(v) for aim in aims] for v in values])


@pytest.mark.parametrize(
    "names", [("a",), ("cost",), ("mean",), ("min",), ("b", "min", "cost"), ("mean", "a", "b")]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_aims_are_what_the_front_is_over(names: tuple[str, ...], sign: float) -> None:
    directions = {"a": "maximise", "cost": "minimise", "b": "maximise"}
    values = {"a": 0.25, "cost": 7.0, "b": 0.75}
    scores = Scores("", {n: Value(v, None, 1) for n, v in values.items()}, {}, 0)
    expected = []
    for name in names:
        value = value_of(scores, name, directions)
        assert value is not None
        expected.append(sign * value.value)
    aims = aims_of(names, [sign] * len(names), directions)
    assert [aim.of(values) for aim in aims] == expected


def test_once_all_was_seen_the_verdict_is_dominance() -> None:
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(200):
        answers = rng.integers(0, 2, size=(4, 3, 3)).astype(float)
        front = answers[1:][non_dominated(points(answers[1:], MEAN_MIN))]
        found = verdict(first(answers[0], 3), counts(answers), named(front), MEAN_MIN, 2)
        point, known = points(answers[:1], MEAN_MIN)[0], points(front, MEAN_MIN)
        dominating = (known >= point).all(axis=1) & (known > point).any(axis=1)
        assert (found is not None) == dominating.any()
        assert found is None or dominating[found]
        ends.append(found is None)
    assert 20 < sum(ends) < 180


@pytest.mark.parametrize("n", [1, 4, 20, 100, 199])
def test_equal_to_a_member_so_far_is_never_dropped(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        answers = study(rng, 12, 200)
        on_front = non_dominated(points(answers, MEAN_MIN))
        front, others = answers[on_front], answers[~on_front]
        for member in front:
            candidate = np.concatenate([member[:, :n], 0 * member[:, n:]], axis=1)
            for look in range(3):
                seen = first(candidate, n)
                found = verdict(
                    seen, counts(answers), named(front), MEAN_MIN, look, 3, 0.5, named(others)
                )
                assert found is None


def test_one_far_below_the_front_is_dropped_at_the_first_rung() -> None:
    rng = np.random.default_rng(3)
    base = np.asarray(rng.random((3, 200)) < 0.5, dtype=float)
    good = np.asarray(rng.random((2, 3, 200)) < 0.95, dtype=float)
    front, others = named(good), named(base[None])
    for level in (0.01, 0.05):
        assert verdict(first(base, 20), counts(base), front, MEAN_MIN, 0, 3, level) is not None
        found = verdict(first(base, 20), counts(base), front, MEAN_MIN, 0, 3, level, others)
        assert found is not None
    assert verdict(first(good[0], 20), counts(base), others, MEAN_MIN, 0, 3, 0.5) is None


def test_the_order_of_members_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    dropped = 0
    for _ in range(20):
        answers = study(rng, 30, 200)
        on_front = non_dominated(points(answers[1:], MEAN_MIN))
        front, others = answers[1:][on_front], answers[1:][~on_front]
        results = set()
        for order in list(permutations(range(len(front))))[:6]:
            found = verdict(
                first(answers[0], 50),
                counts(answers),
                named(front[list(order)]),
                MEAN_MIN,
                1,
                others=named(others),
            )
            results.add(None if found is None else order[found])
        assert len(results) == 1
        dropped += results != {None}
    assert 3 < dropped < 20


def test_a_stricter_level_drops_nothing_more() -> None:
    rng = np.random.default_rng(5)
    numbers = np.zeros(3, dtype=int)
    for _ in range(30):
        answers = study(rng, 8, 100)
        front = named(answers[1:][non_dominated(points(answers[1:], MEAN_MIN))])
        seen = first(answers[0], 25)
        drops = [
            verdict(seen, counts(answers), front, MEAN_MIN, 1, 3, level) is not None
            for level in (0.01, 0.1, 0.5)
        ]
        assert drops == sorted(drops)
        numbers += drops
    assert numbers[0] < numbers[2]


@pytest.mark.parametrize("names", [("mean",), ("min",), ("mean", "min")])
def test_false_drops_stay_below_the_level(names: tuple[str, ...]) -> None:
    """Each candidate is better than the front by the answer to one item."""
    aims = aims_of(names, [1.0] * len(names), dict.fromkeys(TASKS, "maximise"))
    rng = np.random.default_rng(6)
    level, races, false = 0.2, 0, 0
    while races < 120:
        answers = study(rng, 15, 100)
        on_front = non_dominated(points(answers[1:], aims))
        front, others = answers[1:][on_front], named(answers[1:][~on_front])
        candidate, known = answers[0].copy(), points(front, aims)
        for task, item in rng.permutation(np.argwhere(candidate == 0)):
            point = points(candidate[None], aims)[0]
            if not ((known >= point).all(axis=1) & (known > point).any(axis=1)).any():
                break
            candidate[task, item] = 1.0
        races += 1
        false += any(
            verdict(
                first(candidate, n), counts(answers), named(front), aims, look, 3, level, others
            )
            is not None
            for look, n in enumerate((10, 25, 50))
        )
    assert false / races < level


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_where_all_are_alike_nothing_is_dropped(answer: float) -> None:
    same = np.full((3, 50), answer)
    for n in (1, 5, 50):
        assert verdict(first(same, n), counts(same), named(same[None]), MEAN_MIN, 0) is None


@pytest.mark.parametrize("items", [2, 10, 200])
def test_one_item_says_nothing(items: int) -> None:
    none, every = np.zeros((3, items)), np.ones((3, items))
    for level in (0.05, 0.5):
        found = verdict(first(none, 1), counts(none), named(every[None]), MEAN_MIN, 0, 3, level)
        assert found is None


def test_no_spread_among_a_few_items_is_no_certainty() -> None:
    """All four seen items are lost, so their variance is 0; ten are enough."""
    none, every = np.zeros((3, 200)), np.ones((3, 200))
    aims = (Aim({"a": 1.0}),)
    for n, expected in ((2, None), (4, None), (10, 0)):
        assert verdict(first(none, n), counts(none), named(every[None]), aims, 0) == expected


def test_without_members_or_items_nothing_is_known() -> None:
    none, every = np.zeros((3, 50)), np.ones((3, 50))
    front = named(every[None])
    assert verdict(first(none, 50), counts(none), [], MEAN_MIN, 0) is None
    assert verdict({}, counts(none), front, MEAN_MIN, 0) is None
    assert estimate({}, counts(none), front) == {}
    part = {t: s for t, s in first(none, 40).items() if t != "b"}
    assert verdict(part, counts(none), front, MEAN_MIN, 0) is None  # the mean needs b
    assert verdict(part, counts(none), front, MEAN_MIN[1:], 0) == 0  # the least does not


def test_less_is_better_where_it_is_minimised() -> None:
    rng = np.random.default_rng(8)
    short, long = rng.uniform(10, 20, (3, 200)), rng.uniform(40, 60, (3, 200))
    aims = aims_of(("a", "b"), (-1.0, -1.0), dict.fromkeys(TASKS, "minimise"))
    assert verdict(first(long, 20), counts(long), named(short[None]), aims, 0) == 0
    assert verdict(first(short, 20), counts(long), named(long[None]), aims, 0, 3, 0.5) is None
    worst = aims_of(("min",), (-1.0,), dict.fromkeys(TASKS, "maximise"))
    assert verdict(first(long, 20), counts(long), named(short[None]), worst, 0) == 0
    long[1, :] = short[1, :] - 5  # one is lower now, and so is the least
    assert verdict(first(long, 20), counts(long), named(short[None]), worst, 0, 3, 0.5) is None


def test_a_value_from_the_weights_is_known_from_the_start() -> None:
    aims = (Aim({"a": 1.0}), Aim({"zeros": 1.0}))
    rng = np.random.default_rng(9)
    bad, good = rng.random(200) < 0.3, rng.random(200) < 0.9
    sizes = {"a": 200, "zeros": 1}
    front = [{"a": good.astype(float), "zeros": (0.5,)}]
    for zeros, expected in ((0.4, 0), (0.5, 0), (0.6, None)):
        seen = {"a": (range(20), bad[:20].astype(float)), "zeros": ((0,), (zeros,))}
        assert verdict(seen, sizes, front, aims, 0) == expected


def test_estimates_are_unbiased_and_closer_than_the_seen_mean() -> None:
    rng = np.random.default_rng(10)
    answers = study(rng, 12, 200)
    truth = answers[0].mean(axis=1)
    errors, plain, scores = [], [], []
    for _ in range(200):
        mixed = np.stack([answers[:, i, rng.permutation(200)] for i in range(3)], axis=1)
        found = estimate(first(mixed[0], 40), counts(mixed), named(mixed[1:4]), named(mixed[4:]))
        error = np.array([found[t].value for t in TASKS]) - truth
        errors.append(error)
        scores.append(error / [found[t].se for t in TASKS])
        plain.append(mixed[0, :, :40].mean(axis=1) - truth)
        assert {v.n for v in found.values()} == {40}
    assert np.abs(np.mean(errors, axis=0)).max() < 0.006  # its own error is 0.0025
    assert np.mean(np.square(errors)) < 0.6 * np.mean(np.square(plain))
    assert 0.8 < np.std(scores) < 1.1


def test_one_who_answers_like_some_other_is_predicted_from_it() -> None:
    """The other has the unseen items nearly all wrong, the front has them nearly all right."""
    rng = np.random.default_rng(12)
    front = np.asarray(rng.random((3, 3, 200)) < 0.9, dtype=float)
    other = np.asarray(rng.random((3, 200)) < 0.5, dtype=float)
    turned = rng.random((3, 200)) < 0.03
    candidate = np.where(turned, 1 - other, other)
    other[:, 100:] *= rng.random((3, 100)) < 0.3
    candidate[:, 100:] *= other[:, 100:] > 0
    truth = candidate.mean(axis=1)
    seen, sizes = first(candidate, 100), counts(candidate)
    alone = estimate(seen, sizes, named(front))
    found = estimate(seen, sizes, named(front), named(other[None]))
    for task, value in zip(TASKS, truth, strict=True):
        assert abs(alone[task].value - value) > 0.1
        assert abs(found[task].value - value) < 0.05
        se, wide = found[task].se, alone[task].se
        assert se is not None
        assert wide is not None
        assert se < 0.6 * wide


def test_two_members_and_two_aims_take_twice_the_confidence() -> None:
    """A copy of the member changes no prediction, only how many could be wrong."""
    aims = (Aim({"a": 1.0}), Aim({"b": 1.0}))
    rng = np.random.default_rng(13)
    drops = np.zeros((40, 3), dtype=bool)
    for row, accuracy in zip(drops, np.linspace(0.4, 0.7, 40), strict=True):
        member = np.asarray(rng.random((3, 200)) < 0.7, dtype=float)
        candidate = np.asarray(rng.random((3, 200)) < accuracy, dtype=float)
        seen, sizes, known = first(candidate, 50), counts(candidate), named(member[None])
        for i, (members, others, level) in enumerate(
            ((known, known, 0.05), (2 * known, [], 0.1), (2 * known, [], 0.05))
        ):
            row[i] = verdict(seen, sizes, members, aims, 1, 3, level, others) is not None
    assert (drops[:, 0] == drops[:, 1]).all()
    assert drops[:, 2].sum() < drops[:, 0].sum() < 40


def test_an_estimate_without_others_is_the_seen_mean() -> None:
    rng = np.random.default_rng(11)
    values = rng.random((3, 30))
    found = estimate(first(values, 10), counts(values))
    assert [found[t].value for t in TASKS] == pytest.approx(values[:, :10].mean(axis=1))
    whole = estimate(first(values, 30), counts(values), named(values[None]))
    assert [whole[t].value for t in TASKS] == pytest.approx(values.mean(axis=1))
    assert {v.se for v in whole.values()} == {0.0}


@pytest.mark.parametrize("freedom", [10.0, 30.0, 200.0])
def test_student_as_a_normal_score(freedom: float) -> None:
    predicted = {"a": racing._Predicted(0.0, 1.0, freedom)}
    for t in (1.5, 2.5, 3.5):
        p = racing._doubt(Aim({"a": 1.0}), predicted, t)
        assert p == pytest.approx(stats.t.sf(t, freedom), rel=0.03)


def test_the_least_of_several_is_tested_by_likelihood_ratio() -> None:
    """Three of infinite freedom, 1, 2 and 5 above the bound of 2: the third is clearly above it."""
    predicted = {t: racing._Predicted(v, 1.0, 1e12) for t, v in zip(TASKS, (1, 2, 5), strict=True)}
    aim = Aim(dict.fromkeys(TASKS, 1.0), "min")
    expected = 0.5 * stats.chi2.sf(1.0, 1) + 0.25 * stats.chi2.sf(1.0, 2)
    assert racing._doubt(aim, predicted, 2.0) == pytest.approx(expected, rel=1e-6)
