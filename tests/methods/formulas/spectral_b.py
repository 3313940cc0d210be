"""KnOTS and DC-Merge: from whole task vectors side by side, entry by entry.

In rotated coordinates entries may be equal, or zero, up to rounding: then which of them the last
bit chooses is an accident. Here as in the methods, magnitudes within 1e-9 are equal and entries
below the precision of the weights (2⁻²³ of the longest column) are zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array, drop_formula, elect_formula
from tests.methods.golden import golden

# dyadic, so that weighted sums that vanish do so in float32 and in float64
WEIGHTS = (0.25, 0.5, 1.0, 0.125, 0.75)
DENSITIES = (0.3, 0.5, 1.0, 0.15, 0.9)
HALVES = (0.5, 0.25, 1.0, 0.125, 0.5)


def codes(deltas: Sequence[Array]) -> tuple[Array, list[Array]]:
    """U of the numerical rank, and diag(σ) Vᵢᵀ of each expert."""
    m, n = deltas[0].shape
    u, s, vh = np.linalg.svd(np.hstack(deltas), full_matrices=False)
    rank = int(sum(s > max(m, n) * 2.0**-23 * s[0]))
    parts = [s[:rank, None] * vh[:rank, i * n : (i + 1) * n] for i in range(len(deltas))]
    flips = np.sign([column[np.argmax(np.abs(column))] for column in u[:, :rank].T])
    return u[:, :rank] * flips, [audible(part * flips[:, None]) for part in parts]


def audible(part: Array) -> Array:
    return np.where(np.abs(part) > 2.0**-23 * np.linalg.norm(part, axis=0).max(), part, 0.0)


def largest(part: Array, density: float, least: int = 0) -> Array:
    ranked = sorted((abs(x) for x in part.flat), reverse=True)
    k = max(math.floor(density * len(ranked) + 0.5), least)
    if k == 0:
        return np.zeros_like(part)
    return np.where(np.abs(part) >= ranked[k - 1] * (1 - 1e-9), part, 0.0)


def trimmed_codes(
    base: Array, experts: list[Array], values: Mapping[str, Any]
) -> tuple[Array, list[Array]]:
    u, parts = codes([e - base for e in experts])
    return u, [largest(p, d) for p, d in zip(parts, values["density"], strict=True)]


@golden("knots_ta", values=lambda n: {"weight": WEIGHTS[:n]}, low_rank=True)
@golden(
    "knots_ta",
    values=lambda n: {"weight": WEIGHTS[:n], "density": DENSITIES[:n], "scale": 0.7},
    low_rank=True,
)
def knots_ta(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    u, parts = trimmed_codes(base, experts, values)
    total = sum(w * p for w, p in zip(values["weight"], parts, strict=True))
    merged: Array = base + values["scale"] * u @ total
    return merged


@golden("knots_ties", low_rank=True)
@golden(
    "knots_ties",
    values=lambda n: {"weight": WEIGHTS[:n], "density": DENSITIES[:n], "normalise": False},
    low_rank=True,
)
def knots_ties(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    u, parts = trimmed_codes(base, experts, values)
    return elected(base, u, parts, values)


@golden("knots_dare_ties", low_rank=True)
@golden(
    "knots_dare_ties",
    values=lambda n: {"weight": WEIGHTS[:n], "density": HALVES[:n], "scale": 1.3},
    low_rank=True,
)
def knots_dare_ties(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    u, parts = codes([e - base for e in experts])
    parts = [
        drop_formula(p, d, context, name)
        for p, d, name in zip(parts, values["density"], context.experts, strict=True)
    ]
    return elected(base, u, parts, values)


def elected(base: Array, u: Array, parts: list[Array], values: Mapping[str, Any]) -> Array:
    nothing = np.zeros_like(parts[0])
    merged = elect_formula(nothing, parts, values["weight"], 1.0, values["normalise"])
    result: Array = base + values["scale"] * u @ merged
    return result


@golden("dc_merge", low_rank=True)
@golden(
    "dc_merge",
    values=lambda n: {"weight": WEIGHTS[:n], "density": 0.35, "scale": 1.3, "rank_share": 0.7},
    low_rank=True,
)
@golden("dc_merge", values=lambda n: {"density": 0.8, "smooth": True, "rho": 1.5}, low_rank=True)
def dc_merge(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    share = values["rank_share"] * min(base.shape) / len(experts)
    return consistent(base, experts, max(1, math.floor(share)), values)


@golden("dc_merge_lora", low_rank=True)
@golden(
    "dc_merge_lora",
    values=lambda n: {"weight": WEIGHTS[:n], "density": 0.6, "scale": 1.3, "rank": 2, "rho": 1.2},
    low_rank=True,
)
@golden("dc_merge_lora", values=lambda n: {"density": 1.0, "rho": 1.0}, low_rank=True)
@golden("dc_merge_lora", values=lambda n: {"density": 0.4, "smooth": False}, low_rank=True)
def dc_merge_lora(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    kept = min(values["rank"], max(1, min(base.shape) // len(experts)))
    return consistent(base, experts, kept, values)


def consistent(base: Array, experts: list[Array], kept: int, values: Mapping[str, Any]) -> Array:
    lefts, rights, truncated, owners = [], [], [], []
    for i, (expert, w) in enumerate(zip(experts, values["weight"], strict=True)):
        u, s, vh = np.linalg.svd(w * (expert - base), full_matrices=False)
        k = min(kept, int(sum(s > max(base.shape) * 2.0**-23 * s[0])))
        energy = s[:k]
        if values["smooth"]:
            ratio = min(values["rho"], s[0] / s[k - 1])
            steps = [ratio - (ratio - 1) * j / max(k - 1, 1) for j in range(k)]
            energy = np.array(steps) / sum(steps) * sum(s[:k])
        truncated.append(u[:, :k] @ np.diag(energy) @ vh[:k])
        lefts.append(u[:, :k])
        rights.append(vh[:k].T)
        owners += [i] * k
    left, right = (inverse_root(np.hstack(side)) for side in (lefts, rights))
    projected = [audible(left.T @ t @ right) for t in truncated]
    projected = [largest(p, values["density"], least=1) for p in projected]
    merged = np.zeros_like(projected[0])
    for i, j in np.ndindex(*merged.shape):
        total = sum(p[i, j] for p in projected)
        agreeing = [p[i, j] for p in projected if p[i, j] * total > 0]
        if agreeing and owners[i] == owners[j]:
            merged[i, j] = sum(agreeing) / len(agreeing)
    result: Array = base + values["scale"] * left @ merged @ right.T
    return result


def inverse_root(columns: Array) -> Array:
    """``X (Xᵀ X)^(-1/2)``: the polar factor, from an eigendecomposition."""
    squares, vectors = np.linalg.eigh(columns.T @ columns)
    result: Array = columns @ vectors @ np.diag(squares**-0.5) @ vectors.T
    return result
