"""OTA: which entries are grafted, and how curvature weighs those that are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import WIDE, close, draw, f64, names, run
from tests.methods.drawn import draw_statistics, each, informed

OTA = get_method("ota")
BASE = torch.zeros(4)
ONE = torch.tensor([1.0, 2.0, 3.0, 0.0])
TWO = torch.tensor([4.0, 0.0, -1.0, 2.0])


def merge(one: list[float], two: list[float], **values: Any) -> torch.Tensor:
    states = each("second_moment", torch.tensor(one), torch.tensor(two))
    return run(OTA, BASE, [ONE, TWO], informed(states, 2), **values)


def test_by_hand() -> None:
    """v τ² is (16, 4, 9, 0) and (16, 0, 4, 4): half of it is two entries, and a tie a third."""
    found = merge([16.0, 1.0, 1.0, 1.0], [1.0, 1.0, 4.0, 1.0], density=0.5)
    # entry 0: P is 4 and 1; entry 1: dropped by both; entry 2: 1 and 2; entry 3: the second alone
    close(found, f64(torch.tensor([(4 + 4) / 5, 0.0, (3 - 2) / 3, 2.0])))


def test_density_one_grafts_nothing_away() -> None:
    found = merge([16.0, 1.0, 1.0, 1.0], [1.0, 1.0, 4.0, 1.0], density=1.0, power=1.0)
    close(found, f64(torch.tensor([(16 + 4) / 17, 1.0, (3 - 4) / 5, 1.0])))


def test_densities_differ_by_expert() -> None:
    ones = [1.0] * 4
    found = merge(ones, ones, density=(0.25, 1.0))
    close(found, f64(torch.tensor([4.0, 0.0, 1.0, 2.0])))


def test_without_curvature_nothing_is_grafted() -> None:
    zeros = [0.0] * 4
    assert torch.equal(merge(zeros, zeros), BASE)
    close(merge(zeros, zeros, density=1.0, weight=(0.75, 0.25)), f64(ONE * 0.75 + TWO * 0.25))


def test_tiny_second_moments_still_tell_experts_apart() -> None:
    """Adam's states are of the order of 1e-12 and smaller; their squares leave float32."""
    tiny = [1e-30] * 4
    found = merge(tiny, [4e-30] * 4, power=0.5, density=1.0)
    close(found, f64((ONE + 2 * TWO) / 3))


@pytest.mark.parametrize("size", [1e-9, 1e6])
def test_a_common_unit_of_the_gradients_does_not_matter(size: float) -> None:
    base, experts = draw(WIDE, 2)
    drawn = draw_statistics(["second_moment"], [], WIDE, names(2))
    scaled = {key: v * size for key, v in drawn.items()}
    found, expected = (run(OTA, base, experts, informed(d, 2)) for d in (scaled, drawn))
    close(found, f64(expected))


def test_grafts_are_nested() -> None:
    base, experts = draw(WIDE, 1)
    where = informed(draw_statistics(["second_moment"], [], WIDE, names(1)), 1)
    before = torch.zeros(WIDE, dtype=torch.bool)
    for density in (0.05, 0.2, 0.4, 0.7, 1.0):
        found = run(OTA, base, experts, where, density=density)
        moved = found != base
        close(found, f64(torch.where(moved, experts[0], base)))  # a graft is the expert's own entry
        assert bool((moved | ~before).all())
        before = moved
    assert torch.equal(found, experts[0])


def test_how_much_is_grafted() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(20, 50)
    expert = torch.randn(20, 50, generator=generator)
    states = each("second_moment", torch.rand(20, 50, generator=generator) + 0.01)
    found = run(OTA, base, [expert], informed(states, 1), density=0.37)
    assert int((found != 0).sum()) == 370


def test_weights_of_zero() -> None:
    ones = [1.0] * 4
    close(merge(ones, ones, weight=(0.0, 0.5), density=1.0), f64(TWO))
    assert torch.equal(merge(ones, ones, weight=(0.0, 0.0)), BASE)


def test_identical_experts_give_that_expert_ungrafted() -> None:
    base, experts = draw(WIDE, 1)
    where = informed(draw_statistics(["second_moment"], [], WIDE, names(3)), 3)
    found = run(OTA, base, experts * 3, where, density=1.0, weight=(0.3, 0.9, 0.6))
    close(found, f64(experts[0]))
