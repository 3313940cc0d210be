"""Darwin's ratio, gene by gene, and the two thinned task vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array, drop_formula
from tests.methods.golden import golden

GENES = {
    "ratio": 0.9,
    "attention": 0.1,
    "mlp": 0.6,
    "embedding": 0.3,
    "density": (0.7, 0.4),
    **{f"block{k}": 0.15 * k + 0.05 for k in range(6)},
    "trust": 0.45,
    "shrink": 0.2,
}


@golden("darwin", values=lambda count: GENES)
@golden("darwin", values=lambda count: {**GENES, "density": 1.0, "trust": 1.0, "shrink": 0.0})
def darwin(base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]) -> Array:
    a, b = (diagnosis(expert) for expert in experts)
    of_genes = (values["ratio"] + values["mlp"]) / 2  # the tensor of these tests has no block
    r = values["trust"] * b / (a + b) + (1 - values["trust"]) * of_genes
    r += values["shrink"] * (0.5 - r)
    result = base.copy()
    for share, expert, name, density in zip(
        (1 - r, r), experts, context.experts, values["density"], strict=True
    ):
        result += share * drop_formula(expert - base, density, context, name)
    return result


def diagnosis(weights: Array) -> float:
    shares = np.abs(weights).ravel() / np.abs(weights).sum()
    entropy = -sum(p * math.log(p) for p in shares if p > 0) / math.log(weights.size)
    spread = float(np.std(weights))
    size = float(np.linalg.norm(weights)) / math.sqrt(weights.size)
    return 0.4 * entropy + 0.3 * spread / (1 + spread) + 0.3 * min(1.0, size)
