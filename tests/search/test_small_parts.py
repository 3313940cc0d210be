"""Sampling, scalarising, and the shipped fake."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from evomerge.errors import IntegrityError
from evomerge.search import make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.scalarise import chebyshev, weighted_sum
from evomerge.search.testing import Call, FakeSearch


def test_proposals_do_not_depend_on_the_order_of_sets() -> None:
    code = """
from evomerge.search import make_search
from evomerge.search.algorithms import ALGORITHMS, SearchSettings
from evomerge.search.testing import record
slow = {"gp", "auto", "mm-mo", "demix"}
for name in sorted(set(ALGORITHMS) - slow - {"cma-es", "evo-merging"}):
    print(name, record(make_search(SearchSettings(name, 1), 3, 2), 3, 2, asks=50))
"""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert "Call(kind='ask'" in first
    assert first == second


def test_sobol_points_cover_evenly() -> None:
    points = np.array(make_search(SearchSettings("qmc", 3), 5, 1).ask(range(16)))
    for gene in points.T:
        assert sorted((gene * 16).astype(int)) == list(range(16))


def test_a_random_point_depends_on_its_candidate_alone() -> None:
    one, other = (make_search(SearchSettings("random", 3), 5, 1) for _ in range(2))
    assert one.ask([1, 2, 3])[2] == other.ask([3])[0]


def test_weighted_sum() -> None:
    assert weighted_sum((1.0, 2.0), (0.5, 0.25)) == 1.0
    with pytest.raises(ValueError, match="zip"):
        weighted_sum((1.0, 2.0), (1.0,))


def test_chebyshev_by_hand() -> None:
    # gaps 0.5 * (1 - 0.5) = 0.25 and 2 * (1 - 0.9) = 0.2; 0.25 + 0.1 * 0.45
    got = chebyshev((0.5, 0.9), (0.5, 2.0), ideal=(1.0, 1.0), augmentation=0.1)
    assert got == pytest.approx(-0.295)


def test_chebyshev_reaches_what_weighted_sums_miss() -> None:
    ends, dent = [(1.0, 0.0), (0.0, 1.0)], (0.4, 0.4)
    for w in np.linspace(0.01, 0.99, 99):
        assert max(weighted_sum(p, (w, 1 - w)) for p in ends) > weighted_sum(dent, (w, 1 - w))
    half, ideal = (0.5, 0.5), (1.0, 1.0)
    assert all(chebyshev(dent, half, ideal) > chebyshev(p, half, ideal) for p in ends)


def test_the_fake_follows_its_script() -> None:
    fake = FakeSearch([(0.1,), (0.2,)])
    assert fake.ask([5]) == [(0.1,)]
    fake.fail(5)
    assert fake.ask([6, 7]) == [(0.2,)]
    fake.tell(6, (0.2,), (1.0,))
    assert fake.ask([7]) == []
    assert fake.calls == [
        Call("ask", 5, (0.1,)),
        Call("fail", 5),
        Call("ask", 6, (0.2,)),
        Call("tell", 6, (0.2,), (1.0,)),
    ]
    with pytest.raises(IntegrityError):
        FakeSearch([(0.1,)]).replay(5, (0.3,))
