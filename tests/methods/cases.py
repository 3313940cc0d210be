"""Inputs for tests of methods, and the methods' formulas again: entry by entry, in float64.

The tensors lie on a grid of 1/1024, so that task vectors are the same numbers in float32 and in
float64, and the formulas here cannot take another branch than the methods for rounding alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.methods import Context, Method

WIDE, TALL = (6, 40), (40, 6)
Array = np.ndarray[Any, np.dtype[np.float64]]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"expert-{'cabed'[i]}" for i in range(count))


def context(count: int, seed: int = 0) -> Context:
    return Context(tensor="model.layers.0.mlp.up_proj.weight", experts=names(count), seed=seed)


def draw(
    shape: Sequence[int], count: int, seed: int = 0
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and experts; a third of each expert's entries are the base's own."""
    generator = np.random.default_rng([seed, count, *shape])

    def grid(spread: float) -> Array:
        return np.round(generator.standard_normal(shape) * spread * 1024) / 1024

    base = grid(1.0)
    experts = [base + grid(0.2) * (generator.random(shape) < 2 / 3) for _ in range(count)]
    return torch.tensor(base).float(), [torch.tensor(e).float() for e in experts]


def run(
    method: Method,
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    where: Context | None = None,
    **values: Any,
) -> torch.Tensor:
    """Calls a method as its callers do: defaults filled in, one value an expert where declared."""
    filled = fill(method, len(experts), **values)
    return method.merge(base, experts, where or context(len(experts)), filled)


def fill(method: Method, count: int, **values: Any) -> dict[str, Any]:
    """The values with the method's defaults beside them, one an expert where declared."""
    filled: dict[str, Any] = {}
    for p in method.parameters:
        value = values.pop(p.name, p.default)
        if p.switch:
            value = bool(value)
        elif p.per_expert and not isinstance(value, tuple):
            value = (value,) * count
        elif p.integer:
            value = int(value)
        filled[p.name] = value
    assert not values, f"not parameters of {method.name}: {sorted(values)}"
    return filled


def f64(tensor: torch.Tensor) -> Array:
    return tensor.double().numpy()


def close(found: torch.Tensor, expected: Array) -> None:
    """Equal up to some roundings of float32 at the size of the tensor's entries."""
    assert found.dtype == torch.float32
    np.testing.assert_allclose(f64(found), expected, rtol=1e-6, atol=1e-6)


def linear_formula(experts: Sequence[Array], weight: Sequence[float]) -> Array:
    total = np.zeros_like(experts[0])
    for expert, w in zip(experts, weight, strict=True):
        total += w * expert
    return total / sum(weight)


def sum_formula(
    base: Array, deltas: Sequence[Array], weight: Sequence[float], scale: float
) -> Array:
    total = np.zeros_like(base)
    for delta, w in zip(deltas, weight, strict=True):
        total += w * delta
    return base + scale * total


def trim_formula(delta: Array, density: float) -> Array:
    """Entries of at least the k-th largest magnitude."""
    ranked = sorted((abs(x) for x in delta.flat), reverse=True)
    k = math.floor(density * len(ranked) + 0.5)
    return np.where(np.abs(delta) >= ranked[k - 1], delta, 0.0) if k else np.zeros_like(delta)


def elect_formula(
    base: Array, deltas: Sequence[Array], weight: Sequence[float], scale: float, normalise: bool
) -> Array:
    """Sign election and disjoint merge, one entry after the other."""
    merged = base.copy()
    for at in np.ndindex(*base.shape):
        votes = [w * delta[at] for delta, w in zip(deltas, weight, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [(v, abs(w)) for v, w in zip(votes, weight, strict=True) if v * sign > 0]
        if agreeing:
            moved = sum(v for v, _ in agreeing)
            merged[at] += scale * moved / (sum(w for _, w in agreeing) if normalise else 1)
    return merged


def splitmix64(seed: int, index: int) -> int:
    """Output number ``index`` of the generator with that seed: Vigna's public-domain C code."""
    bits = 2**64 - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & bits
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & bits
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
    return z ^ (z >> 31)


def key_formula(seed: int, tensor: str, expert: str) -> int:
    digest = hashlib.sha256("\0".join([str(seed), tensor, expert]).encode()).digest()
    return sum(byte << (8 * place) for place, byte in enumerate(digest[:8]))


def drop_formula(delta: Array, density: float, where: Context, expert: str) -> Array:
    if density == 1:
        return delta
    key = key_formula(where.seed, where.tensor, expert)
    kept = [splitmix64(key, i) / 2**64 < density for i in range(delta.size)]
    return np.where(np.reshape(kept, delta.shape), delta / density, 0.0)


def slerp_formula(a: Array, b: Array, t: float) -> Array:
    """Shoemake's arc between two vectors whose angle is neither 0 nor 180 degrees."""
    cosine = float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    omega = math.acos(cosine)
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)
