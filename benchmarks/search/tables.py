"""What the results files say: curves by algorithm, levels, ratios, tests, and the tables.

Costs are in full evaluations of a bed (scored items over its number of items).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from benchmarks.search import rivals
from benchmarks.search.drive import Curve
from benchmarks.search.run import BUDGET, OWN, RESULTS, read

Array = NDArray[np.float64]

CHALLENGER = "auto"
RIVALS = (*OWN, *rivals.RIVALS)
LEVELS = (0.5, 0.8, 0.95)
"""Of the way from the references to the best final value that any rival has."""

FEWEST = 3
"""Seeds that an algorithm needs to be the best rival."""


@dataclass(frozen=True)
class Runs:
    """The runs of one algorithm on one bed: curves and lines by seed, the same budget for all."""

    name: str
    curves: Mapping[int, Curve]
    lines: Mapping[int, Mapping[str, Any]]
    items: int
    budget: int

    def final(self, what: str = "hypervolume") -> dict[int, float]:
        return {seed: getattr(c, what)[-1] for seed, c in self.curves.items()}

    def area(self, what: str = "hypervolume") -> list[float]:
        return [c.area(self.items * self.budget, what) for c in self.curves.values()]

    def grid(self, points: int = 101, what: str = "hypervolume") -> tuple[Array, Array]:
        """Costs in full evaluations, shape (points,), and values, shape (seeds, points)."""
        costs = np.linspace(0, self.budget, points)
        rows = [[c.at(x * self.items, what) for x in costs] for c in self.curves.values()]
        return costs, np.array(rows)


def load(bed: str, budget: int = BUDGET, workers: int = 1) -> dict[str, Runs]:
    """All runs of a bed by algorithm."""
    lines: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in read(RESULTS / f"{bed}.jsonl"):
        if (line["budget"], line["workers"]) == (budget, workers):
            lines.setdefault(line["algorithm"], {})[line["seed"]] = line
    return {
        name: Runs(
            name,
            {s: _curve(line) for s, line in sorted(found.items())},
            dict(sorted(found.items())),
            next(iter(found.values()))["items"],
            budget,
        )
        for name, found in lines.items()
    }


def _curve(line: Mapping[str, Any]) -> Curve:
    values = (tuple(line[k]) for k in ("cost", "hypervolume", "best", "generated"))
    return Curve(*values)


def advantages(
    runs: Mapping[str, Runs], cost: float | None = None, what: str = "hypervolume"
) -> dict[str, list[float]]:
    """By algorithm and seed, its value less the mean of the field at that seed.

    The field are the rivals that have the most seeds. Instances differ more than algorithms do, and
    slow algorithms have fewer seeds, so values of different seeds are never compared themselves.
    `cost` is in items, by default the whole budget.
    """
    most = max((len(r.curves) for n, r in runs.items() if n in RIVALS), default=0)
    field = [r for n, r in runs.items() if n in RIVALS and len(r.curves) == most]
    at = np.inf if cost is None else cost
    common = set.intersection(*(set(r.curves) for r in field)) if field else set()
    means = {s: float(np.mean([r.curves[s].at(at, what) for r in field])) for s in common}
    return {
        name: [c.at(at, what) - means[s] for s, c in r.curves.items() if s in means]
        for name, r in runs.items()
    }


def best_rival(
    runs: Mapping[str, Runs], cost: float | None = None, what: str = "hypervolume"
) -> Runs | None:
    """The rival of the largest median advantage over the field."""
    able = {
        name: median(found)
        for name, found in advantages(runs, cost, what).items()
        if name in RIVALS and len(found) >= FEWEST
    }
    return runs[max(able, key=lambda n: able[n])] if able else None


def median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; infinities stay what they are."""
    found = np.sort(list(values))
    picks = [np.quantile(found, q, method="nearest") for q in (0.25, 0.5, 0.75)]
    return float(picks[0]), float(np.median(found)), float(picks[2])


def costs_to(runs: Runs, levels: Mapping[int, float], what: str = "hypervolume") -> list[float]:
    """By seed, the full evaluations after which the level of that seed is reached, or infinity."""
    return [
        c.reaches(levels[seed], what) / runs.items
        for seed, c in runs.curves.items()
        if seed in levels
    ]


def levels_of(
    runs: Mapping[str, Runs], share: float, shared: bool, what: str = "hypervolume"
) -> dict[int, float]:
    """By seed, the value at a share of the way from the references to the best rival's final value.

    With `shared` (a real bed, the same for all seeds) the best is over all seeds.
    """
    known = [r for n, r in runs.items() if n in RIVALS]
    start: dict[int, float] = {}
    best: dict[int, float] = {}
    for r in known:
        for seed, c in r.curves.items():
            values = getattr(c, what)
            start[seed] = values[0]
            best[seed] = max(best.get(seed, -np.inf), values[-1])
    if shared and best:
        best = dict.fromkeys(best, max(best.values()))
    return {seed: start[seed] + share * (best[seed] - start[seed]) for seed in start}


@dataclass(frozen=True)
class Duel:
    """The challenger against the best rival."""

    rival: str
    shares: tuple[float, ...]
    """By seed, the challenger's cost to reach the rival's final value, over the rival's cost."""
    tokens: tuple[float, ...]
    """The same of generated tokens."""
    tenths: tuple[tuple[float, str, float], ...]
    """At each tenth of the budget: the challenger's median, the best rival there, its median, over
    the seeds that both have."""
    wins: int
    seeds: int
    p: float
    """Wilcoxon's signed rank test of the area under the curve, two-sided, over common seeds."""


def duel(
    runs: Mapping[str, Runs], shared: bool, challenger: str = CHALLENGER, what: str = "hypervolume"
) -> Duel | None:
    """None where the challenger or every rival is missing.

    The level to reach is the rival's final value: its median over seeds on a real bed (`shared`),
    that of the same instance on an analytic one. The rival's cost is the whole budget.
    """
    mine, rival = runs.get(challenger), best_rival(runs, what=what)
    if mine is None or rival is None:
        return None
    finals = rival.final(what)
    levels = dict.fromkeys(mine.curves, median(finals.values())) if shared else finals
    shares = tuple(cost / rival.budget for cost in costs_to(mine, levels, what))
    tokens = []
    for seed, c in mine.curves.items():
        step = c.step(levels[seed], what) if seed in levels else None
        whole = median(line["tokens"] for line in rival.lines.values())
        tokens.append(np.inf if step is None else c.tokens[step] / whole)
    both = sorted(set(mine.curves) & set(rival.curves))
    whole = rival.items * rival.budget
    ours = [mine.curves[s].area(whole, what) for s in both]
    theirs = [rival.curves[s].area(whole, what) for s in both]
    return Duel(
        rival.name,
        shares,
        tuple(tokens),
        tuple(_tenth(runs, mine, k, what) for k in range(1, 11)),
        sum(a > b for a, b in zip(ours, theirs, strict=True)),
        len(both),
        paired(ours, theirs),
    )


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed rank test; 1 where all pairs are equal."""
    if not ours or np.allclose(ours, theirs):
        return 1.0
    return float(wilcoxon(ours, theirs).pvalue)


def _tenth(runs: Mapping[str, Runs], mine: Runs, k: int, what: str) -> tuple[float, str, float]:
    at = mine.items * mine.budget * k / 10
    rival = best_rival(runs, at, what)
    assert rival is not None
    both = set(mine.curves) & set(rival.curves)
    ours, theirs = (median(r.curves[s].at(at, what) for s in both) for r in (mine, rival))
    return ours, rival.name, theirs


def section(bed: str) -> str:
    """The Markdown of one bed; one of fewer items stands below a heading of its own."""
    runs, shared = load(bed), not bed.startswith("analytic-")
    ahead = advantages(runs)
    order = sorted(runs.values(), key=lambda r: -median(ahead[r.name] or [-np.inf]))
    levels = [levels_of(runs, share, shared) for share in LEVELS]
    heads = "".join(f" | to {share:.0%}" for share in LEVELS)
    lines = [
        f"{'####' if items_of(bed) else '###'} {bed}",
        "",
        f"![anytime curves on {bed}]({figure_of(bed)})",
        "",
        "| algorithm | seeds | hypervolume | against the field | area | best mean "
        f"| held-out of it{heads} | proposing, s |",
        "|---|" + "---:|" * (len(LEVELS) + 7),
    ]
    for r in order:
        low, mid, high = quartiles(r.final().values())
        held = [line["held_out"]["best"][0] for line in r.lines.values()]
        error = f" ± {np.std(held, ddof=1) / len(held) ** 0.5:.4f}" if len(held) > 1 else ""
        to = "".join(f" | {_cost(median(costs_to(r, level)))}" for level in levels)
        spent = median(line["proposing"] / _candidates(line) for line in r.lines.values())
        lines.append(
            f"| `{r.name}` | {len(r.curves)} | {mid:.4f} ({low:.4f}–{high:.4f}) "
            f"| {median(ahead[r.name]):+.4f} "
            f"| {median(r.area()):.4f} | {median(r.final('best').values()):.4f} "
            f"| {np.mean(held):.4f}{error}{to} | {spent:.2g} |"
        )
    return "\n".join([*lines, "", *_duel_lines(runs, shared), ""])


def _duel_lines(runs: Mapping[str, Runs], shared: bool) -> list[str]:
    found = duel(runs, shared)
    if found is None:
        return []
    low, mid, high = quartiles(found.shares)
    lines = [
        f"`{CHALLENGER}` reaches the final hypervolume of the best rival, `{found.rival}`, with "
        f"{_share(mid)} of its scored items (median of {len(found.shares)} seeds; quartiles "
        f"{_share(low)} and {_share(high)}), and {_share(median(found.tokens))} of its generated "
        f"tokens. Its area under the curve is larger on {found.wins} "
        f"of {found.seeds} seeds (Wilcoxon's signed rank test, p = {found.p:.2g}).",
        "",
        "| of the budget | " + " | ".join(f"{k}0 %" for k in range(1, 11)) + " |",
        "|---|" + "---:|" * 10,
        f"| `{CHALLENGER}` | " + " | ".join(f"{mine:.4f}" for mine, _, _ in found.tenths) + " |",
        "| best rival there | " + " | ".join(f"{v:.4f}" for _, _, v in found.tenths) + " |",
        "| which | " + " | ".join(f"`{name}`" for _, name, _ in found.tenths) + " |",
    ]
    return lines


def _candidates(line: Mapping[str, Any]) -> int:
    return max(int(line["scored"] + line["probes"] + line["dropped"]), 1)


def _cost(cost: float) -> str:
    return "–" if np.isinf(cost) else f"{cost:.1f}"


def _share(share: float) -> str:
    return "more than all" if np.isinf(share) else f"{share:.0%}"


def beds() -> list[str]:
    """Beds with results: real ones, the others by dimension, those of fewer items (``@80``)."""
    names = [p.stem for p in RESULTS.glob("*.jsonl") if not p.stem.startswith("_")]
    return sorted(names, key=_place)


def items_of(bed: str) -> str:
    """``80`` of ``text@80``; nothing for a bed with as many items as beds of its kind have."""
    return bed.partition("@")[2]


def figure_of(bed: str) -> str:
    """The file name of its figure."""
    return f"search-{bed.replace('@', '-')}.png"


def _place(bed: str) -> tuple[int, bool, list[int], str]:
    name, _, items = bed.partition("@")
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return int(items or 0), name.startswith("analytic"), numbers, name
