"""Anytime curves of every bed with results: docs/search-BED.png.

    python -m benchmarks.search.figures

Median over seeds and quartiles, of the hypervolume and of the best mean, against scored items.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search.tables import (
    CHALLENGER,
    RIVALS,
    Runs,
    advantages,
    beds,
    figure_of,
    load,
    median,
)

DOCS = Path(__file__).parents[2] / "docs"
COLOURS = ("#3b75af", "#b07aa1", "#6a9f58", "#e1812c", "#8c6d4f")
SHOWN = len(COLOURS)
"""Rivals with colours, best first; the others are grey lines."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("beds", nargs="*", default=beds())
    for bed in parser.parse_args().beds:
        print(draw(bed, DOCS / figure_of(bed)))


def draw(bed: str, out: Path) -> Path:
    """Writes the figure of one bed."""
    pyplot = plotting()
    runs = {n: r for n, r in load(bed).items() if n in (*RIVALS, CHALLENGER)}
    ahead = advantages(runs)
    order = sorted(runs.values(), key=lambda r: -median(ahead[r.name] or [-np.inf]))
    best = [r.name for r in order if r.name in RIVALS][:SHOWN]
    colours = dict(zip(best, COLOURS, strict=False)) | {CHALLENGER: "#c03d3e"}
    panels = (("hypervolume", "hypervolume of (mean, min)"), ("best", "best mean"))
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for panel, (what, label) in zip(axes, panels, strict=True):
        for r in order:
            _curve(panel, r, what, colours.get(r.name))
        style(panel)
        panel.set_xlabel("scored items, in full evaluations")
        panel.set_title(f"{bed}: {label}", loc="left", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    save(figure, out)
    return out


def _curve(axes: Any, runs: Runs, what: str, colour: str | None) -> None:
    costs, values = runs.grid(what=what)
    low, mid, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    if colour is None:
        axes.plot(costs, mid, color="#c9c9c9", linewidth=0.8, zorder=1)
        return
    seeds = "" if len(runs.curves) >= 10 else f" ({len(runs.curves)} seeds)"
    axes.fill_between(costs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(costs, mid, color=colour, linewidth=1.6, label=runs.name + seeds, zorder=3)


def plotting() -> Any:
    """pyplot without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Any, out: Path) -> None:
    figure.savefig(out, dpi=110)
    plotting().close(figure)


if __name__ == "__main__":
    main()
