"""Multi-SLERP: mean direction at mean length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import get_method
from tests.methods.cases import WIDE, close, draw, f64, run

METHODS = pytest.mark.parametrize("name", ["multislerp", "karcher"])


def merged(name: str, *points: list[float], **values: Any) -> list[float]:
    experts = [torch.tensor(p) for p in points]
    return run(get_method(name), torch.zeros_like(experts[0]), experts, **values).tolist()


def test_by_hand() -> None:
    found = merged("multislerp", [2.0, 0.0], [0.0, 4.0], weight=(1.0, 1.0))
    assert found == pytest.approx([3 / math.sqrt(2)] * 2)
    found = merged("multislerp", [2.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 6.0])
    assert found == pytest.approx([4 / math.sqrt(3)] * 3)
    found = merged("multislerp", [1.0, 0.0], [0.0, 1.0], weight=(0.75, 0.25))
    assert found == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])


@METHODS
def test_the_length_is_the_mean_length(name: str) -> None:
    base, experts = draw(WIDE, 5)
    weight = (0.1, 0.9, 0.4, 0.3, 0.3)
    lengths = [np.linalg.norm(f64(e)) for e in experts]
    found = f64(run(get_method(name), base, experts, weight=weight))
    assert np.linalg.norm(found) == pytest.approx(float(np.dot(weight, lengths)) / 2, rel=1e-6)


@METHODS
@pytest.mark.parametrize("task_vectors", [False, True])
def test_equal_experts_give_that_expert(name: str, task_vectors: bool) -> None:
    base, experts = draw(WIDE, 1)
    weight = (0.2, 0.5, 0.9)
    found = run(get_method(name), base, experts * 3, weight=weight, task_vectors=task_vectors)
    close(found, f64(experts[0]))


@METHODS
def test_a_single_weight_gives_that_expert(name: str) -> None:
    base, experts = draw(WIDE, 3)
    for i, expert in enumerate(experts):
        weight = tuple(0.3 * (i == j) for j in range(3))
        assert torch.equal(run(get_method(name), base, experts, weight=weight), expert)
        found = run(get_method(name), base, experts, weight=weight, task_vectors=True)
        close(found, f64(expert))
    assert torch.equal(run(get_method(name), base, experts[:1]), experts[0])


@METHODS
def test_a_base_of_zeros_makes_weights_task_vectors(name: str) -> None:
    base, experts = draw(WIDE, 4)
    weight = (0.1, 0.2, 0.3, 0.9)
    moved = run(get_method(name), torch.zeros(WIDE), [e - base for e in experts], weight=weight)
    found = run(get_method(name), base, experts, weight=weight, task_vectors=True)
    close(found, f64(base) + f64(moved))
    found = run(get_method(name), base, experts, weight=weight, task_vectors=True, scale=0.5)
    close(found, f64(base) + f64(moved) / 2)


@METHODS
def test_two_equal_shares_of_equal_length_are_slerp(name: str) -> None:
    base, experts = draw(WIDE, 2)
    other = experts[0].flip(1)  # as long as the first
    found = run(get_method(name), base, [experts[0], other])
    close(found, f64(run(get_method("slerp"), base, [experts[0], other], t=0.5)))


@METHODS
def test_directions_that_cancel_out_are_averaged(name: str) -> None:
    assert merged(name, [1.0, 0.0], [-3.0, 0.0]) == pytest.approx([-1, 0])
    around = [[math.cos(a), math.sin(a)] for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert merged(name, *around) == pytest.approx([0, 0], abs=1e-6)


@METHODS
def test_zero_vectors_count_for_the_length_only(name: str) -> None:
    found = merged(name, [2.0, 0.0], [0.0, 0.0], [0.0, 2.0], weight=(1.0, 2.0, 1.0))
    assert found == pytest.approx([math.sqrt(0.5)] * 2)
    assert merged(name, [0.0, 0.0], [0.0, 0.0]) == [0, 0]
    assert merged(name, [0.0, 0.0], [3.0, 4.0], weight=(1.0, 0.0)) == [0, 0]


@METHODS
def test_weights_that_sum_to_zero_are_refused(name: str) -> None:
    base, experts = draw(WIDE, 3)
    with pytest.raises(CandidateError, match=rf"{name}: the weights of .* sum to 0; at least one"):
        run(get_method(name), base, experts, weight=0.0)
    assert torch.equal(run(get_method(name), base, experts, weight=0.0, scale=0.0), base)
