"""The comparison as one bar chart, PNG and SVG.

Bars start at the base model's value: from zero, methods that differ by a standard error would look
alike, and the base is what each of them sets out from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

COLOURS: Final = {"reference": "#9aa5b1", "given": "#b07aa1", "method": "#3b75af"}
LABELS: Final = {
    "reference": "reference points",
    "given": "given beside them",
    "method": "merge methods, tuned on the search split",
}


def draw(data: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes ``comparison.png`` and ``comparison.svg`` of what ``show.as_data`` gave."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "evomerge"  # the same data gives the same file
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    criterion = data["criterion"]
    rows = [r for r in data["rows"] if r["held_out"] and r["held_out"][criterion]][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.24 * len(rows)), layout="constrained")
    values = [row["held_out"][criterion][0] for row in rows] or [0.0]
    start = next((v for v, r in zip(values, rows, strict=False) if r["name"] == "base"), 0.0)
    for at, (row, value) in enumerate(zip(rows, values, strict=False)):
        error = row["held_out"][criterion][1] or 0.0
        axes.barh(
            at,
            value - start,
            left=start,
            xerr=error,
            height=0.72,
            color=COLOURS[row["kind"]],
            error_kw={"elinewidth": 1, "ecolor": "#333333", "capsize": 2},
        )
        label = f"{value:.3f}" if row["kind"] != "method" else f"{value:.3f}  {row['chosen']}"
        axes.text(max(value + error, start), at, f"  {label}", va="center", fontsize=7)
    axes.axvline(start, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    low, high = min(values), max(values)
    margin = (high - low) or abs(high) or 1.0
    axes.set_xlim(low - 0.05 * margin, high + 0.3 * margin)
    axes.set_xlabel(f"{criterion} on held-out items ± standard error; bars start at the base model")
    axes.set_title(f"{data['experiment']}: merges compared", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    kinds = [k for k in LABELS if any(r["kind"] == k for r in rows)]
    axes.legend(
        handles=[Patch(color=COLOURS[k], label=LABELS[k]) for k in kinds],
        loc="lower right",
        fontsize=8,
    )
    paths = [out / "comparison.png", out / "comparison.svg"]
    figure.savefig(paths[0], dpi=150)
    figure.savefig(paths[1], metadata={"Date": None})
    pyplot.close(figure)
    return paths
