"""Consensus TA: TALL masks, the vote of masks, and what is handed out for single tasks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.methods import get_method
from evomerge.methods.elementwise.consensus import tall_masks
from evomerge.methods.masks import unpack
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run

METHOD = get_method("consensus_ta")


def test_masks_by_hand() -> None:
    deltas = [torch.tensor([4.0, 1.0, -2.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0])]
    total = deltas[0] + deltas[1]
    first, second = tall_masks(deltas, total, (0.5, 0.25))
    # first: 4 > 0.5, 1 > 1 no (not strictly), 2 > 1, 0 > 0 no
    assert first.tolist() == [True, False, True, False, False]
    assert second.tolist() == [False, True, True, False, True]


def test_vote_by_hand() -> None:
    base = torch.full((5,), 10.0)
    experts = [
        base + torch.tensor([4.0, 1.0, -2.0, 0.0, 1.0]),
        base + torch.tensor([1.0, 2.0, 2.5, 0.0, 2.0]),
    ]
    values: dict[str, Any] = {"weight": 1.0, "threshold": (0.5, 0.25), "scale": 0.5}
    found = {k: run(METHOD, base, experts, agreement=k, **values).tolist() for k in (0, 1, 2, 3)}
    assert found == {
        0: [12.5, 11.5, 10.25, 10.0, 11.5],
        1: [12.5, 11.5, 10.25, 10.0, 11.5],  # an entry that no expert moves needs no vote
        2: [10.0, 10.0, 10.25, 10.0, 10.0],
        3: [10.0] * 5,
    }


@pytest.mark.parametrize("count", [1, 2, 5])
def test_without_a_vote_it_is_task_arithmetic(count: int) -> None:
    base, experts = draw(TALL, count)
    expected = run(get_method("task_arithmetic"), base, experts, weight=0.5, scale=0.75)
    close(run(METHOD, base, experts, weight=0.5, scale=0.75, agreement=0), f64(expected))


def test_more_votes_keep_fewer_entries() -> None:
    base, experts = draw((60, 40), 5)
    kept = [run(METHOD, base, experts, agreement=k) != base for k in range(7)]
    for more, fewer in pairwise(kept):
        assert not (fewer & ~more).any()
    assert [bool(k.any()) for k in kept] == [True] * 6 + [False]


def test_entries_far_from_the_others_sum_need_a_low_threshold() -> None:
    base, experts = draw((60, 40), 3)
    deltas = [e - base for e in experts]
    total = deltas[0] + deltas[1] + deltas[2]
    masks = [tall_masks(deltas, total, (t,) * 3) for t in (0.1, 0.4, 0.8)]
    for lower, higher in pairwise(masks):
        assert all(not (h & ~low).any() for low, h in zip(lower, higher, strict=True))


@pytest.mark.parametrize(("count", "moved"), [(2, True), (3, True), (4, False)])
def test_equal_experts(count: int, moved: bool) -> None:
    """Each is its change against count - 1 times as much: needed while 0.4 (count - 1) < 1."""
    base, experts = draw(WIDE, 1)
    found = run(METHOD, base, experts * count, scale=1 / count)
    close(found, f64(experts[0]) if moved else f64(base))


def test_an_expert_of_weight_0_has_no_vote() -> None:
    base, experts = draw(WIDE, 2)
    found = run(METHOD, base, experts, weight=(1.0, 0.0), agreement=2)
    assert torch.equal(found, base)


def test_extra_gives_each_task_back() -> None:
    base, experts = draw((5, 7), 3)
    where = context(3)
    weight, threshold = (1.0, 0.5, 0.25), (0.25, 0.5, 0.5)
    assert METHOD.extra is not None
    extra = METHOD.extra(
        base, experts, where, weight=weight, threshold=threshold, agreement=2, scale=0.3
    )
    assert set(extra) == {"unified", *(f"mask.{e}" for e in where.experts)}
    own = [w * (f64(e) - f64(base)) for e, w in zip(experts, weight, strict=True)]
    np.testing.assert_allclose(f64(extra["unified"]), sum(own), atol=1e-6)
    for name, x, t in zip(where.experts, own, threshold, strict=True):
        mask = unpack(extra[f"mask.{name}"], (5, 7)).numpy()
        np.testing.assert_array_equal(mask, np.abs(x) > t * np.abs(sum(own) - x))
        assert 0 < mask.sum() < 35


def test_tasks_that_share_no_entry_come_back_whole() -> None:
    base, experts = draw((4, 6), 2)
    experts[0][:, :3], experts[1][:, 3:] = base[:, :3], base[:, 3:]
    assert METHOD.extra is not None
    extra = METHOD.extra(base, experts, context(2), weight=(1.0, 1.0), threshold=(0.4, 0.4))
    for name, expert in zip(context(2).experts, experts, strict=True):
        assert torch.equal(base + extra["unified"] * unpack(extra[f"mask.{name}"], (4, 6)), expert)
