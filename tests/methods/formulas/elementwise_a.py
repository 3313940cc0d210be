"""DELLA, Breadcrumbs, Consensus TA, EMR, NearSwap, Arcee Fusion and RAM, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array, elect_formula, key_formula, splitmix64, sum_formula
from tests.methods.golden import golden

WEIGHTS = (0.25, 0.5, 1.0, 0.125, 0.75)
POWERS = (0.5, 0.25, 1.0, 0.125, 0.5)


def task_vectors(base: Array, experts: Sequence[Array]) -> list[Array]:
    return [expert - base for expert in experts]


def ranked(row: Array) -> list[int]:
    """Indices by ascending magnitude; Python's sort leaves equal ones in their order."""
    return sorted(range(len(row)), key=lambda j: abs(row[j]))


def magprune(delta: Array, density: float, epsilon: float, where: Context, expert: str) -> Array:
    """MagPrune: p from density - ε to density + ε along the ranks of a row."""
    if density == 1:
        return delta
    half = min(epsilon, 0.9 * density, 1 - density)
    key = key_formula(where.seed, where.tensor, expert)
    result = np.zeros_like(delta)
    for i, row in enumerate(delta):
        for rank, j in enumerate(ranked(row)):
            p = density - half + 2 * half * rank / (len(row) - 1)
            if splitmix64(key, i * len(row) + j) / 2**64 < p:
                result[i, j] = row[j] / p
    return result


def pruned(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> list[Array]:
    return [
        magprune(t, d, e, context, name)
        for t, d, e, name in zip(
            task_vectors(base, experts),
            values["density"],
            values["epsilon"],
            context.experts,
            strict=True,
        )
    ]


@golden(
    "della",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "density": (0.6, 0.35, 1.0, 0.9, 0.1)[:count],
        "epsilon": (0.15, 0.2, 0.1, 0.3, 0.05)[:count],
        "scale": 0.75,
    },
)
@golden("della")
# powers of two and no window: votes that cancel do so exactly in float32 and in float64
@golden(
    "della", values=lambda count: {"epsilon": 0.0, "density": POWERS[:count], "normalise": False}
)
def della(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    deltas = pruned(base, experts, context, values)
    return elect_formula(base, deltas, values["weight"], values["scale"], values["normalise"])


@golden(
    "della_linear",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "density": (0.2, 0.5, 0.95, 1.0, 0.7)[:count],
        "epsilon": (0.15, 0.2, 0.1, 0.3, 0.05)[:count],
        "scale": 1.5,
    },
)
@golden("della_linear")
def della_linear(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas = pruned(base, experts, context, values)
    return sum_formula(base, deltas, values["weight"], values["scale"])


def middle(delta: Array, density: float, gamma: float) -> Array:
    """Of each row: the largest removed first, then the largest of the rest kept."""
    result = np.zeros_like(delta)
    for i, row in enumerate(delta):
        falling = ranked(row)[::-1]
        rest = falling[math.floor(gamma * len(row) + 0.5) :]
        for j in rest[: math.floor(density * len(row) + 0.5)]:
            result[i, j] = row[j]
    return result


def kept(base: Array, experts: list[Array], values: Mapping[str, Any]) -> list[Array]:
    return [
        middle(t, d, g)
        for t, d, g in zip(
            task_vectors(base, experts), values["density"], values["gamma"], strict=True
        )
    ]


def crumbs(count: int) -> Mapping[str, Any]:
    return {
        "weight": WEIGHTS[:count],
        "density": (0.5, 0.25, 0.98, 0.15, 1.0)[:count],
        "gamma": (0.1, 0.25, 0.05, 0.0, 0.2)[:count],
        "scale": 0.75,
    }


@golden("breadcrumbs", values=crumbs)
@golden("breadcrumbs")
def breadcrumbs(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    return sum_formula(base, kept(base, experts, values), values["weight"], values["scale"])


@golden("breadcrumbs_ties", values=crumbs)
@golden("breadcrumbs_ties", values=lambda count: {**crumbs(count), "normalise": True})
def breadcrumbs_ties(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas = kept(base, experts, values)
    return elect_formula(base, deltas, values["weight"], values["scale"], values["normalise"])


@golden("consensus_ta")
@golden(
    "consensus_ta",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "threshold": (0.25, 0.5, 0.3125, 0.2, 0.6)[:count],
        "agreement": 1,
        "scale": 0.75,
    },
)
@golden("consensus_ta", values=lambda count: {"agreement": 0, "weight": WEIGHTS[:count]})
def consensus_ta(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    merged = base.copy()
    for at in np.ndindex(*base.shape):
        own = [w * (e[at] - base[at]) for e, w in zip(experts, values["weight"], strict=True)]
        total = sum(own)
        needing = [
            abs(x) > t * abs(total - x) for x, t in zip(own, values["threshold"], strict=True)
        ]
        if sum(needing) >= values["agreement"]:
            merged[at] += values["scale"] * total
    return merged


@golden("emr")
@golden("emr", values=lambda count: {"weight": WEIGHTS[:count], "scale": 0.75})
def emr(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    merged = base.copy()
    for at in np.ndindex(*base.shape):
        own = [w * (e[at] - base[at]) for e, w in zip(experts, values["weight"], strict=True)]
        sign = 1 if sum(own) / len(own) > 0 else -1
        merged[at] += values["scale"] * sign * max([abs(x) for x in own if x * sign > 0] + [0])
    return merged


def pair(base: Array, experts: list[Array]) -> tuple[Array, Array]:
    first, second = [base, *experts][-2:]
    return first, second


@golden("nearswap", values=lambda count: {"t": 0.1})
@golden("nearswap", values=lambda count: {"t": 0.03, "scale": 0.75})
def nearswap(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    first, second = pair(base, experts)
    merged = base.copy()
    for at in np.ndindex(*base.shape):
        gap = abs(first[at] - second[at])
        share = min(values["t"] / gap, 1.0) if gap else 1.0
        swapped = (1 - share) * first[at] + share * second[at]
        merged[at] += values["scale"] * (swapped - base[at])
    return merged


@golden("arcee_fusion")
@golden("arcee_fusion", values=lambda count: {"spread": 0.5, "scale": 0.75})
def arcee_fusion(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    first, second = pair(base, experts)
    scores = np.zeros_like(base)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        p, q = (np.exp(x) / math.fsum(np.exp(x)) + 1e-8 for x in (b, a))
        divergence = math.fsum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True))
        scores[i] = np.abs(b - a) * divergence
    rising = sorted(scores.flat)
    low, mid, high = (rising[int(q * (len(rising) - 1))] for q in (0.25, 0.5, 0.75))
    taken = scores >= mid + values["spread"] * (high - low)
    assert 0 < taken.sum() < taken.size / 2
    fused: Array = base + values["scale"] * (np.where(taken, second, first) - base)
    return fused


def shares_of_ram(own: list[Array], values: Mapping[str, Any]) -> list[float]:
    """λ of each expert: more where it shares more entries than it has of its own."""
    changed = [np.abs(x) > values["epsilon"] for x in own]
    count = sum(c.astype(int) for c in changed)
    result = []
    for c in changed:
        shared, alone = int((c & (count >= 2)).sum()), int((c & (count == 1)).sum())
        ratio = shared / max(alone, 1e-5)
        result.append(1 + values["r"] * min(max(ratio, 0.0), values["alpha"]))
    return result


@golden("ram")
@golden(
    "ram",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "r": 0.5,
        "alpha": 8.0,
        "epsilon": 1.5 / 64,
        "scale": 0.75,
    },
)
@golden("ram", values=lambda count: {"r": 0.0})
def ram(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    own = [w * t for w, t in zip(values["weight"], task_vectors(base, experts), strict=True)]
    factors = shares_of_ram(own, values)
    merged = base.copy()
    for at in np.ndindex(*base.shape):
        moved = [(x[at], f) for x, f in zip(own, factors, strict=True)]
        moved = [(x, f) for x, f in moved if abs(x) > values["epsilon"]]
        if len(moved) == 1:
            merged[at] += values["scale"] * moved[0][0] * moved[0][1]
        elif moved:
            merged[at] += values["scale"] * sum(x for x, _ in moved) / len(moved)
    return merged
