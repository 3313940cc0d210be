"""Linear, task arithmetic, TIES, DARE and SLERP (entry by entry in ``tests.methods.cases``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.methods import Context
from tests.methods.cases import (
    Array,
    drop_formula,
    elect_formula,
    linear_formula,
    slerp_formula,
    sum_formula,
    trim_formula,
)
from tests.methods.golden import golden

# dyadic, so that weighted sums that vanish do so in float32 and in float64
WEIGHTS = (0.25, 0.5, 1.0, 0.125, 0.75)
DENSITIES = (0.2, 0.5, 1.0, 0.05, 0.9)
HALVES = (0.5, 0.25, 1.0, 0.125, 0.5)


@golden("linear", values=lambda count: {"weight": WEIGHTS[:count]})
def linear(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    return linear_formula(experts, values["weight"])


@golden("task_arithmetic", values=lambda count: {"weight": WEIGHTS[:count], "scale": 0.7})
def task_arithmetic(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    return sum_formula(base, [e - base for e in experts], values["weight"], values["scale"])


@golden("ties", values=lambda count: {"weight": WEIGHTS[:count], "density": DENSITIES[:count]})
def ties(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    trimmed = [
        trim_formula(e - base, density)
        for e, density in zip(experts, values["density"], strict=True)
    ]
    return elect_formula(base, trimmed, values["weight"], values["scale"], values["normalise"])


def dropped(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> list[Array]:
    return [
        drop_formula(expert - base, density, context, name)
        for expert, density, name in zip(experts, values["density"], context.experts, strict=True)
    ]


@golden("dare_linear", values=lambda count: {"density": DENSITIES[:count]})
def dare_linear(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas = dropped(base, experts, context, values)
    return sum_formula(base, deltas, values["weight"], values["scale"])


@golden("dare_ties", values=lambda count: {"weight": WEIGHTS[:count], "density": HALVES[:count]})
def dare_ties(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas = dropped(base, experts, context, values)
    return elect_formula(base, deltas, values["weight"], values["scale"], values["normalise"])


@golden("slerp", values=lambda count: {"t": 0.3})
def slerp(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    return slerp_formula(experts[0], experts[1], values["t"])
