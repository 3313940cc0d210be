"""Truncation of task vectors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import TALL, WIDE, close, draw, f64, run
from tests.methods.golden import draw_low_rank

METHOD = get_method("svd_truncation")


@pytest.mark.parametrize("shape", [WIDE, TALL])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_with_all_ranks_it_is_task_arithmetic(shape: tuple[int, int], count: int) -> None:
    base, experts = draw(shape, count)
    weight = (0.5, 0.25, 1.0, 0.75, 0.1)[:count]
    found = run(METHOD, base, experts, weight=weight, rank_share=1.0, scale=0.7)
    arithmetic = get_method("task_arithmetic")
    close(found, f64(run(arithmetic, base, experts, weight=weight, scale=0.7)))


def test_by_hand() -> None:
    """Of four singular values, half are two; a share of 0.25 is one, and so is less than that."""
    base = torch.ones(4, 4)
    experts = [base + torch.diag(torch.tensor(d)) for d in ([1.0, 4, 3, 2], [8.0, 5, 6, 7])]
    for share in (0.25, 0.01):
        found = run(METHOD, base, experts, weight=(1.0, 0.5), rank_share=(0.5, share), scale=2.0)
        close(found, 1 + 2 * np.diag([4.0, 4, 3, 0]))


def test_an_adapter_of_lower_rank_stays_whole() -> None:
    base, experts, _ = draw_low_rank((24, 40), 2)
    found = run(METHOD, base, experts, rank_share=2 / 24)
    close(found, f64(run(get_method("task_arithmetic"), base, experts)))


def test_more_ranks_come_nearer_to_task_arithmetic() -> None:
    base, experts = draw(WIDE, 1)
    whole = run(METHOD, base, experts, rank_share=1.0)
    errors = [
        float((run(METHOD, base, experts, rank_share=k / 6) - whole).norm()) for k in range(1, 7)
    ]
    assert all(a > b + 0.01 for a, b in pairwise(errors))
