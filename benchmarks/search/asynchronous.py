"""What simulated workers cost: more items, as proposals come before all scores are known.

    python -m benchmarks.search.asynchronous --bed analytic-60 --algorithms auto cma random

runs 1, 4 and 16 workers (runs that are in the bed's results already are skipped) and prints the
table. The efficiency of W workers is the items that one worker needs to reach a level over the
items that W need. Levels are shares of what one worker gains in its whole budget.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.run import BUDGET
from benchmarks.search.tables import Runs, load

WORKERS = (1, 4, 16)
LEVELS = (0.8, 0.95)
MORE = 1.5
"""Several workers get this times the budget, to see where they reach what one reaches in it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bed", default="analytic-60")
    parser.add_argument("--algorithms", nargs="+", default=["auto", "cma", "random"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=BUDGET)
    options = parser.parse_args()
    for workers in WORKERS:
        command = [sys.executable, "-m", "benchmarks.search.run", "--bed", options.bed]
        command += ["--algorithms", *options.algorithms, "--seeds", str(options.seeds)]
        command += ["--budget", str(_budget(options.budget, workers))]
        command += ["--workers", str(workers)]
        subprocess.run(command, check=True)
    print("\n".join(table(options.bed, options.budget)))


def _budget(budget: int, workers: int) -> int:
    return budget if workers == 1 else round(MORE * budget)


def efficiency(
    by_workers: Mapping[int, Runs], share: float
) -> dict[int, tuple[float, NDArray[np.float64]]]:
    """By number of workers the efficiency to reach a share of one worker's gain, and its curve.

    A seed's curve is its gain over the references, in parts of the mean final gain of that seed
    over the numbers of workers, so that instances count alike; curves are averaged over seeds. An
    efficiency is 0 where the level is not reached.
    """
    seeds = sorted(set.intersection(*(set(r.curves) for r in by_workers.values())))
    finals = {s: float(np.mean([r.final()[s] for r in by_workers.values()])) for s in seeds}
    means = {}
    costs = np.linspace(0, max(r.items * r.budget for r in by_workers.values()), 2001)
    for workers, r in by_workers.items():
        rows = []
        for s in seeds:
            start = r.curves[s].hypervolume[0]
            gain = np.array([r.curves[s].at(c) for c in costs]) - start
            rows.append(gain / max(finals[s] - start, 1e-9))
        means[workers] = np.mean(rows, axis=0)
    level = share * means[1][-1]
    needed = {w: _first(costs, mean >= level) for w, mean in means.items()}
    return {w: (needed[1] / needed[w], means[w]) for w in means}


def _first(costs: NDArray[np.float64], reached: NDArray[np.bool_]) -> float:
    return float(costs[int(np.argmax(reached))]) if reached.any() else np.inf


def table(bed: str, budget: int = BUDGET) -> list[str]:
    """Markdown rows of the algorithms that were run with all numbers of workers."""
    runs = {w: load(bed, _budget(budget, w), w) for w in WORKERS}
    names = [n for n in runs[1] if all(n in runs[w] for w in WORKERS)]
    if not names:
        return []
    many = WORKERS[1:]
    heads = [f"{w} workers, to {share:.0%}" for w in many for share in LEVELS]
    lines = [
        f"| {bed} | seeds | " + " | ".join(heads) + " |",
        "|---|---:|" + "---:|" * len(heads),
    ]
    for name in names:
        lines.append(_row(name, {w: runs[w][name] for w in WORKERS}, many))
    return lines


def _row(name: str, by_workers: Mapping[int, Runs], many: Sequence[int]) -> str:
    seeds = set.intersection(*(set(r.curves) for r in by_workers.values()))
    found = {share: efficiency(by_workers, share) for share in LEVELS}
    cells = [f"{found[share][w][0]:.2f}" for w in many for share in LEVELS]
    return f"| `{name}` | {len(seeds)} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
