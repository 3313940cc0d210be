"""TSV-M, R-TSVM, Iso-C, Iso-CTS, truncation and Twin-Merging, from their publications.

Sums of rank-one terms one by one; polar factors as ``X (XᵀX)^{-1/2}`` rather than by an SVD of X.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array
from tests.methods.golden import golden

WEIGHTS = (0.75, 1.25, 1.0, 0.5, 0.875)
SHARES = (0.2, 0.5, 1.0, 0.05, 0.9)
Triple = tuple[Array, float, Array]


def triples(matrix: Array) -> list[Triple]:
    """(left vector, singular value, right vector), largest first, none of value zero."""
    u, s, vh = np.linalg.svd(matrix)
    return [(u[:, j], float(s[j]), vh[j]) for j in range(int(np.linalg.matrix_rank(matrix)))]


def polar(vectors: Sequence[Array]) -> Array:
    """The vectors as columns, made orthonormal by the inverse root of their Gram matrix."""
    x = np.column_stack(vectors)
    values, q = np.linalg.eigh(x.T @ x)
    roots = np.array([1 / math.sqrt(v) if v > 1e-9 else 0.0 for v in values])
    return x @ (q * roots) @ q.T


def weighted(base: Array, experts: Sequence[Array], values: Mapping[str, Any]) -> list[Array]:
    return [w * (e - base) for w, e in zip(values["weight"], experts, strict=True)]


def orthogonal_sum(chosen: Sequence[Triple], shape: tuple[int, ...]) -> Array:
    left, right = polar([u for u, _, _ in chosen]), polar([v for _, _, v in chosen])
    total = np.zeros(shape)
    for j, (_, s, _) in enumerate(chosen):
        total += s * np.outer(left[:, j], right[:, j])
    return total


@golden("tsv_m", low_rank=True)
@golden(
    "tsv_m",
    values=lambda count: {"weight": WEIGHTS[:count], "scale": 1.3, "rank_share": 0.7},
    low_rank=True,
)
def tsv_m(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    kept = max(1, int(values["rank_share"] * min(base.shape) / len(experts)))
    chosen = [t for d in weighted(base, experts, values) for t in triples(d)[:kept]]
    return base + values["scale"] * orthogonal_sum(chosen, base.shape)


@golden(
    "r_tsvm",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "scale": 0.7,
        "rank_share": 0.9,
        "outlier": 1.5,
        "slope": 0.4,
    },
    low_rank=True,
)
@golden("r_tsvm", values=lambda count: {"outlier": 1.0}, low_rank=True)
def r_tsvm(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    deltas = weighted(base, experts, values)
    m, n = base.shape
    outliers = np.zeros((len(deltas), m))
    dense = []
    for i, delta in enumerate(deltas):
        sizes = [abs(x) for x in delta.flat]
        mean = math.fsum(sizes) / (m * n)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in sizes) / (m * n))
        for j, row in enumerate(delta):
            beyond = [abs(x) for x in row if abs(x) > mean + values["outlier"] * spread]
            outliers[i, j] = math.fsum(beyond) / math.fsum(abs(row)) if row.any() else 0.0
        dense.append((mean * m * n) ** 2 / (m * n * math.fsum(x * x for x in sizes)))
    emphasis = np.exp(outliers)
    emphasis *= len(deltas) / emphasis.sum(axis=0)
    sparsity = 1 - math.fsum(dense) / len(dense)
    kept = int(values["rank_share"] * (1 - values["slope"] * sparsity) * min(m, n) / len(deltas))
    chosen = []
    for delta, rows in zip(deltas, emphasis, strict=True):
        chosen += triples(np.diag(rows) @ delta)[: max(1, kept)]
    return base + values["scale"] * orthogonal_sum(chosen, base.shape)


@golden("iso_c", values=lambda count: {"weight": WEIGHTS[:count], "scale": 1.3}, low_rank=True)
def iso_c(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    found = triples(np.sum(weighted(base, experts, values), axis=0))
    mean = sum(s for _, s, _ in found) / len(found)
    merged = base.copy()
    for u, _, v in found:
        merged += values["scale"] * mean * np.outer(u, v)
    return merged


@golden("iso_cts", low_rank=True)
@golden(
    "iso_cts",
    values=lambda count: {"weight": WEIGHTS[:count], "scale": 0.7, "common": 0.3},
    low_rank=True,
)
def iso_cts(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas = weighted(base, experts, values)
    of_sum = triples(np.sum(deltas, axis=0))
    q, count = len(of_sum), len(deltas)
    each = round((q - int(values["common"] * q)) / count)
    common = of_sum[: q - each * count]
    chosen = []
    for delta in deltas:
        own = delta.copy()
        for u, _, _ in common:
            own -= np.outer(u, u @ delta)
        # what a common direction leaves of itself is rounding, no direction of its own
        chosen += [t for t in triples(own) if t[1] > 1e-9][:each]
    chosen += common
    mean = sum(s for _, s, _ in chosen) / len(chosen)
    even = [(u, mean, v) for u, _, v in chosen]
    return base + values["scale"] * orthogonal_sum(even, base.shape)


@golden(
    "svd_truncation",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "rank_share": SHARES[:count],
        "scale": 0.7,
    },
    low_rank=True,
)
def svd_truncation(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    merged = base.copy()
    for delta, share in zip(weighted(base, experts, values), values["rank_share"], strict=True):
        for u, s, v in triples(delta)[: max(1, int(share * min(base.shape)))]:
            merged += values["scale"] * s * np.outer(u, v)
    return merged


@golden("twin_merging", low_rank=True)
@golden(
    "twin_merging",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "rank": 2,
        "route": (0.5, 0.25, 0.0, 1.0, 0.125)[:count],
        "scale": 0.7,
    },
    low_rank=True,
)
def twin_merging(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    shared = base + np.sum(weighted(base, experts, values), axis=0)
    total = shared.copy()
    for expert, share in zip(experts, values["route"], strict=True):
        for u, s, v in triples(expert - shared)[: values["rank"]]:
            total += share / sum(values["route"]) * s * np.outer(u, v)
    return base + values["scale"] * (total - base)
