"""Sens-Merging: how sensitivities become coefficients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import close, draw, f64, run, sum_formula
from tests.methods.drawn import each, informed

SENS = get_method("sens")
BASE, EXPERTS = draw((5,), 2)


def merge(one: tuple[float, float], two: tuple[float, float], **values: Any) -> torch.Tensor:
    where = informed(each("sensitivity", torch.tensor(one), torch.tensor(two)), 2)
    return run(SENS, BASE, EXPERTS, where, **values)


def coefficients(*wanted: float) -> Any:
    return sum_formula(f64(BASE), [f64(e) - f64(BASE) for e in EXPERTS], wanted, 1.0)


def test_by_hand() -> None:
    """Scores 0.5 · 3/4 and 0.25 · 1/4 at temperature 0.3125 / ln 3: shares of 3 to 1."""
    found = merge((0.5, 6.0), (0.25, 2.0), weight=1.0, temperature=0.3125 / math.log(3))
    close(found, coefficients(2 * 0.75, 2 * 0.25))


@pytest.mark.parametrize("pair", [(0.5, 3.0), (0.0, 0.0), (0.5, 0.0)])
def test_equal_sensitivities_give_task_arithmetic(pair: tuple[float, float]) -> None:
    weight = (0.25, 0.75)
    expected = run(get_method("task_arithmetic"), BASE, EXPERTS, weight=weight, scale=0.7)
    close(merge(pair, pair, weight=weight, scale=0.7), f64(expected))


def test_without_distances_the_own_task_decides() -> None:
    found = merge((0.5, 0.0), (0.25, 0.0), weight=1.0, temperature=0.125 / math.log(3))
    close(found, coefficients(2 * 0.75, 2 * 0.25))


def test_a_low_temperature_gives_the_layer_to_one_expert() -> None:
    found = merge((0.5, 3.0), (0.9, 5.0), weight=1.0, temperature=0.001)
    close(found, coefficients(0.0, 2.0))


def test_a_high_temperature_gives_task_arithmetic() -> None:
    close(merge((0.1, 3.0), (0.9, 5.0), weight=0.3, temperature=1e9), coefficients(0.3, 0.3))


def test_only_ratios_of_distances_count() -> None:
    close(merge((0.1, 3e20), (0.9, 5e20)), f64(merge((0.1, 3.0), (0.9, 5.0))))


def test_one_expert_is_itself() -> None:
    where = informed(each("sensitivity", torch.tensor([0.3, 0.0])), 1)
    close(run(SENS, BASE, EXPERTS[:1], where, weight=1.0), f64(EXPERTS[0]))
