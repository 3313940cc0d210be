"""Static figures for papers: front, hypervolume and the knee's coefficients, as PNG or SVG.

They are drawn in black, blue and orange of the palette of Okabe and Ito, with shapes beside
colours, on white; the same ledger gives the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from evomerge.ledger.fold import Candidate
from evomerge.report.coefficients import Grid, value
from evomerge.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT: Final = "#0072B2"
REFERENCE: Final = "#D55E00"
OTHER: Final = "#9AA1A9"
# offsets in points, and what of the name lies there
PLACES: Final = (
    (6, 4, "left"), (6, -9, "left"), (-6, 4, "right"), (-6, -9, "right"), (0, 9, "center"),
    (0, -14, "center"), (9, -2, "left"), (-9, -2, "right"),
)  # fmt: skip
STYLE: Final = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.hashsalt": "evomerge",  # the same data gives the same file
    "svg.fonttype": "none",
}


def draw(summary: Summary, out: Path, form: Literal["png", "svg"]) -> list[Path]:
    """Writes ``front``, ``hypervolume`` and ``heatmap``; those that there is data for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("front", _front(summary)),
            ("hypervolume", _hypervolume(summary)),
            ("heatmap", _heatmap(summary)),
        ):
            if figure is None:
                continue
            path = out / f"{name}.{form}"
            metadata = {"Date": None} if form == "svg" else None
            figure.savefig(path, dpi=200, metadata=metadata)
            pyplot.close(figure)
            written.append(path)
    return written


def _front(summary: Summary) -> Figure | None:
    """The first two objectives, search split as dots, what is held out with standard errors."""
    from matplotlib import pyplot

    view = summary.view
    names = (*view.optimise.names, *summary.columns)
    x, y = list(dict.fromkeys(names))[:2] if len(set(names)) > 1 else (names[0], names[0])
    if not view.state.scored():
        return None
    figure: Figure
    figure, axes = pyplot.subplots(figsize=(5.2, 4.0), layout="constrained")
    front = {c.id for c in summary.front}
    rest = [c for c in view.state.searched() if c.id not in front]
    _dots(axes, summary, rest, (x, y), "o", OTHER, "dominated (search split)")
    named: list[tuple[str, tuple[float, float], str]] = []
    split = "held out" if summary.split == "held_out" else "search split"
    for chosen, marker, colour, label in (
        (view.state.references(), "D", REFERENCE, f"reference points ({split})"),
        (summary.front, "o", FRONT, f"front ({split})"),
    ):
        found = _crosses(axes, summary, list(chosen), (x, y), marker, colour, label)
        named += [(text, place, colour) for text, place in found]
    axes.set_xlabel(_axis(summary, x))
    axes.set_ylabel(_axis(summary, y))
    axes.set_title(view.name)
    axes.locator_params(nbins=7)
    figure.legend(loc="outside lower left", ncols=3, fontsize=7, frameon=False, handletextpad=0.2)
    _name(figure, axes, named)
    return figure


def _name(figure: Figure, axes: Axes, named: list[tuple[str, tuple[float, float], str]]) -> None:
    """Names beside their marks: of some places around each the first that no other name covers."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    marks = np.array([place for _, place, _ in named]).reshape(-1, 2)
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(marks)]
    for text, place, colour in named:
        halo = [withStroke(linewidth=2, foreground="white")]
        label = axes.annotate(
            text, place, PLACES[0][:2], textcoords="offset points", fontsize=7, color=colour,
            path_effects=halo,
        )  # fmt: skip
        for dx, dy, across in PLACES:
            label.set(position=(dx, dy), ha=across)
            box = label.get_window_extent()
            if axes.bbox.contains(*box.max) and not box.count_overlaps(taken):
                break
        taken.append(label.get_window_extent())


def _axis(summary: Summary, name: str) -> str:
    less = summary.view.directions.get(name) == "minimise"
    return f"{summary.label(name)} (less is better)" if less else summary.label(name)


def _dots(
    axes: Axes,
    summary: Summary,
    chosen: list[Candidate],
    names: tuple[str, str],
    marker: str,
    colour: str,
    label: str,
) -> None:
    pairs = [[summary.view.value(c, name) for name in names] for c in chosen]
    points = np.array([[v.value for v in pair if v] for pair in pairs if all(pair)]).reshape(-1, 2)
    style: dict[str, Any] = {"s": 9, "marker": marker, "alpha": 0.6, "linewidths": 0}
    axes.scatter(points[:, 0], points[:, 1], color=colour, label=label, **style)


def _crosses(
    axes: Axes,
    summary: Summary,
    chosen: list[Candidate],
    names: tuple[str, str],
    marker: str,
    colour: str,
    label: str,
) -> list[tuple[str, tuple[float, float]]]:
    """Marks with one standard error each way; returns names and places of those to be named."""
    first = True
    named = []
    for candidate in chosen:
        found = [summary.view.value(candidate, name, summary.split) for name in names]
        if found[0] is None or found[1] is None:
            continue
        (a, b), errors = (v.value for v in found if v), [v.se or 0.0 for v in found if v]
        axes.errorbar(
            a, b, errors[1], errors[0], fmt=marker, color=colour, markersize=4.5,
            elinewidth=0.8, label=label if first else None,
        )  # fmt: skip
        first = False
        if candidate.is_reference or candidate is summary.knee:
            knee = " (knee)" if candidate is summary.knee else ""
            named.append((f"{candidate.label}{knee}", (a, b)))
    return named


def _hypervolume(summary: Summary) -> Figure | None:
    from matplotlib import pyplot

    steps = summary.history.steps
    if not steps:
        return None
    figure: Figure
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0), layout="constrained")
    axes.step(
        [s.evaluations for s in steps], [s.hypervolume for s in steps], where="post", color=FRONT
    )
    axes.set_xlabel("full evaluations")
    axes.set_ylabel("hypervolume (search split)")
    axes.set_title(summary.view.name)
    return figure


def _heatmap(summary: Summary) -> Figure | None:
    """The knee's coefficients, one row of panels a parameter."""
    from matplotlib import pyplot

    if summary.knee is None or summary.knee.genome is None:
        return None
    grids = summary.grids
    wide = max(sum(len(block.labels) for block in grid.blocks) for grid in grids)
    height = sum(0.28 * len(grid.rows) + 0.9 for grid in grids)
    figure: Figure = pyplot.figure(
        figsize=(min(12, 2.2 + 0.34 * wide), height), layout="constrained"
    )
    parts: Any = figure.subfigures(len(grids), 1, squeeze=False)
    for part, grid in zip(parts[:, 0], grids, strict=True):
        _panels(part, grid, summary, summary.knee.genome)
    figure.suptitle(f"{summary.view.name}: {summary.knee.label}, the knee", x=0.01, ha="left")
    return figure


def _panels(figure: Any, grid: Grid, summary: Summary, genome: tuple[float, ...]) -> None:
    widths = [len(block.labels) for block in grid.blocks]
    panels = figure.subplots(1, len(grid.blocks), width_ratios=widths, squeeze=False)[0]
    both = grid.low < 0 < grid.high
    bound = max(-grid.low, grid.high)
    low, high = (-bound, bound) if both else (grid.low, grid.high)
    image = None
    for axes, block in zip(panels, grid.blocks, strict=True):
        values = [[value(summary.view.space.genes, genome, s) for s in row] for row in block.spots]
        image = axes.imshow(
            values, cmap="PuOr" if both else "Blues", vmin=low, vmax=high, aspect="auto"
        )
        axes.set_title(block.name, fontsize=8)
        every = max(1, len(block.labels) // 12)
        axes.set_xticks(range(0, len(block.labels), every), block.labels[::every], fontsize=7)
        first = axes is panels[0]
        names = [row or grid.parameter for row in grid.rows] if first else []
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.grid(False)
    figure.colorbar(image, ax=list(panels), label=grid.parameter, fraction=0.04)
