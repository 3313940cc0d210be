"""Methods from statistics, in the papers' own layout (weights in × out) and by other algorithms.

Where a method solves normal equations for task vectors, the formula here works on whole weights,
inverts explicitly, or hands the inputs themselves to a least-squares solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from evomerge.methods import Context
from tests.methods.cases import Array, f64, names
from tests.methods.drawn import Statistics, draw_statistics
from tests.methods.golden import golden

WEIGHTS = (0.25, 0.5, 1.0, 0.125, 0.75)
DENSITIES = (0.3, 0.6, 1.0, 0.05, 0.9)
Values = Mapping[str, Any]


def drawing(
    *kinds: str, rank: int | None = None, base: tuple[str, ...] = ()
) -> Callable[[tuple[int, ...], int], Statistics]:
    return lambda shape, count: draw_statistics(kinds, base, shape, names(count), 1, rank)


def read(context: Context, kind: str) -> list[Array]:
    return [f64(s) for s in context.statistic(kind)]


def shrink(gram: Array, factor: float) -> Array:
    shrunk = gram * factor
    np.fill_diagonal(shrunk, gram.diagonal())
    return shrunk


def scaled(base: Array, solved: Array, values: Values) -> Array:
    merged: Array = base + values["scale"] * (solved - base)
    return merged


def regmean_closed_form(
    base: Array, experts: list[Array], context: Context, kind: str, values: Values
) -> Array:
    """``(Σ w Ĝ)⁻¹ Σ w Ĝ W`` by an explicit inverse, for Grams of full rank."""
    grams = [shrink(g, values["off_diagonal"]) for g in read(context, kind)]
    left = sum(w * g for w, g in zip(values["weight"], grams, strict=True))
    right = sum(w * g @ e.T for w, g, e in zip(values["weight"], grams, experts, strict=True))
    solved = (np.linalg.inv(left) @ right).T
    return scaled(base, solved, values)


@golden(
    "regmean",
    values=lambda count: {"weight": WEIGHTS[:count], "off_diagonal": 0.6, "scale": 0.7},
    statistics=drawing("gram"),
    low_rank=True,
)
@golden("regmean", values=lambda count: {"off_diagonal": 1.0}, statistics=drawing("gram"))
@golden("regmean", statistics=drawing("gram"))
@golden("regmean", values=lambda count: {"off_diagonal": 0.0}, statistics=drawing("gram", rank=2))
def regmean(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    return regmean_closed_form(base, experts, context, "gram", values)


@golden(
    "regmean_plus_plus",
    values=lambda count: {"weight": WEIGHTS[:count], "off_diagonal": 0.3, "scale": 1.2},
    statistics=drawing("merged_gram"),
    low_rank=True,
)
@golden("regmean_plus_plus", statistics=drawing("merged_gram"))
def regmean_plus_plus(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    return regmean_closed_form(base, experts, context, "merged_gram", values)


def inputs_of(gram: Array) -> Array:
    """Inputs that have this Gram: as many tokens as channels."""
    values, vectors = np.linalg.eigh(gram)
    inputs: Array = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    return inputs


def least_squares(
    experts: list[Array], grams: list[Array], weights: tuple[float, ...], near: Array
) -> Array:
    """Of all weights with the least ``Σ w ‖X (W − Wᵢ)‖²``, those nearest to ``near``."""
    rows, wanted = [], []
    for expert, gram, weight in zip(experts, grams, weights, strict=True):
        x = math.sqrt(weight) * inputs_of(gram)
        rows.append(x)
        wanted.append(x @ (expert - near).T)
    solved, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=1e-3)
    found: Array = near + solved.T
    return found


@golden(
    "regmean",
    values=lambda count: {"weight": WEIGHTS[:count], "off_diagonal": 1.0, "scale": 0.9},
    statistics=drawing("gram", rank=3),
    low_rank=True,
)
def regmean_of_few_inputs(
    base: Array, experts: list[Array], context: Context, values: Values
) -> Array:
    weights = values["weight"]
    near = sum(w * e for w, e in zip(weights, experts, strict=True)) / sum(weights)
    solved = least_squares(experts, read(context, "gram"), weights, near)
    return scaled(base, solved, values)


@golden(
    "lot",
    values=lambda count: {"weight": WEIGHTS[:count], "scale": 1.5},
    statistics=drawing("gram", rank=3),
    low_rank=True,
)
@golden("lot", statistics=drawing("gram"))
def lot(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    solved = least_squares(experts, read(context, "gram"), values["weight"], base)
    return scaled(base, solved, values)


@golden(
    "lot",
    values=lambda count: {"weight": WEIGHTS[:count], "ridge": 0.05},
    statistics=drawing("gram", rank=2),
    low_rank=True,
)
def lot_with_ridge(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    """The ridge as further tokens that ask every channel for a task vector of zero."""
    width = base.shape[1]
    grams = read(context, "gram")
    total = sum(w * g for w, g in zip(values["weight"], grams, strict=True))
    ridge = values["ridge"] * np.trace(total) / width * np.eye(width)
    solved = least_squares([*experts, base], [*grams, ridge], (*values["weight"], 1.0), base)
    return scaled(base, solved, values)


def posterior(
    base: Array, experts: list[Array], grams: list[Array], values: Values, anchor: Array
) -> Array:
    weights, width = values["weight"], base.shape[1]
    total = sum(w * g for w, g in zip(weights, grams, strict=True))
    strength = values["strength"] * np.trace(total) / width
    right = sum(w * g @ e.T for w, g, e in zip(weights, grams, experts, strict=True))
    solved = np.linalg.solve(total + strength * np.eye(width), right + strength * anchor.T).T
    return scaled(base, solved, values)


def arithmetic(base: Array, experts: list[Array], values: Values) -> Array:
    anchor = base.copy()
    for expert, w in zip(experts, values["weight"], strict=True):
        anchor += values["anchor_weight"] * w / max(values["weight"]) * (expert - base)
    return anchor


@golden(
    "bayesian",
    values=lambda count: {"weight": WEIGHTS[:count], "strength": 0.02, "anchor_weight": 0.5},
    statistics=drawing("gram", rank=3),
    low_rank=True,
)
@golden(
    "bayesian", values=lambda count: {"strength": 3.0, "scale": 0.8}, statistics=drawing("gram")
)
@golden("bayesian", statistics=drawing("gram"), low_rank=True)
def bayesian(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    anchor = arithmetic(base, experts, values)
    return posterior(base, experts, read(context, "gram"), values, anchor)


@golden(
    "bayesian_data_free",
    values=lambda count: {"weight": WEIGHTS[:count], "strength": 0.02, "anchor_weight": 0.5},
    low_rank=True,
)
@golden("bayesian_data_free", values=lambda count: {"scale": 1.3}, low_rank=True)
def bayesian_data_free(
    base: Array, experts: list[Array], context: Context, values: Values
) -> Array:
    deltas = [e - base for e in experts]
    grams = [d.T @ d / np.linalg.norm(d) ** 2 for d in deltas]
    return posterior(base, experts, grams, values, arithmetic(base, experts, values))


@golden(
    "fisher",
    values=lambda count: {"weight": WEIGHTS[:count], "floor": 0.01, "scale": 0.7},
    statistics=drawing("fisher"),
)
@golden(
    "fisher",
    values=lambda count: {"weight": WEIGHTS[:count], "normalise": False},
    statistics=drawing("fisher"),
)
@golden("fisher", statistics=drawing("fisher"))
def fisher(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    information = read(context, "fisher")
    sizes = [float(np.sqrt(np.mean(f**2))) for f in information]
    if not values["normalise"]:
        sizes = [float(np.sqrt(np.mean(np.stack(information) ** 2)))] * len(experts)
    merged = base.copy()
    for at in np.ndindex(*base.shape):
        importance = [
            w * (f[at] / size + values["floor"])
            for w, f, size in zip(values["weight"], information, sizes, strict=True)
        ]
        mean = sum(p * e[at] for p, e in zip(importance, experts, strict=True)) / sum(importance)
        merged[at] += values["scale"] * (mean - base[at])
    return merged


@golden(
    "ota",
    values=lambda count: {
        "weight": WEIGHTS[:count],
        "density": DENSITIES[:count],
        "power": 0.7,
        "scale": 1.1,
    },
    statistics=drawing("second_moment"),
)
@golden("ota", statistics=drawing("second_moment"))
@golden(
    "ota", values=lambda count: {"density": 1.0, "power": 1.0}, statistics=drawing("second_moment")
)
def ota(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    numerator, denominator = np.zeros_like(base), np.zeros_like(base)
    states = read(context, "second_moment")
    for i, (expert, v) in enumerate(zip(experts, states, strict=True)):
        saliency = v * (expert - base) ** 2
        ranked = np.sort(saliency, axis=None)[::-1]
        k = math.floor(values["density"][i] * base.size + 0.5)
        for at in np.ndindex(*base.shape):
            if k < base.size and not (saliency[at] >= ranked[k - 1] and saliency[at] > 0):
                continue
            importance = values["weight"][i] * (v[at] ** values["power"] + 1e-26)
            numerator[at] += importance * (expert[at] - base[at])
            denominator[at] += importance
    share = np.divide(numerator, denominator, out=np.zeros_like(base), where=denominator > 0)
    return scaled(base, base + share, values)


@golden(
    "aim",
    values=lambda count: {"weight": WEIGHTS[:count], "omega": 0.2, "scale": 1.3},
    statistics=drawing(base=("magnitude",)),
)
@golden("aim", statistics=drawing(base=("magnitude",)))
def aim(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    magnitude = f64(context.statistic_of("base", "magnitude"))
    merged = base.copy()
    for channel in range(base.shape[1]):
        relaxed = 1 - magnitude[channel] / max(magnitude) * (1 - values["omega"])
        for expert, w in zip(experts, values["weight"], strict=True):
            delta = expert[:, channel] - base[:, channel]
            merged[:, channel] += values["scale"] * w * relaxed * delta
    return merged


@golden(
    "sens",
    values=lambda count: {"weight": WEIGHTS[:count], "temperature": 0.05, "scale": 0.7},
    statistics=drawing("sensitivity"),
)
@golden("sens", statistics=drawing("sensitivity"))
def sens(base: Array, experts: list[Array], context: Context, values: Values) -> Array:
    pairs = np.stack(read(context, "sensitivity"))
    alignment = pairs[:, 1] / np.linalg.norm(pairs[:, 1], ord=1)
    exponentials = np.exp(pairs[:, 0] * alignment / values["temperature"])
    shares = exponentials / exponentials.sum()
    merged = base.copy()
    for expert, share, w in zip(experts, shares, values["weight"], strict=True):
        merged += values["scale"] * len(experts) * share * w * (expert - base)
    return merged
