"""Racing: from some of a candidate's items to whether a member of the front dominates it.

A race asks a candidate for its items in rungs, the same random order for all candidates, and ends
it once a fully scored member of the front dominates it with declared confidence.

The items are a finite set and the members' values are known for all of them, so the only unknown
is the candidate's sum over the items it has not been asked yet. That is predicted once, whoever is
compared: by what the members have there, corrected by how the candidate differed from them so far
(a difference estimator without replacement; Cochran, Sampling Techniques, 3rd ed., section 7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.statistics import Value

Floats = NDArray[np.float64]
Seen = Mapping[str, tuple[Sequence[int], Sequence[float]]]
"""By objective the positions among its N search items, each once, and the value at each."""

Member = Mapping[str, Sequence[float]]
"""By objective the values of all its N search items, in order."""


@dataclass(frozen=True)
class Aim:
    """What is maximised: of the terms weight x value of each objective the sum, min or max."""

    terms: Mapping[str, float]
    kind: Literal["sum", "min", "max"] = "sum"


def aims_of(
    names: Sequence[str], signs: Sequence[float], directions: Mapping[str, str]
) -> tuple[Aim, ...]:
    """The aims of a front over `names`: objectives, or ``mean`` / ``min`` over the maximised ones.

    `signs` are +1 for what is maximised, -1 for what is minimised.
    """
    maximised = [name for name, direction in directions.items() if direction == "maximise"]
    return tuple(
        _aim(name, sign, directions, maximised) for name, sign in zip(names, signs, strict=True)
    )


def _aim(name: str, sign: float, directions: Mapping[str, str], maximised: Sequence[str]) -> Aim:
    if name in directions:
        return Aim({name: sign})
    if name == "mean":
        return Aim({n: sign / len(maximised) for n in maximised})
    return Aim(dict.fromkeys(maximised, sign), "min" if sign > 0 else "max")


def verdict(
    seen: Seen,
    counts: Mapping[str, int],
    members: Sequence[Member],
    aims: Sequence[Aim],
    look: int,
    looks: int = 3,
    level: float = 0.05,
) -> int | None:
    """The member that dominates the candidate, with confidence 1 - level; None: not known yet.

    A candidate that, fully scored, no member would dominate is dropped in all its looks together
    with probability `level` at most. Once everything was seen the answer is exact.

    Args:
        seen: what the candidate has been asked so far.
        counts: N by objective.
        members: the front, fully scored. An objective's value must be the plain mean of its items
            or grow with it. Weighted items are given as w v N / sum(w).
        look: which look this is, from 0; of `looks` before the full score.
    """
    if not members:
        return None
    known = {
        name: _Known(seen.get(name, ((), ())), counts[name], [m[name] for m in members])
        for name in {n for aim in aims for n in aim.terms}
    }
    share = level / looks / min(len(aims), len(members))
    points = np.array(
        [
            [_value(aim, {n: known[n].values[i] for n in aim.terms}) for aim in aims]
            for i in range(len(members))
        ]
    )
    bounds = np.array([_bound(aim, known, share) for aim in aims])
    dominating = (points >= bounds).all(axis=1) & (points > bounds).any(axis=1)
    if not dominating.any():
        return None
    margins = np.where(dominating, (points - bounds).min(axis=1), -np.inf)
    return int(np.argmax(margins))


def estimate(seen: Seen, counts: Mapping[str, int], members: Sequence[Member]) -> dict[str, Value]:
    """The candidate's values by objective, as far as it was asked, with their standard errors.

    The errors are of what its full score will be, so they are 0 once all items were seen.
    """
    found = {}
    for name, (positions, values) in seen.items():
        if len(positions):
            k = _Known((positions, values), counts[name], [m[name] for m in members])
            found[name] = Value(k.mean, math.sqrt(k.variance), len(positions))
    return found


class _Known:
    """What is known of one objective: the members' values and the prediction of the candidate's."""

    def __init__(
        self,
        seen: tuple[Sequence[int], Sequence[float]],
        count: int,
        members: Sequence[Sequence[float]],
    ) -> None:
        positions = np.asarray(seen[0], dtype=np.intp)
        values = np.asarray(seen[1], dtype=np.float64)
        n = len(positions)
        self.values = [math.fsum(m) / count for m in members]
        if n == count:
            self.mean, self.variance, self.freedom = math.fsum(values) / count, 0.0, math.inf
            return
        if n == 0:
            self.mean, self.variance, self.freedom = 0.0, math.inf, 1.0
            return
        table = np.asarray(members, dtype=np.float64).reshape(-1, count)
        predicted = table.mean(axis=0) if len(table) else np.zeros(count)
        every = np.concatenate([table.ravel(), values])
        width = float(np.ptp(every)) or 1.0
        differences = values - predicted[positions]
        centre = differences.mean()
        squares = float(((differences - centre) ** 2).sum()) + width**2
        self.mean = float(predicted.mean() + centre)
        self.variance = (1 - n / count) * squares / (n + 1) / n
        self.freedom = float(n + 1)


def _value(aim: Aim, values: Mapping[str, float]) -> float:
    terms = [weight * values[name] for name, weight in aim.terms.items()]
    if aim.kind == "sum":
        return math.fsum(terms)
    return min(terms) if aim.kind == "min" else max(terms)


def _bound(aim: Aim, known: Mapping[str, _Known], share: float) -> float:
    """What the aim, fully scored, exceeds with probability `share` at most."""
    if aim.kind == "sum":
        parts = [(weight, known[name]) for name, weight in aim.terms.items()]
        mean = math.fsum(weight * k.mean for weight, k in parts)
        variances = [weight**2 * k.variance for weight, k in parts]
        total = math.fsum(variances)
        if total in (0.0, math.inf):
            return mean + total
        freedom = total**2 / math.fsum(
            v**2 / k.freedom for v, (_, k) in zip(variances, parts, strict=True)
        )
        return mean + _quantile(share, freedom) * math.sqrt(total)
    part = share / len(aim.terms)
    ends = [_bound(Aim({name: weight}), known, part) for name, weight in aim.terms.items()]
    return min(ends) if aim.kind == "min" else max(ends)


def _quantile(share: float, freedom: float) -> float:
    """Upper quantile of Student's t (Cornish-Fisher expansion; Abramowitz and Stegun 26.7.5)."""
    z = -NormalDist().inv_cdf(share)
    g = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (i + 1) for i, term in enumerate(g))
