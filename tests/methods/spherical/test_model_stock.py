"""Model Stock: the ratio by hand and by formula, one angle a tensor or one a row."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import TALL, WIDE, Array, close, context, draw, f64, run
from tests.methods.golden import Unread, draw_low_rank


def formula(base: Array, experts: list[Array]) -> Array:
    """One angle for the whole tensor."""
    deltas = [e - base for e in experts]
    cosines = [
        np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
        for a, b in itertools.combinations(deltas, 2)
    ]
    cosine, count = np.mean(cosines), len(experts)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    average: Array = sum(experts, np.zeros_like(base)) / count
    merged: Array = ratio * average + (1 - ratio) * base
    return merged


@pytest.mark.parametrize("shape", [WIDE, TALL, (7,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("count", [2, 5])
def test_experts_with_something_in_common(shape: tuple[int, ...], count: int) -> None:
    base, experts = draw(shape, count)
    common = draw(shape, 1, seed=1)[1][0] - base
    experts = [e + common for e in experts]
    found = run(get_method("model_stock"), base, experts)
    close(found, formula(f64(base), [f64(e) for e in experts]))
    half = run(get_method("model_stock"), base, experts, scale=0.5)
    close(half, f64(base + found) / 2)


@pytest.mark.parametrize("shape", [WIDE, TALL])
@pytest.mark.parametrize("count", [2, 5])
def test_lora_experts_are_merged_from_their_factors(shape: tuple[int, int], count: int) -> None:
    base, experts, factors = draw_low_rank(shape, count, rank=1)
    where = replace(context(count), factors=factors)
    found = run(get_method("model_stock"), base, Unread(experts), where)
    close(found, formula(f64(base), [f64(e) for e in experts]))


def test_by_hand() -> None:
    base = torch.tensor([1.0, 1.0])
    experts = [base + torch.tensor([1.0, 0.0]), base + torch.tensor([0.5, math.sqrt(0.75)])]
    found = run(get_method("model_stock"), base, experts)  # 60 degrees: t = 2/3
    assert found.tolist() == pytest.approx([1 + 0.5, 1 + math.sqrt(0.75) / 3])


@pytest.mark.parametrize("per_row", [False, True])
def test_the_angles_between_equal_right_and_opposite(per_row: bool) -> None:
    method = get_method("model_stock")
    base, experts = draw(WIDE, 1)
    close(run(method, base, experts * 3, per_row=per_row), f64(experts[0]))
    delta = experts[0] - base
    for other in (-delta, -3 * delta, torch.zeros(WIDE)):
        found = run(method, base, [experts[0], base + other], per_row=per_row)
        assert torch.equal(found, base)


def test_each_row_has_its_own_angle() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0]])
    second = torch.tensor([[0.0, 1.0], [1.0, 2.0], [-1.0, 0.1]])
    found = run(get_method("model_stock"), torch.zeros(3, 2), [first, second], per_row=True)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]))


def test_a_vector_is_one_row() -> None:
    base, experts = draw((7,), 3)
    method = get_method("model_stock")
    close(run(method, base, experts, per_row=True), f64(run(method, base, experts)))
