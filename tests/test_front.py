"""Dominance, hypervolume, knee and order, by hand, by brute force and by properties."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.front import front_order, hypervolume, knee, non_dominated

# A coarse grid makes ties and copies common, and sums exact.
grid = st.integers(0, 8).map(lambda i: i / 8)


def point_sets(objectives: int, least: int = 1) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[grid] * objectives), min_size=least, max_size=9)


some_points = st.integers(1, 3).flatmap(point_sets)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def cells(points: list[tuple[float, ...]], objectives: int) -> float:
    """Brute force over the grid's cells: the share of the unit box that some point covers."""
    lower = itertools.product(range(8), repeat=objectives)
    covered = sum(
        any(all(p * 8 >= c + 1 for p, c in zip(q, cell, strict=True)) for q in points)
        for cell in lower
    )
    return covered / 8**objectives


def test_front_imports_neither_torch_nor_moocore() -> None:
    code = "import sys, evomerge.front; assert not {'torch', 'moocore'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_by_hand() -> None:
    points = [(0.0, 1.0), (1.0, 0.0), (0.6, 0.6), (0.5, 0.5), (0.6, 0.6), (0.0, 0.9)]
    assert non_dominated(points).tolist() == [True, True, True, False, True, False]
    assert front_order(points) == [1, 2, 4, 0]
    assert knee(points) == 2
    assert hypervolume(points, (0.0, 0.0)) == pytest.approx(0.36)
    # The two ends add 1 each below the axes, the corner of (-1, -1) adds 1.
    assert hypervolume(points, (-1.0, -1.0)) == pytest.approx(0.36 + 3.0)
    assert hypervolume([(1.0, 2.0, 3.0)], (0.0, 0.0, 0.0)) == pytest.approx(6.0)
    assert hypervolume([(3.0,), (2.0,)], (0.5,)) == pytest.approx(2.5)


def test_a_point_outside_the_reference_adds_nothing() -> None:
    assert hypervolume([(2.0, -1.0), (1.0, 1.0)], (0.0, 0.0)) == pytest.approx(1.0)
    assert hypervolume([(2.0, 0.0)], (0.0, 0.0)) == 0.0
    assert hypervolume(np.empty((0, 2)), (0.0, 0.0)) == 0.0


def test_minimising_is_maximising_the_negative() -> None:
    points = np.array([(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
    assert non_dominated(points, maximise=False).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(3.0, 4.0)], 0),
        ([(1.0, 0.0), (0.0, 1.0)], 0),  # no knee: the first of the order
        ([(1.0, 0.0), (0.0, 1.0), (0.9, 0.5), (0.5, 0.8)], 2),
        ([(1.0, 0.0), (0.0, 1.0), (0.3, 0.3)], 0),  # a dent is no knee
        ([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)], 2),  # on the line: the most balanced
        ([(1000.0, 0.0), (0.0, 0.001), (900.0, 0.0005)], 2),  # units do not matter
        ([(1.0, 5.0, 0.0), (0.0, 5.0, 1.0), (0.8, 5.0, 0.8)], 2),  # a constant objective
        ([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.4)], 3),
        ([(2.0, 2.0), (2.0, 2.0), (1.0, 1.0)], 0),
    ],
)
def test_knee_by_hand(points: list[tuple[float, ...]], expected: int) -> None:
    assert knee(points) == expected


@pytest.mark.parametrize("points", [[1.0, 2.0], [(float("nan"), 0.0)], [(float("inf"), 0.0)]])
def test_unusable_points_are_refused(points: list[object]) -> None:
    with pytest.raises(ValueError, match="expected finite numbers of shape"):
        non_dominated(points)


def test_an_empty_front_has_no_knee() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        knee(np.empty((0, 2)))
    assert front_order(np.empty((0, 2))) == []


@given(some_points)
def test_non_dominated_is_the_definition(points: list[tuple[float, ...]]) -> None:
    expected = [not any(dominates(q, p) for q in points) for p in points]
    assert non_dominated(points).tolist() == expected


@given(point_sets(2) | point_sets(3))
def test_hypervolume_counts_cells(points: list[tuple[float, ...]]) -> None:
    objectives = len(points[0])
    assert hypervolume(points, (0.0,) * objectives) == pytest.approx(cells(points, objectives))


@given(point_sets(2), st.tuples(grid, grid))
def test_one_more_point(points: list[tuple[float, ...]], new: tuple[float, float]) -> None:
    before, after = (hypervolume(p, (-0.1, -0.1)) for p in (points, [*points, new]))
    dominated = any(dominates(p, new) for p in points)
    if dominated or new in points:
        assert after == pytest.approx(before)
    else:
        assert after > before
    if dominated:
        assert non_dominated([*points, new]).tolist() == [*non_dominated(points), False]
        assert knee([*points, new]) == knee(points)
        assert front_order([*points, new]) == front_order(points)


@given(st.data())
def test_the_order_of_points_does_not_matter(data: st.DataObject) -> None:
    points = data.draw(some_points)
    permuted = data.draw(st.permutations(points))
    origin = (-0.1,) * len(points[0])
    assert points[knee(points)] == permuted[knee(permuted)]
    assert hypervolume(points, origin) == pytest.approx(hypervolume(permuted, origin))
    ordered, reordered = ([p[i] for i in front_order(p)] for p in (points, permuted))
    assert ordered == reordered


@given(point_sets(2))
def test_the_knee_is_on_the_front(points: list[tuple[float, ...]]) -> None:
    assert non_dominated(points)[knee(points)]
