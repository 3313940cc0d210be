"""NuSLERP, multi-SLERP, Karcher mean and Model Stock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array, slerp_formula
from tests.methods.golden import golden

WEIGHTS = (0.25, 0.75, 1.0, 0.5, 0.125)


def arc_values(count: int) -> Mapping[str, Any]:
    return {"weight": WEIGHTS[:count], "scale": 0.7}


def points(base: Array, experts: Sequence[Array], values: Mapping[str, Any]) -> list[Array]:
    return [e - base if values["task_vectors"] else e for e in experts]


def placed(base: Array, merged: Array, values: Mapping[str, Any]) -> Array:
    start = 0.0 if values["task_vectors"] else base
    result: Array = base + values["scale"] * (merged - start)
    return result


@golden("nuslerp", values=arc_values)
@golden("nuslerp", values=lambda count: {"weight": (0.75, 0.25), "row_wise": True})
@golden("nuslerp", values=lambda count: {**arc_values(count), "task_vectors": True}, low_rank=True)
@golden(
    "nuslerp",
    values=lambda count: {**arc_values(count), "task_vectors": True, "row_wise": True},
)
def nuslerp(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    first, second = points(base, experts, values)
    t = values["weight"][1] / sum(values["weight"])
    if values["row_wise"]:
        merged = np.stack([slerp_formula(a, b, t) for a, b in zip(first, second, strict=True)])
    else:
        merged = slerp_formula(first, second, t)
    return placed(base, merged, values)


@golden("multislerp", values=arc_values)
@golden(
    "multislerp", values=lambda count: {**arc_values(count), "task_vectors": True}, low_rank=True
)
def multislerp(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    """All the published steps: mean on the sphere, tangent space, exponential map."""
    vectors = [v.ravel() for v in points(base, experts, values)]
    weights = np.array(values["weight"]) / sum(values["weight"])
    norms = np.array([math.hypot(*v) for v in vectors])
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / math.hypot(*mean)
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True))
    merged = exponential(mean, tangent) * (weights @ norms)
    return placed(base, merged.reshape(base.shape), values)


def exponential(point: Array, tangent: Array) -> Array:
    size = math.hypot(*tangent)
    return math.cos(size) * point + (math.sin(size) / size if size else 1.0) * tangent


@golden("karcher", values=arc_values)
@golden("karcher", values=lambda count: {**arc_values(count), "task_vectors": True}, low_rank=True)
def karcher(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    """Logarithms and exponentials of whole vectors, until the mean logarithm vanishes."""
    vectors = [v.ravel() for v in points(base, experts, values)]
    weights = np.array(values["weight"]) / sum(values["weight"])
    norms = np.array([math.hypot(*v) for v in vectors])
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = units[0]
    for _ in range(500):
        step = sum(w * logarithm(mean, u) for w, u in zip(weights, units, strict=True))
        mean = exponential(mean, step)
        mean = mean / math.hypot(*mean)
    left = sum(w * logarithm(mean, u) for w, u in zip(weights, units, strict=True))
    assert math.hypot(*left) < 1e-12
    return placed(base, (mean * (weights @ norms)).reshape(base.shape), values)


def logarithm(point: Array, unit: Array) -> Array:
    """The tangent at ``point`` that leads to ``unit``; the angle from the chord, exact if small."""
    away = unit - (unit @ point) * point
    size = math.hypot(*away)
    angle = math.atan2(size, float(unit @ point))
    return away * (angle / size) if size else away


@golden("model_stock", values=lambda count: {"scale": 0.7, "per_row": True})
def model_stock(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    """Row by row (a tensor as one row is tested by hand: random experts may be drawn to base)."""
    shape = base.shape if values["per_row"] else (1, base.size)
    deltas = [(e - base).reshape(shape) for e in experts]
    count = len(deltas)
    merged = np.zeros(shape)
    for at in range(shape[0]):
        rows = [d[at] for d in deltas]
        pairs = list(itertools.combinations(rows, 2))
        found = [a @ b / (math.hypot(*a) * math.hypot(*b) or 1.0) for a, b in pairs]
        cosine = max(sum(found) / len(pairs), 0.0)
        ratio = count * cosine / (1 + (count - 1) * cosine)
        merged[at] = ratio * sum(rows) / count
    result: Array = base + values["scale"] * merged.reshape(base.shape)
    return result
