"""Fisher merging: whose information wins, and what happens where nobody has any."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import WIDE, close, draw, f64, names, run
from tests.methods.drawn import draw_statistics, each, informed

FISHER = get_method("fisher")
BASE = torch.tensor([1.0, 1.0, 1.0])
ONE = torch.tensor([9.0, 9.0, 9.0])
TWO = torch.tensor([1.0, 1.0, 5.0])


def merge(one: list[float], two: list[float], **values: Any) -> torch.Tensor:
    where = informed(each("fisher", torch.tensor(one), torch.tensor(two)), 2)
    return run(FISHER, BASE, [ONE, TWO], where, **values)


def test_by_hand() -> None:
    """Any tensor is merged, here a vector; equal root mean squares, so that norms play no part."""
    found = merge([3.0, 1.0, 0.0], [1.0, 3.0, 0.0], floor=1e-8)
    close(found, f64(torch.tensor([7.0, 3.0, 7.0])))


def test_without_normalisation_the_confident_expert_wins() -> None:
    one, two = [300.0, 300.0, 300.0], [1.0, 1.0, 1.0]
    close(merge(one, two), f64((ONE + TWO) / 2))
    expected = TWO + (ONE - TWO) * 300 / 301
    close(merge(one, two, normalise=False, floor=1e-8), f64(expected))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("size", [1e-18, 1e12])
def test_the_unit_of_the_loss_does_not_matter(normalise: bool, size: float) -> None:
    """With a floor as published, values of 1e-18 would leave nothing but the plain mean."""
    base, experts = draw(WIDE, 2)
    drawn = draw_statistics(["fisher"], [], WIDE, names(2))
    scaled = {key: f * size for key, f in drawn.items()}
    found, expected = (
        run(FISHER, base, experts, informed(d, 2), normalise=normalise) for d in (scaled, drawn)
    )
    close(found, f64(expected))
    assert float((found - (experts[0] + experts[1]) / 2).abs().max()) > 0.01


@pytest.mark.parametrize("normalise", [True, False])
def test_no_information_at_all_gives_the_weighted_mean(normalise: bool) -> None:
    found = merge([0.0] * 3, [0.0] * 3, weight=(0.75, 0.25), normalise=normalise)
    close(found, f64(ONE * 0.75 + TWO * 0.25))


def test_one_expert_without_information() -> None:
    """Its floor is all it has, against the other's values."""
    found = merge([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], floor=0.5)
    close(found, f64(ONE * 0.25 + TWO * 0.75))


def test_a_high_floor_gives_the_mean() -> None:
    close(merge([3.0, 1.0, 0.0], [1.0, 3.0, 0.0], floor=1e9), f64((ONE + TWO) / 2))


def test_weights_of_zero() -> None:
    one, two = [3.0, 1.0, 0.0], [1.0, 3.0, 0.0]
    close(merge(one, two, weight=(0.5, 0.0)), f64(ONE))
    assert torch.equal(merge(one, two, weight=(0.0, 0.0)), BASE)


def test_identical_experts_give_that_expert() -> None:
    base, experts = draw(WIDE, 1)
    drawn = draw_statistics(["fisher"], [], WIDE, names(3))
    found = run(FISHER, base, experts * 3, informed(drawn, 3), weight=(0.3, 0.9, 0.6))
    close(found, f64(experts[0]))


def test_each_entry_lies_between_the_experts() -> None:
    base, experts = draw(WIDE, 5)
    where = informed(draw_statistics(["fisher"], [], WIDE, names(5)), 5)
    found = run(FISHER, base, experts, where)
    stacked = torch.stack(experts)
    assert bool((found >= stacked.amin(0) - 1e-6).all())
    assert bool((found <= stacked.amax(0) + 1e-6).all())
