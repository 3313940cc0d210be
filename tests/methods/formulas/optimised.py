"""WUDI, SWUDI and OptMerge: descents really iterated, least squares, an integrated flow.

The methods work out eigenvalues; here nothing does, but for the spectral filters, which are
defined by singular vectors: those of the rows of all terms, one below the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array
from tests.methods.golden import golden

WEIGHTS = (0.25, 0.5, 1.0, 0.125, 0.75)
Terms = list[tuple[float, Array, Array]]  # wᵢ / ‖τᵢ‖², Tᵢ, Rᵢ


def cut(matrix: Array, rank: int) -> Array:
    """The sum of the first ``rank`` singular triples."""
    u, s, vh = np.linalg.svd(matrix)
    kept = np.zeros_like(matrix)
    for i in range(min(rank, len(s))):
        kept += s[i] * np.outer(u[:, i], vh[i])
    return kept


def rows(matrix: Array, rank: int) -> Array:
    """``Σₖ Vₖᵀ`` as the published code has it: (m, n), all but k rows zero."""
    _, s, vh = np.linalg.svd(matrix)
    diagonal = np.zeros_like(matrix)
    for i in range(min(rank, len(s))):
        diagonal[i, i] = s[i]
    return diagonal @ vh


def norm2(matrix: Array) -> float:
    return sum(float(x) ** 2 for x in matrix.flat)


def interference(deltas: list[Array], weight: Sequence[float]) -> Terms:
    return [(w / norm2(d), d, d) for d, w in zip(deltas, weight, strict=True)]


def denoised(deltas: list[Array], weight: Sequence[float], rank: int, centred: bool) -> Terms:
    mean = summed(deltas, weight) / sum(weight) * centred
    return [
        (w / norm2(d), cut(d - mean, rank) + mean, rows(d, rank))
        for d, w in zip(deltas, weight, strict=True)
    ]


def gradient(merged: Array, terms: Terms) -> Array:
    """Of ``Σ f ‖(M − T) Rᵀ‖²``, term by term."""
    slope = np.zeros_like(merged)
    for factor, target, row in terms:
        slope += 2 * factor * ((merged - target) @ row.T) @ row
    return slope


def summed(deltas: list[Array], weight: Sequence[float]) -> Array:
    return np.sum([w * d for d, w in zip(deltas, weight, strict=True)], axis=0)


def deltas_of(base: Array, experts: list[Array]) -> list[Array]:
    return [e - base for e in experts]


def adam(terms: Terms, start: Array, iterations: int, rate: float) -> Array:
    merged, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, iterations + 1):
        slope = gradient(merged, terms)
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        corrected = second / (1 - 0.999**step)
        merged = merged - rate * (first / (1 - 0.9**step)) / (np.sqrt(corrected) + 1e-8)
    return merged


def sgd(terms: Terms, start: Array, iterations: int, rate: float, momentum: float = 0.9) -> Array:
    merged, velocity = start.copy(), np.zeros_like(start)
    for _ in range(iterations):
        velocity = momentum * velocity + gradient(merged, terms)
        merged = merged - rate * velocity
    return merged


def flow(terms: Terms, start: Array, time: float) -> Array:
    """``dM/dt = −½ ∇L`` by the classical Runge-Kutta method, in steps of at most 0.005."""

    def speed(at: Array) -> Array:
        return -gradient(at, terms) / 2

    merged = start.copy()
    steps = math.ceil(time / 0.005)
    for _ in range(steps):
        h = time / steps
        k1 = speed(merged)
        k2 = speed(merged + h / 2 * k1)
        k3 = speed(merged + h / 2 * k2)
        k4 = speed(merged + h * k3)
        merged = merged + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return merged


def minimum(terms: Terms, start: Array) -> Array:
    """The least squares solution nearest to ``start``: ``lstsq`` gives the smallest step to it."""
    design = np.concatenate([math.sqrt(f) * row for f, _, row in terms])
    missing = np.concatenate(
        [math.sqrt(f) * ((target - start) @ row.T).T for f, target, row in terms]
    )
    return start + np.linalg.lstsq(design, missing, rcond=1e-9)[0].T


def filtered(
    terms: Terms, start: Array, choose: Callable[[Array], int], share: Callable[[float], float]
) -> Array:
    """Towards the minimum by ``share(λ)``, in the ``choose(λ)`` steepest directions."""
    _, s, vh = np.linalg.svd(np.concatenate([math.sqrt(f) * row for f, _, row in terms]))
    spectrum = s[s > 1e-6 * s[0]] ** 2
    slope = gradient(start, terms)
    merged = start.copy()
    for k in range(min(choose(spectrum), len(spectrum))):
        merged -= share(spectrum[k]) * np.outer(slope @ vh[k], vh[k]) / (2 * spectrum[k])
    return merged


@golden("wudi", low_rank=True)
@golden(
    "wudi",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "scale": 0.7,
        "rate": 1e-4,
        "iterations": 70,
    },
)
def wudi(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    deltas, weight = deltas_of(base, experts), values["weight"]
    terms = interference(deltas, weight)
    merged = adam(terms, summed(deltas, weight), values["iterations"], values["rate"])
    return base + values["scale"] * merged


@golden("wudi_closed", low_rank=True)
@golden(
    "wudi_closed",
    values=lambda count: {"weight": WEIGHTS[:count], "scale": 0.7},
    low_rank=True,
)
def wudi_closed(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas, weight = deltas_of(base, experts), values["weight"]
    terms = interference(deltas, weight)
    return base + values["scale"] * minimum(terms, np.zeros_like(base))


@golden("swudi", low_rank=True)
@golden(
    "swudi",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "scale": 0.7,
        "start": 0.5,
        "t": 5.0,
        "share": 0.1,
    },
    low_rank=True,
)
def swudi(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    deltas, weight = deltas_of(base, experts), values["weight"]
    merged = filtered(
        interference(deltas, weight),
        values["start"] * summed(deltas, weight),
        lambda spectrum: math.ceil(values["share"] * base.shape[1]),
        lambda value: 1 - math.exp(-value * values["t"]),
    )
    return base + values["scale"] * merged


@golden("aswudi", low_rank=True)
@golden(
    "aswudi",
    values=lambda count: {"weight": WEIGHTS[:count], "scale": 0.7, "start": 0.5},
    low_rank=True,
)
def aswudi(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    deltas, weight = deltas_of(base, experts), values["weight"]
    merged = filtered(
        interference(deltas, weight),
        values["start"] * summed(deltas, weight),
        lambda spectrum: math.ceil(sum(math.sqrt(x) for x in spectrum) ** 2 / sum(spectrum) - 1e-7),
        lambda value: 1.0,
    )
    return base + values["scale"] * merged


@golden("optmerge", low_rank=True)
@golden(
    "optmerge",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "scale": 0.7,
        "t": 4.0,
        "share": 1.4,
        "towards_sum": 0.3,
        "centred": True,
    },
    low_rank=True,
)
def optmerge(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas, weight, count = deltas_of(base, experts), values["weight"], len(experts)
    rank = max(1, math.floor(values["share"] * min(base.shape) / count))
    terms = denoised(deltas, weight, rank, values["centred"])
    total = summed(deltas, weight)
    start = total / count + values["towards_sum"] * (total - total / count)
    return base + values["scale"] * flow(terms, start, values["t"])


@golden("optmerge_lora", low_rank=True)
@golden(
    "optmerge_lora",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "scale": 0.7,
        "rate": 0.01,
        "iterations": 120,
    },
    low_rank=True,
)
def optmerge_lora(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas, weight, count = deltas_of(base, experts), values["weight"], len(experts)
    terms = denoised(deltas, weight, max(1, min(base.shape) // count), False)
    start = summed(deltas, weight) / count
    return base + values["scale"] * sgd(terms, start, values["iterations"], values["rate"])


@golden("optmerge_full", low_rank=True)
@golden(
    "optmerge_full",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "scale": 0.7,
        "rate": 1e-4,
        "iterations": 70,
    },
)
def optmerge_full(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    deltas, weight = deltas_of(base, experts), values["weight"]
    terms = denoised(deltas, weight, max(1, min(base.shape) // len(experts)), True)
    merged = adam(terms, summed(deltas, weight), values["iterations"], values["rate"])
    return base + values["scale"] * merged


@golden("optmerge_modality", low_rank=True)
@golden(
    "optmerge_modality",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "scale": 0.7,
        "kept": 0.5,
        "rate": 0.01,
        "iterations": 120,
    },
    low_rank=True,
)
def optmerge_modality(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    weight = values["weight"]

    def alone(deltas: list[Array]) -> Array:
        rank = max(1, math.floor(values["kept"] * min(deltas[0].shape)))
        terms = [(w / norm2(d), cut(d, rank), d) for d, w in zip(deltas, weight, strict=True)]
        start = summed(deltas, weight) / len(deltas)
        return sgd(terms, start, values["iterations"], values["rate"])

    if context.factors is None:
        return base + values["scale"] * alone(deltas_of(base, experts))
    left = alone([f.b.double().numpy() for f in context.factors])
    right = alone([f.a.double().numpy() for f in context.factors])
    return base + values["scale"] * (left @ right)
