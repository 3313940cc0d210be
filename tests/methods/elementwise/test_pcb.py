"""PCB-Merging: what is clipped, kept and brought to weights, and what happens to empty ranges."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import TALL, WIDE, close, draw, f64, run


def merged(*deltas: list[float], **values: Any) -> list[float]:
    base = torch.zeros(len(deltas[0]))
    return run(get_method("pcb"), base, [torch.tensor(d) for d in deltas], **values).tolist()


def test_by_hand() -> None:
    # clipped to 1 2 3 3, brought to 0 ½ 1 1; scores 0.76, 1.28, e tanh 9, e tanh 16
    assert merged([1.0, 2.0, 3.0, 4.0], density=0.25) == [0, 0, 0, 3]
    assert merged([1.0, 2.0, 3.0, 4.0], density=0.5) == [0, 0, 0, 3]  # the last one kept gets 0
    assert merged([1.0, 2.0, 3.0, 4.0], density=0.75) == pytest.approx([0, 0, 3, 3])
    assert merged([-1.0, 2.0, -3.0, 4.0], density=0.75) == pytest.approx([0, 0, -3, 3])


def test_what_goes_against_the_sum_loses() -> None:
    first, second = [1.0, 3.0, 0.1, -0.2, 0.3], [-0.2, -1.0, 0.1, -2.5, 1.5]
    # clipped to 1 and 1½; scores 4.9 7.4 0.02 0.51 0.55 and −0.16 −2.2 0.02 7.39 7.32, of which
    # three are kept and the third gets 0
    assert merged(first, second, density=0.6) == pytest.approx([1, 1, 0, -1.5, 1.5])


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_weights_scale_what_is_merged(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 3)
    method = get_method("pcb")
    plain = f64(run(method, base, experts, density=0.4)) - f64(base)
    close(run(method, base, experts, density=0.4, weight=0.5), f64(base) + plain / 2)
    close(run(method, base, experts, density=0.4, scale=0.5), f64(base) + plain / 2)


def test_an_expert_of_weight_zero_is_left_out() -> None:
    base, experts = draw(WIDE, 3)
    method = get_method("pcb")
    found = run(method, base, experts, weight=(0.0, 1.2, 0.7))
    assert torch.equal(found, run(method, base, experts[1:], weight=(1.2, 0.7)))
    assert torch.equal(run(method, base, experts, weight=0.0), base)


def test_what_is_moved_is_nested_across_densities() -> None:
    base, experts = draw(WIDE, 1)
    method = get_method("pcb")
    moved = [run(method, base, experts, density=d) != base for d in (0.05, 0.2, 0.5, 1.0)]
    for smaller, larger in pairwise(moved):
        assert not (smaller & ~larger).any()
    assert [int(m.sum()) for m in moved[:2]] == [11, 47]  # the share, less the one that gets 0


def test_identical_experts_move_as_one_does() -> None:
    base, experts = draw(WIDE, 1)
    method = get_method("pcb")
    found = f64(run(method, base, experts * 4, density=0.3)) - f64(base)
    delta = f64(experts[0]) - f64(base)
    largest = sorted(abs(delta).flat)[-2]
    kept = found != 0
    assert kept.sum() == 71
    assert abs(found - delta.clip(-largest, largest))[kept].max() < 1e-6


def test_empty_ranges() -> None:
    assert merged([2.0, 2.0, 2.0], density=0.5) == [2, 2, 2]  # equal magnitudes, equal scores
    assert merged([2.0], density=0.1) == [2]
    assert merged([0.0, 0.0]) == [0, 0]
    alone = merged([1.0, 2.0, 3.0, 4.0], density=0.75)
    beside_zeros = merged([1.0, 2.0, 3.0, 4.0], [0.0] * 4, density=0.75)
    assert beside_zeros == pytest.approx(alone)  # though N is 2, zeros weigh nothing
    assert merged([1.0, -2.0], [-1.0, 2.0], density=1.0) == [0, 0]
