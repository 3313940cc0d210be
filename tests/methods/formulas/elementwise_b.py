"""PCB-Merging, SCE, Localize-and-Stitch, WIDEN, LiNeS and Layer Swapping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array
from tests.methods.golden import golden

WEIGHTS = (0.5, 1.0, 0.25, 0.75, 1.25)
DENSITIES = (0.2, 0.4, 1.0, 0.05, 0.3)


@golden("pcb")
@golden("pcb", values=lambda count: {"weight": WEIGHTS[:count], "density": 0.35, "scale": 0.7})
def pcb(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    """One long vector a task, sorted whole, as in the authors' code."""
    vectors = np.stack([(e - base).ravel() for e in experts])
    count, size = vectors.shape
    magnitude = np.abs(vectors)
    for row in magnitude:
        ranked = sorted(row)
        np.clip(row, ranked[int(size * 1e-4)], ranked[int(size * (1 - 1e-4) - 1)], out=row)
    intra = np.exp(count * minmax(magnitude) ** 2)
    inter = np.tanh(vectors * vectors.sum(axis=0))
    score = intra * inter
    first_kept = int(size * (1 - values["density"]))
    strength = minmax(np.maximum(score, np.sort(score, axis=1)[:, first_kept, None]))
    weights = np.array(values["weight"])[:, None]
    moved = (weights * strength * magnitude * np.sign(vectors)).sum(axis=0)
    merged = moved / np.maximum(strength.sum(axis=0), 1e-12)
    result: Array = base + values["scale"] * merged.reshape(base.shape)
    return result


def minmax(rows: Array) -> Array:
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    ranged: Array = (rows - low) / (high - low)
    return ranged


@golden("sce")
@golden("sce", values=lambda count: {"weight": WEIGHTS[:count], "density": 0.6, "scale": 0.7})
def sce(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    """Entry by entry; variances compared as exact fractions of the grid's integers."""
    deltas = [w * (e - base) for e, w in zip(experts, values["weight"], strict=True)]
    if values["density"] < 1:
        whole = [np.rint(d * 4096).astype(object) for d in deltas]  # weights are quarters
        count = len(whole)
        varied = count * sum(d * d for d in whole) - sum(whole) ** 2
        ranked = sorted((v for v in varied.flat if v > 0), reverse=True)
        least = ranked[int(values["density"] * len(ranked)) - 1]
        deltas = [np.where(varied >= least, d, 0.0) for d in deltas]
    share = [float((d**2).mean()) for d in deltas]
    merged = base.copy()
    for at in np.ndindex(*base.shape):
        votes = [d[at] for d in deltas]
        sign = 1 if math.fsum(votes) >= 0 else -1
        agreeing = [(s * v, s) for v, s in zip(votes, share, strict=True) if v * sign > 0]
        if agreeing:
            merged[at] += (
                values["scale"] * sum(a for a, _ in agreeing) / sum(s for _, s in agreeing)
            )
    return merged


@golden("localize_and_stitch")
@golden(
    "localize_and_stitch",
    values=lambda count: {"weight": WEIGHTS[:count], "density": DENSITIES[:count], "scale": 0.7},
)
def localize_and_stitch(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    moved, regions = np.zeros_like(base), np.zeros_like(base)
    for expert, weight, density in zip(experts, values["weight"], values["density"], strict=True):
        delta = expert - base
        kept = math.floor(density * delta.size + 0.5)
        region = np.abs(delta) >= np.sort(np.abs(delta), axis=None)[::-1][kept - 1]
        region &= delta != 0
        moved += np.where(region, weight * delta, 0.0)
        regions += region
    result: Array = base + values["scale"] * moved / np.maximum(regions, 1)
    return result


@golden("widen")
@golden(
    "widen",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "ratio": 1.3,
        "calibration": 0.8,
        "scale": 0.7,
    },
)
def widen(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    """Column by column."""
    columns = range(base.shape[1])

    def changes(expert: Array) -> list[tuple[float, float]]:
        found = []
        for at in columns:
            old, new = base[:, at], expert[:, at]
            before, after = math.hypot(*old), math.hypot(*new)
            turned = 1 - float(old @ new) / (before * after) if any(old != new) else 0.0
            found.append((abs(after - before), turned))
        return found

    def ranks(expert: Array, kind: int) -> list[Fraction]:
        change = [c[kind] for c in changes(expert)]
        return [Fraction(sum(other < own for other in change), len(change)) for own in change]

    merged = base.copy()
    for kind in (0, 1):
        rank = [ranks(expert, kind) for expert in experts]
        for expert, own, weight in zip(experts, rank, values["weight"], strict=True):
            mean = sum(own) / len(own)
            for at in columns:
                score = math.exp(own[at]) / sum(math.exp(r[at]) for r in rank)
                if own[at] > values["ratio"] * mean:
                    score = values["calibration"]
                delta = expert[:, at] - base[:, at]
                merged[:, at] += values["scale"] * weight * score / 2 * delta
    return merged


@golden("lines", values=lambda count: {"weight": WEIGHTS[:count], "alpha": 0.3, "beta": 0.9})
def lines(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    factor = values["alpha"]
    if context.block is not None:
        factor += values["beta"] * context.block / (context.blocks - 1)
    total = sum(w * (e - base) for e, w in zip(experts, values["weight"], strict=True))
    return np.asarray(base + factor * total)


@golden("layer_swapping")
def layer_swapping(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    outer, inner = experts
    share = 1.0
    if context.block is not None:
        order = ["outer"] * context.blocks
        first, last = values["lower"], context.blocks - values["upper"]
        order[first:last] = ["inner"] * max(last - first, 0)
        for at in range(first, min(first + values["transition"], last)):
            order[at] = "both"
        for at in range(max(last - values["transition"], first), last):
            order[at] = "both"
        share = {"outer": 1.0, "inner": 0.0, "both": 0.5}[order[context.block]]
    return share * outer + (1 - share) * inner
