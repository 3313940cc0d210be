"""WIDEN: changes of columns, their ranks and scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run
from tests.methods.formulas.elementwise_b import widen as formula

BASE = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
EXPERT = torch.tensor([[3.0, 1.0, 1.0], [0.0, 0.0, 2.0]])
# lengths change by 2, 0, 1.24: ranks ⅔, 0, ⅓; only the last column turns: ranks 0, 0, ⅔


def test_by_hand_alone() -> None:
    method = get_method("widen")
    assert torch.equal(run(method, BASE, [EXPERT]), EXPERT)
    found = run(method, BASE, [EXPERT], calibration=0.5)  # the mean rank itself is not above it
    assert found.tolist() == [[2.5, 1, 1], [0, 0, 1.5]]
    found = run(method, BASE, [EXPERT], calibration=0.5, ratio=0.9)
    assert found.tolist() == [[2.5, 1, 1], [0, 0, 1.0]]


def test_by_hand_beside_an_expert_that_changed_nothing() -> None:
    def softmax(rank: float) -> float:
        return math.exp(rank) / (math.exp(rank) + 1)

    method = get_method("widen")
    found = run(method, BASE, [EXPERT, BASE], ratio=3.0)
    first = (softmax(2 / 3) + softmax(0)) / 2
    last = (softmax(1 / 3) + softmax(2 / 3)) / 2
    close(found, f64(torch.tensor([[1 + 2 * first, 1, 1], [0, 0, 2 * last]])))
    found = run(method, BASE, [EXPERT, BASE])
    first, last = (1 + softmax(0)) / 2, (softmax(1 / 3) + 1) / 2
    close(found, f64(torch.tensor([[1 + 2 * first, 1, 1], [0, 0, 2 * last]])))
    assert torch.equal(run(method, BASE, [EXPERT, BASE], weight=(1.0, 0.0)), EXPERT)


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_columns_and_rows_in_another_order(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 3)
    experts[1][:, ::2] = base[:, ::2]  # ties
    method = get_method("widen")
    values: dict[str, Any] = {"ratio": 1.2, "calibration": 0.7}
    found = run(method, base, experts, **values)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randperm(shape[1], generator=generator)
    rows = torch.randperm(shape[0], generator=generator)
    turned = run(method, base[rows][:, columns], [e[rows][:, columns] for e in experts], **values)
    close(turned, f64(found[rows][:, columns]))


def test_columns_that_did_not_move_have_the_lowest_rank() -> None:
    """Their cosine with themselves need not be 1 after rounding."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(50, 60, generator=generator)
    moved = base + 0.1 * torch.randn(50, 60, generator=generator)
    still = base.clone()
    still[:, :3] = moved[:, :3]
    found = run(get_method("widen"), base, [moved, still], ratio=0.5)
    values = {"weight": (1.0, 1.0), "ratio": 0.5, "calibration": 1.0, "scale": 1.0}
    close(found, formula(f64(base), [f64(moved), f64(still)], context(2), values))


def test_nothing_calibrated_gives_identical_experts_their_average() -> None:
    base, experts = draw(WIDE, 1)
    close(run(get_method("widen"), base, experts * 4, ratio=2.0), f64(experts[0]))


def test_columns_of_zeros() -> None:
    base, experts = draw(WIDE, 2)
    base[:, :7] = 0
    experts[0][:, 3:12] = 0
    assert run(get_method("widen"), base, experts).isfinite().all()
