"""EMR: elect, mask, rescale."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from evomerge.methods import get_method
from evomerge.methods.elementwise.emr import modulators, rescaler, task_model, unify
from evomerge.methods.masks import unpack
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run

METHOD = get_method("emr")
BASE = torch.full((5,), 8.0)
DELTAS = [
    torch.tensor([1.0, -2.0, 3.0, 0.0, 1.0]),
    torch.tensor([2.0, 1.0, -1.0, 0.0, -1.0]),
    torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.0]),
]
UNIFIED = [2.0, -2.0, 3.0, 0.0, -1.0]  # the last: a sum of exactly zero elects minus


def extra(
    base: torch.Tensor, experts: list[torch.Tensor], weight: tuple[float, ...]
) -> Mapping[str, torch.Tensor]:
    assert METHOD.extra is not None
    return METHOD.extra(base, experts, context(len(experts)), weight=weight, scale=0.5)


def test_by_hand() -> None:
    assert unify(iter(DELTAS), BASE).tolist() == UNIFIED
    experts = [BASE + d for d in DELTAS]
    assert run(METHOD, BASE, experts, scale=0.5).tolist() == [9.0, 7.0, 9.5, 8.0, 7.5]


def test_weights_vote_and_scale() -> None:
    experts = [BASE + d for d in DELTAS]
    found = run(METHOD, BASE, experts, weight=(1.0, 0.25, 4.0)) - BASE
    assert found.tolist() == [-4.0, -2.0, 3.0, 0.0, 1.0]


def test_modulators_by_hand() -> None:
    found = list(modulators(iter(DELTAS), torch.tensor(UNIFIED)))
    assert [m.mask.tolist() for m in found] == [
        [True, True, True, False, False],
        [True, False, False, False, True],
        [False, True, False, False, False],
    ]
    assert [(m.magnitude, m.kept) for m in found] == [(7.0, 7.0), (5.0, 3.0), (1.5, 2.0)]


def test_task_model_by_hand() -> None:
    unified = torch.tensor(UNIFIED)
    second = list(modulators(iter(DELTAS), unified))[1]
    found = task_model(BASE, unified, second.mask, 0.5)
    assert found.tolist() == [9.0, 8.0, 8.0, 8.0, 7.5]


def test_the_rescaler_is_of_sums_over_all_tensors() -> None:
    """Two tensors of very different size: the ratio of the sums, not a mean of ratios."""
    draws = [draw((4, 5), 2, seed=1), draw((50, 60), 2, seed=2)]
    unified = [unify((e - base for e in experts), base) for base, experts in draws]
    for i in range(2):
        parts = [
            next(iter(modulators(iter([experts[i] - base]), u)))
            for (base, experts), u in zip(draws, unified, strict=True)
        ]
        found = rescaler(math.fsum(p.magnitude for p in parts), math.fsum(p.kept for p in parts))
        top = bottom = 0.0
        for (base, experts), u in zip(draws, unified, strict=True):
            delta = f64(experts[i]) - f64(base)
            top += np.abs(delta).sum()
            bottom += np.abs(f64(u))[delta * f64(u) > 0].sum()
        assert found == pytest.approx(top / bottom, rel=1e-12)
        assert 0 < found < 1


def test_a_task_that_agrees_nowhere_is_not_divided_by_zero() -> None:
    assert rescaler(3.0, 0.0) == 1.0
    assert rescaler(0.0, 0.0) == 1.0


def test_task_models_keep_the_mean_magnitude() -> None:
    base, experts = draw((30, 40), 3)
    unified = unify((e - base for e in experts), base)
    for expert, m in zip(experts, modulators((e - base for e in experts), unified), strict=True):
        found = task_model(base, unified, m.mask, rescaler(m.magnitude, m.kept)) - base
        assert float(found.abs().sum()) == pytest.approx(float((expert - base).abs().sum()), 1e-4)
        assert not ((found * (expert - base)) < 0).any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_experts_come_back(count: int) -> None:
    base, experts = draw(TALL, 1)
    close(run(METHOD, base, experts * count), f64(experts[0]))
    made = extra(base, experts * count, (1.0,) * count)
    assert torch.equal(base + made["unified"], experts[0])
    for name in context(count).experts:
        assert made[f"magnitude.{name}"] == made[f"kept.{name}"] > 0


def test_the_unified_vector_is_at_least_every_agreeing_change() -> None:
    base, experts = draw(WIDE, 5)
    unified = unify((e - base for e in experts), base)
    for expert in experts:
        delta = expert - base
        agrees = delta * unified > 0
        assert (unified.abs()[agrees] >= delta.abs()[agrees]).all()


def test_extra() -> None:
    base, experts = draw((5, 7), 3)
    weight = (1.0, 0.5, 0.25)
    made = extra(base, experts, weight)
    keys = {f"{k}.{e}" for k in ("mask", "magnitude", "kept") for e in context(3).experts}
    assert set(made) == {"unified"} | keys
    torch.testing.assert_close(run(METHOD, base, experts, weight=weight) - base, made["unified"])
    unified = f64(made["unified"])
    for name, expert, w in zip(context(3).experts, experts, weight, strict=True):
        delta = w * (f64(expert) - f64(base))
        mask = unpack(made[f"mask.{name}"], (5, 7)).numpy()
        np.testing.assert_array_equal(mask, delta * unified > 0)
        sums = made[f"magnitude.{name}"], made[f"kept.{name}"]
        assert [(s.dtype, s.ndim) for s in sums] == [(torch.float64, 0)] * 2
        expected = [np.abs(delta).sum(), np.abs(mask * unified).sum()]
        assert [float(s) for s in sums] == pytest.approx(expected, rel=1e-12)


def test_tiny_changes_are_masked_too() -> None:
    """A product of two such numbers would be zero in float32."""
    delta = torch.tensor([1e-30, -1e-30])
    (found,) = modulators(iter([delta]), delta)
    assert found.mask.all()
