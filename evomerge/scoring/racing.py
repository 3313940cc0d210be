"""Racing: from some of a candidate's items, does a member of the front dominate it?

A race asks a candidate for its items in rungs, in one random order for all candidates, and ends it
once a fully scored member of the front dominates it with declared confidence.

The items are a finite set and others' values are known for all of them, so the only unknown is the
candidate's sum over the items that it was not asked yet. That is predicted once, whoever it is then
compared with: a mean over the front's answers there, corrected by a regression of how the candidate
differed from it so far on the answers of everyone who was fully scored. So what all find easy or
hard costs no certainty (regression estimator, sampling without replacement; Cochran, Sampling
Techniques, 3rd ed., sections 2.6 and 7.1 to 7.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from evomerge.scoring.statistics import Value

Floats = NDArray[np.float64]
Seen = Mapping[str, tuple[Sequence[int], Sequence[float]]]
"""By objective the positions among its N search items, each once, and the value at each."""

Scored = Mapping[str, Sequence[float]]
"""By objective the values of all its N search items, in order; arrays are read fastest."""

PREDICTORS = 64  # fully scored candidates in the regression, the latest of them
_RIDGE = 10.0  # in items: as strong as so many on which predictors differ from the front's mean
_POOLED = 10.0  # items' worth of the variance of all objectives in that of each
_CLEAR = 2.0  # standard errors above a bound, from where an objective cannot be below it

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Aim:
    """What is maximised: the sum, min or max of weight x value over some objectives."""

    terms: Mapping[str, float]
    kind: Literal["sum", "min", "max"] = "sum"

    def of(self, values: Mapping[str, float]) -> float:
        """The aim from the objectives' values."""
        terms = [weight * values[name] for name, weight in self.terms.items()]
        if self.kind == "sum":
            return math.fsum(terms)
        return min(terms) if self.kind == "min" else max(terms)


def aims_of(
    names: Sequence[str], signs: Sequence[float], directions: Mapping[str, str]
) -> tuple[Aim, ...]:
    """The aims of a front over `names`: objectives, or ``mean`` / ``min`` over the maximised ones.

    `signs` are +1 for what is maximised and -1 for what is minimised, by name.
    """
    maximised = [name for name, direction in directions.items() if direction == "maximise"]
    aims = []
    for name, sign in zip(names, signs, strict=True):
        if name in directions:
            aims.append(Aim({name: sign}))
        elif name == "mean":
            aims.append(Aim({n: sign / len(maximised) for n in maximised}))
        else:
            aims.append(Aim(dict.fromkeys(maximised, sign), "min" if sign > 0 else "max"))
    return tuple(aims)


def verdict(
    seen: Seen,
    counts: Mapping[str, int],
    members: Sequence[Scored],
    aims: Sequence[Aim],
    look: int,
    looks: int = 3,
    level: float = 0.05,
    others: Sequence[Scored] = (),
) -> int | None:
    """Index of a member that dominates the candidate, with confidence 1 - level; None: not known.

    A candidate that no member would dominate, were it fully scored, is dropped with probability
    `level` at most in all looks together: each look may spend a share of it (Bonferroni), the later
    the more. Members need no further correction, as all are compared with one prediction: a false
    drop takes an error in some aim, so the share is divided by the number of aims, or of members if
    they are fewer. Once everything was seen the answer is exact.

    Args:
        seen: all that the candidate has been asked so far. Without items of an objective, an aim
            that needs it is open, and with it the verdict.
        counts: N by objective.
        members: the front, fully scored. An objective's value must be the plain mean of its items,
            or grow with it: items with weights are given as w v N / sum(w). One that comes from the
            weights alone has N = 1.
        aims: what dominance is over.
        look: which look this is, from 0.
        looks: how many there will be before the full score.
        level: share of wrongly dropped candidates that is accepted.
        others: further fully scored candidates, to predict from; the latest count.
    """
    if not members:
        return None
    names = sorted({name for aim in aims for name in aim.terms})
    means = [{n: math.fsum(m[n]) / counts[n] for n in names} for m in members]
    points = [tuple(aim.of(values) for aim in aims) for values in means]
    if all(n in seen and len(seen[n][0]) == counts[n] for n in names):
        values = {n: math.fsum(seen[n][1]) / counts[n] for n in names}
        exact = tuple(aim.of(values) for aim in aims)
        return _first([float(not _dominates(p, exact)) for p in points], points, 0.0)
    if any(_alike(seen, member, names) for member in members):
        return None  # nothing tells them apart, however little was seen
    predicted = _predict({n: seen[n] for n in names if n in seen}, counts, members, others)
    share = level * 2 * (look + 1) / (looks * (looks + 1)) / min(len(aims), len(members))
    doubts = [
        max(_doubt(aim, predicted, x) for aim, x in zip(aims, point, strict=True))
        for point in points
    ]
    return _first(doubts, points, share)


def estimate(
    seen: Seen,
    counts: Mapping[str, int],
    members: Sequence[Scored] = (),
    others: Sequence[Scored] = (),
) -> dict[str, Value]:
    """The candidate's values by objective, from the items that it was asked, as `verdict` sees it.

    The standard errors are of what its full score will be, so they are 0 once all was seen.
    """
    predicted = _predict(seen, counts, members, others)
    return {
        name: Value(found.mean, math.sqrt(found.variance), len(seen[name][0]))
        for name, found in predicted.items()
    }


@dataclass(frozen=True)
class _Predicted:
    """An objective's value, were all its items seen: Student's t with so much freedom."""

    mean: float
    variance: float
    freedom: float
    favour: float = 0.0
    """What one more item off by the whole range would add to it: no verdict hangs on one."""


def _predict(
    seen: Seen, counts: Mapping[str, int], members: Sequence[Scored], others: Sequence[Scored]
) -> dict[str, _Predicted]:
    """Predictions of the objectives that have seen items.

    For objective j of N items, n of them seen, with x the known answers (items, predictors) and b
    their mean over the front: mean(b) + mean_seen(y - b) + (mean(x - b) - mean_seen(x - b)) beta.
    beta is the same for all objectives, by ridge regression within them. Each seen item is also
    predicted without it; what is wrong on average then is the regression's bias, and is taken off.
    The variance is (1 - n / N) s^2 / n, with s^2 of those same errors, so that it pays for what was
    fitted. As few items of 0 or 1 may agree by chance, s^2 is smoothed by one more item among all
    objectives' that is off by the whole range of values, and by the s^2 of them all.
    """
    found: dict[str, _Predicted] = {}
    parts: list[_Part] = []
    latest = others[max(0, len(others) + len(members) - PREDICTORS) :]
    for name, (positions, values) in seen.items():
        if len(positions) == counts[name]:
            found[name] = _Predicted(math.fsum(values) / counts[name], 0.0, math.inf)
        elif len(positions):
            known = [m[name] for m in members], [m[name] for m in latest]
            parts.append(_part(name, counts[name], positions, values, *known))
    if parts:
        found |= _regress(parts)
    return found


@dataclass(frozen=True)
class _Part:
    """A partly seen objective, in units of its range of values; y and x centred on what was seen.

    ``y`` (n,) are the candidate's differences from the front's mean, ``x`` (n, p) the predictors',
    ``shift`` (p,) what their mean over all items has above that over the seen ones.
    """

    name: str
    count: int
    width: float
    mean: float
    y: Floats
    x: Floats
    shift: Floats


def _part(
    name: str,
    count: int,
    positions: Sequence[int],
    values: Sequence[float],
    front: Sequence[Sequence[float]],
    others: Sequence[Sequence[float]],
) -> _Part:
    where = np.asarray(positions, dtype=np.intp)
    y = np.asarray(values, dtype=np.float64)
    table = np.array([*front, *others], dtype=np.float64).reshape(-1, count)
    width = float(np.ptp(np.concatenate([table.ravel(), y]))) or 1.0
    base = table[: len(front) or None].mean(axis=0) if len(table) else np.zeros(count)
    table = (table - base) / width
    y = y - base[where]
    x = table[:, where].T
    mean = x.mean(axis=0)
    level = base.mean() + y.mean()
    return _Part(
        name, count, width, level, (y - y.mean()) / width, x - mean, table.mean(axis=1) - mean
    )


def _regress(parts: Sequence[_Part]) -> dict[str, _Predicted]:
    sizes = [len(part.y) for part in parts]
    x, y = np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])
    fit = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T)
    beta = fit @ y
    leverage = np.einsum("ip,pi->i", x, fit) + np.repeat([1 / n for n in sizes], sizes)
    own = 1 - leverage
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = np.where(own > 1e-9, (y - x @ beta) / own, 1.0)
    ends = np.cumsum(sizes)[:-1]
    errors, weights = np.split(left_out, ends), np.split(fit, ends, axis=1)
    squares = [float((e**2).sum()) for e in errors]
    pooled = (math.fsum(squares) + 1) / (len(y) + 1)
    found = {}
    for part, n, e, weight, square in zip(parts, sizes, errors, weights, squares, strict=True):
        unseen = 1 - n / part.count
        bias = float((e * (part.shift @ weight + 1 / n - 1)).mean()) * unseen if n > 1 else 0.0
        variance = (square + _POOLED * pooled) / (n + _POOLED) * unseen / n
        found[part.name] = _Predicted(
            part.mean + part.width * (float(part.shift @ beta) - bias),
            part.width**2 * variance,
            max(1.0, n - 1 + min(_POOLED, len(y) - n)),
            part.width * unseen / (len(y) + 1),
        )
    return found


def _doubt(aim: Aim, predicted: Mapping[str, _Predicted], x: float) -> float:
    """p-value of the hypothesis that the aim, fully scored, exceeds `x`."""
    if aim.kind == "sum":
        return _NORMAL.cdf(_score(aim.terms, predicted, x))
    scores = [_score({n: weight}, predicted, x) for n, weight in aim.terms.items()]
    if aim.kind == "max":
        return _NORMAL.cdf(max(scores))
    # All must exceed x. Likelihood ratio test of one-sided means (chi-bar-square: Kudo 1963,
    # doi:10.1093/biomet/50.3-4.403) over those that are not clearly above it (moment selection:
    # Andrews and Soares 2010, doi:10.3982/ECTA7502).
    near = sum(score < _CLEAR for score in scores)
    distance = math.fsum(min(score, 0.0) ** 2 for score in scores)
    if distance in (0.0, math.inf):
        return float(distance == 0.0)
    return math.fsum(
        math.comb(near, i) * 0.5**near * float(chdtrc(i, distance)) for i in range(1, near + 1)
    )


def _score(terms: Mapping[str, float], predicted: Mapping[str, _Predicted], x: float) -> float:
    """How far a weighted sum of values is above `x`, in standard errors, as a normal score.

    From Student's t with Satterthwaite's freedom, by Wallace 1959 (Annals of Mathematical
    Statistics 30, 1121). +inf where some objective is not predicted.
    """
    if any(name not in predicted for name in terms):
        return math.inf
    parts = [(weight, predicted[name]) for name, weight in terms.items()]
    gap = math.fsum(weight * p.mean + abs(weight) * p.favour for weight, p in parts) - x
    variances = [weight**2 * p.variance for weight, p in parts]
    variance = math.fsum(variances)
    if not variance:
        return math.inf if gap > 0 else -math.inf
    freedom = variance**2 / math.fsum(
        v**2 / p.freedom for v, (_, p) in zip(variances, parts, strict=True)
    )
    spread = math.sqrt(freedom * math.log1p(gap**2 / variance / freedom))
    return math.copysign((8 * freedom + 1) / (8 * freedom + 3) * spread, gap)


def _alike(seen: Seen, member: Scored, names: Sequence[str]) -> bool:
    return all(
        np.array_equal(np.asarray(member[n])[np.asarray(seen[n][0], dtype=np.intp)], seen[n][1])
        for n in names
        if n in seen
    )


def _dominates(point: Sequence[float], other: Sequence[float]) -> bool:
    return point != other and all(a >= b for a, b in zip(point, other, strict=True))


def _first(doubts: Sequence[float], points: Sequence[Sequence[float]], limit: float) -> int | None:
    """The least doubtful member within the limit; of several the one with the best first aim."""
    index = min(range(len(doubts)), key=lambda i: (doubts[i], tuple(-v for v in points[i])))
    return index if doubts[index] <= limit else None
