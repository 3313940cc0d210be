"""Localize-and-Stitch: regions, overlaps, and entries in nobody's region."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from evomerge.methods import get_method
from tests.methods.cases import WIDE, close, draw, f64, run

FIRST, SECOND = [5.0, 1.0, 0.0, -4.0], [2.0, 0.0, 3.0, -6.0]


def merged(*deltas: list[float], **values: Any) -> list[float]:
    base = torch.zeros(len(deltas[0]))
    method = get_method("localize_and_stitch")
    return run(method, base, [torch.tensor(d) for d in deltas], **values).tolist()


def test_by_hand() -> None:
    assert merged(FIRST, SECOND, density=0.5) == [5, 0, 3, -5]
    assert merged(FIRST, SECOND, density=(0.25, 0.75)) == [3.5, 0, 3, -6]
    assert merged(FIRST, SECOND, density=0.5, weight=(1.0, 0.5)) == [5, 0, 1.5, -3.5]
    assert merged(FIRST, SECOND, density=0.5, scale=0.5) == [2.5, 0, 1.5, -2.5]


def test_three_regions_that_overlap_are_averaged() -> None:
    assert merged([3.0], [6.0], [9.0], density=1.0) == [6]
    assert merged([3.0, 1.0], [6.0, 1.0], [9.0, 20.0], density=0.5) == [4.5, 20]


def test_what_an_expert_leaves_at_base_is_in_none_of_its_regions() -> None:
    assert merged([0.0, 1.0], [3.0, 1.0], density=1.0) == [3, 1]
    assert merged([0.0, 0.0, 0.0, 8.0], [1.0, 2.0, 3.0, 4.0], density=0.75) == [0, 2, 3, 6]


def test_an_expert_of_weight_zero_has_no_region() -> None:
    assert merged(FIRST, SECOND, density=0.5, weight=(1.0, 0.0)) == [5, 0, 0, -4]


def test_equal_experts_give_their_region() -> None:
    base, experts = draw(WIDE, 1)
    method = get_method("localize_and_stitch")
    close(run(method, base, experts * 3, density=1.0), f64(experts[0]))
    assert torch.equal(
        run(method, base, experts * 2, density=0.2), run(method, base, experts, density=0.2)
    )


def test_regions_are_nested_across_densities() -> None:
    base, experts = draw(WIDE, 2)
    method = get_method("localize_and_stitch")
    # the weights keep overlaps from cancelling out
    moved = [
        run(method, base, experts, density=d, weight=(1.0, 0.1)) != base
        for d in (0.01, 0.05, 0.3, 0.6)
    ]
    for smaller, larger in pairwise(moved):
        assert not (smaller & ~larger).any()
    assert 2 <= int(moved[0].sum()) <= 4
