"""OrthoMerge: full n x n rotations, Cayley transforms by explicit inverses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array
from tests.methods.golden import golden

WEIGHTS = (0.75, 1.25, 0.5, 1.0, 0.25)


@golden("orthomerge", low_rank=True)
@golden(
    "orthomerge",
    values=lambda n: {"weight": WEIGHTS[:n], "residual": 0.6, "scale": 1.4},
    low_rank=True,
)
def orthomerge(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    return decoupled(base, experts, experts, values)


@golden("orthomerge_conflict", low_rank=True)
@golden(
    "orthomerge_conflict",
    values=lambda n: {"weight": WEIGHTS[:n], "residual": 0.6, "scale": 1.4, "threshold": 0.55},
    low_rank=True,
)
def orthomerge_conflict(
    base: Array, experts: list[Array], context: Context, values: Mapping[str, Any]
) -> Array:
    mean = sum(e - base for e in experts) / len(experts)
    targets = []
    for expert in experts:
        target = base.copy()
        for row, delta in enumerate(expert - base):
            lengths = np.linalg.norm(delta) * np.linalg.norm(mean[row])
            cosine = delta @ mean[row] / lengths if lengths else 0.0
            if cosine < values["threshold"] - 1e-9:  # as far as rounding can tell
                target[row] = expert[row]
        targets.append(target)
    return decoupled(base, experts, targets, values)


def decoupled(
    base: Array, experts: Sequence[Array], targets: Sequence[Array], values: Mapping[str, Any]
) -> Array:
    identity = np.eye(base.shape[1])
    skews = [skew(rotation(base, target)) for target in targets]
    weighted = [w * a for w, a in zip(values["weight"], skews, strict=True)]
    total = sum(weighted)
    length = np.linalg.norm(total)
    mean_length = np.mean([np.linalg.norm(a) for a in weighted])
    merged = values["scale"] * mean_length * total / length if length else total

    def cayley(a: Array) -> Array:
        result: Array = np.linalg.inv(identity - a) @ (identity + a)
        return result

    residual = sum(
        w * (expert - base @ cayley(a))
        for w, expert, a in zip(values["weight"], experts, skews, strict=True)
    )
    return base @ cayley(merged) + values["scale"] * values["residual"] * residual


def rotation(base: Array, target: Array) -> Array:
    """The orthogonal R nearest to I among those that bring ``base @ R`` nearest to ``target``.

    R takes the row space of the base to that of the target as the singular vectors of
    ``baseᵀ target`` say, and the complement of the one to the complement of the other, by the polar
    factor of the product of their bases: the nearest to I.
    """
    u, s, vh = np.linalg.svd(base.T @ target)
    rank = int(sum(s > 1e-12 * s[0]))
    rest_u, rest_v = u[:, rank:], vh[rank:].T
    between = rest_u.T @ rest_v
    squares, vectors = np.linalg.eigh(between @ between.T)
    polar = vectors @ np.diag(squares**-0.5) @ vectors.T @ between
    result: Array = u[:, :rank] @ vh[:rank] + rest_u @ polar @ rest_v.T
    return result


def skew(r: Array) -> Array:
    """Cayley transform; zero in directions that ``r`` reflects."""
    identity = np.eye(len(r))
    result: Array = np.linalg.pinv(r + identity, rcond=1e-5) @ (r - identity)
    return (result - result.T) / 2
