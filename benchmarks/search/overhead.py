"""What a proposal costs, against the number of candidates told before it.

    python -m benchmarks.search.overhead --algorithms auto cma tpe gp random

Tells each search of an analytic bed candidate after candidate and times all calls that one takes
(ask, look, observe, tell). An algorithm is stopped once a candidate takes longer than --patience.
Results go to benchmarks/search/results/_overhead.json and docs/search-overhead.png.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.search import drive
from benchmarks.search.bed import Bed
from benchmarks.search.figures import DOCS, plotting, save, style
from benchmarks.search.run import RESULTS, load_bed, make, usable
from evomerge.search.base import Measured

RESULT = RESULTS / "_overhead.json"
AT = (10, 20, 50, 100, 200, 500, 1000, 1500, 2000)
"""Candidates told, at which the mean of the last tenth of them (at least five) is noted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bed", default="analytic-60")
    parser.add_argument("--algorithms", nargs="+", default=["auto", "random", "cma", "tpe", "gp"])
    parser.add_argument("--told", type=int, default=AT[-1])
    parser.add_argument("--patience", type=float, default=20.0, help="seconds for a candidate")
    parser.add_argument("--plot", action="store_true", help="only draw what was measured")
    options = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in [] if options.plot else usable(options.algorithms):
        bed = load_bed(options.bed, 0)
        found.setdefault(options.bed, {})[name] = measure(bed, name, options.told, options.patience)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found[options.bed][name], flush=True)
    draw(found, DOCS / "search-overhead.png")


def measure(bed: Bed, name: str, told: int, patience: float) -> dict[str, list[float]]:
    """Seconds a candidate at the numbers of told candidates."""
    seconds: list[float] = []
    run = Stepped(bed, name, told)
    while len(seconds) < told and (not seconds or seconds[-1] < patience):
        before = run.record.proposing
        if not run.step():
            break
        seconds.append(run.record.proposing - before)
    noted = [at for at in AT if at <= len(seconds)]
    if len(seconds) < told and len(seconds) >= 5:
        noted.append(len(seconds))
    means = [seconds[at - max(5, at // 10) : at] for at in noted]
    return {
        "told": [*map(float, noted)],
        "seconds": [float(f"{sum(m) / len(m):.3g}") for m in means],
    }


class Stepped(drive.Run):
    """A run of one worker, candidate by candidate."""

    def __init__(self, bed: Bed, name: str, told: int) -> None:
        def fresh(measured: Measured) -> Any:
            return make(bed, name, 0, told, measured)

        super().__init__(bed, fresh, 2 * told * bed.items, workers=1, level=None)
        self.references()

    def step(self) -> bool:
        """Asks for and ends one candidate; False where none came."""
        self.fill()
        return self.next()


def draw(found: dict[str, Any], out: Path) -> None:
    """Seconds a candidate by algorithm, both axes logarithmic; one panel a bed."""
    pyplot = plotting()
    figure, panels = pyplot.subplots(
        1, len(found), figsize=(5 * len(found), 3.6), layout="constrained", squeeze=False
    )
    for axes, (bed, algorithms) in zip(panels[0], sorted(found.items()), strict=True):
        for name, line in algorithms.items():
            axes.loglog(line["told"], line["seconds"], marker="o", markersize=3, label=name)
        style(axes)
        axes.set_xlabel("candidates told")
        axes.set_ylabel("seconds to propose one")
        axes.set_title(bed, loc="left", fontsize=10)
        axes.legend(fontsize=7)
    save(figure, out)


if __name__ == "__main__":
    main()
