from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.scoring.metrics import METRICS, contains, exact_match, grid, iou, numeric


@pytest.mark.parametrize(
    ("response", "answer", "parameters", "expected"),
    [
        (" two  red ", "two red", {}, 1.0),
        ("Two red", "two red", {}, 0.0),
        ("Two red", "two red", {"fold_case": True}, 1.0),
        ("two", "two red", {}, 0.0),
    ],
)
def test_exact_match(response, answer, parameters, expected):
    assert exact_match(response, answer, **parameters) == expected


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [("it is 12.", "12", 1.0), ("it is 120", "12", 0.0), ("12", "12", 1.0), ("", "12", 0.0)],
)
def test_contains_looks_for_whole_words(response, answer, expected):
    assert contains(response, answer) == expected


@pytest.mark.parametrize(
    ("response", "answer", "parameters", "expected"),
    [
        ("3 + 4 = 7", "7", {}, 1.0),
        ("7 is the sum of 3 and 4", "7", {}, 0.0),
        ("about 1,234.5 metres", "1234.5", {}, 1.0),
        ("-3", "3", {}, 0.0),
        ("10-3", "3", {}, 1.0),  # a minus between digits is no sign
        ("1e3", "1000", {}, 1.0),
        (".5", "0.5", {}, 1.0),
        ("102", "100", {"relative": 0.02}, 1.0),
        ("103", "100", {"relative": 0.02}, 0.0),
        ("-98", "-100", {"relative": 0.02}, 1.0),
        ("7.5", "7", {"absolute": 0.5}, 1.0),
        ("none", "7", {"absolute": 99}, 0.0),
    ],
)
def test_numeric(response, answer, parameters, expected):
    assert numeric(response, answer, **parameters) == expected


@pytest.mark.parametrize(
    ("response", "parameters", "expected"),
    [
        ("2 3", {}, 1.0),
        ("(2, 3)", {}, 1.0),
        ("2 4", {}, 0.0),
        ("1 4", {"tolerance": 1}, 1.0),
        ("2 5", {"tolerance": 1}, 0.0),
        ("1 4", {"tolerance": 1, "graded": True}, 0.5),
        ("4 3", {"tolerance": 3, "graded": True}, 0.5),
        ("2", {"tolerance": 9}, 0.0),
        ("2 3 4", {"tolerance": 9}, 0.0),
    ],
)
def test_grid_by_chebyshev_distance(response, parameters, expected):
    assert grid(response, "2 3", **parameters) == expected


def test_iou_golden():
    # overlap 1x1 of two 2x2 boxes: 1 / (4 + 4 - 1)
    assert iou("1 1 3 3", "0 0 2 2") == pytest.approx(1 / 7)
    assert iou("[1,1,3,3]", "0 0 2 2", threshold=0.1) == 1.0
    assert iou("1 1 3 3", "0 0 2 2", threshold=0.5) == 0.0
    assert iou("5 5 6 6", "0 0 2 2") == 0.0
    assert iou("3 3 1 1", "0 0 2 2") == 0.0
    assert iou("1 1 3", "0 0 2 2") == 0.0


@pytest.mark.parametrize(
    ("metric", "answer"), [(numeric, "none"), (grid, "2"), (iou, "1 1 0 0"), (contains, " ")]
)
def test_an_unreadable_reference_is_an_error(metric, answer):
    with pytest.raises(ValueError, match=r"answer|number|cell|box"):
        metric("1", answer)


ANSWERS = {"exact_match": "a b", "contains": "a b", "numeric": "7", "grid": "1 2", "iou": "0 0 1 2"}


@pytest.mark.parametrize("name", list(METRICS))
@given(response=st.text(max_size=30) | st.from_regex(r"[-+0-9 .,e]{0,20}", fullmatch=True))
def test_every_metric_stays_in_the_unit_interval(name, response):
    value = METRICS[name](response, ANSWERS[name])
    assert 0.0 <= value <= 1.0
    assert math.isfinite(value)
    assert METRICS[name](ANSWERS[name], ANSWERS[name]) == 1.0


@given(st.tuples(*[st.integers(0, 20)] * 2), st.tuples(*[st.integers(0, 20)] * 2))
def test_iou_is_symmetric(a, b):
    one = f"{a[0]} {a[1]} {a[0] + 3} {a[1] + 4}"
    two = f"{b[0]} {b[1]} {b[0] + 5} {b[1] + 2}"
    assert iou(one, two) == pytest.approx(iou(two, one))
