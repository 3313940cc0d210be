"""AIM: the stronger the base's input channel, the less of the merge it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import get_method
from tests.methods.cases import WIDE, close, draw, f64, run
from tests.methods.drawn import draw_statistics, informed

AIM = get_method("aim")


def merge(magnitude: torch.Tensor, base: Any, experts: Any, **values: Any) -> torch.Tensor:
    where = informed({("magnitude", "base"): magnitude}, len(experts))
    return run(AIM, base, experts, where, **values)


def test_by_hand() -> None:
    """Of a finished merge, given as the only expert."""
    base, merged = torch.zeros(2, 3), torch.tensor([[10.0, 10.0, 10.0], [0.0, -5.0, 20.0]])
    found = merge(torch.tensor([4.0, 2.0, 0.0]), base, [merged], weight=1.0)
    close(found, f64(torch.tensor([[4.0, 7.0, 10.0], [0.0, -3.5, 20.0]])))


def test_omega_one_is_task_arithmetic() -> None:
    base, experts = draw(WIDE, 3)
    weight = (0.25, 1.0, 0.5)
    found = merge(torch.rand(40), base, experts, weight=weight, omega=1.0, scale=0.7)
    expected = run(get_method("task_arithmetic"), base, experts, weight=weight, scale=0.7)
    assert torch.equal(found, expected)


def test_omega_zero_keeps_the_strongest_channel_at_the_base() -> None:
    base, experts = draw(WIDE, 2)
    magnitude = torch.rand(40)
    magnitude[7] = 2.0
    found = merge(magnitude, base, experts, omega=0.0)
    assert torch.equal(found[:, 7], base[:, 7])


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_the_unit_of_the_activations_does_not_matter(size: float) -> None:
    base, experts = draw(WIDE, 2)
    magnitude = torch.rand(40)
    close(merge(magnitude * size, base, experts), f64(merge(magnitude, base, experts)))


def test_a_layer_that_nothing_reaches_is_merged_in_full() -> None:
    base, experts = draw(WIDE, 2)
    expected = run(get_method("task_arithmetic"), base, experts)
    assert torch.equal(merge(torch.zeros(40), base, experts), expected)


def test_the_experts_own_magnitudes_are_not_looked_at() -> None:
    base, experts = draw(WIDE, 1)
    drawn = draw_statistics(["magnitude"], [], WIDE, ["expert-c"])
    assert torch.equal(
        run(AIM, base, experts, informed(drawn, 1)),
        run(AIM, base, experts),  # both follow the policy for tensors without statistics
    )


def test_a_magnitude_of_another_width_is_named() -> None:
    base, experts = draw(WIDE, 1)
    with pytest.raises(CandidateError, match=r"magnitude.*'base'.*\(6,\).*\(40,\)"):
        merge(torch.ones(6), base, experts)
