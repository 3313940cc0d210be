"""Writes the generated part of docs/search-benchmark.md, from the data files alone.

python -m benchmarks.search.figures && python -m benchmarks.search.page
"""

from __future__ import annotations

import json
from itertools import product

from benchmarks.search import asynchronous, overhead
from benchmarks.search.drive import LEVEL
from benchmarks.search.figures import DOCS
from benchmarks.search.run import BUDGET, RESULTS, read
from benchmarks.search.tables import beds, items_of, load, median, quartiles, section

PAGE = DOCS / "search-benchmark.md"
BEGIN, END = "<!-- generated: python -m benchmarks.search.page -->", "<!-- end -->"


def main() -> None:
    text = "\n".join(
        [*_versions(), *sections(), *_ablations(), *_racing(), *_workers(), *_overhead()]
    )
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", "utf-8")


def sections() -> list[str]:
    """Of all beds; those of fewer search items come last, below a heading that says how many."""
    found: list[str] = []
    before = ""
    for bed in beds():
        if items_of(bed) != before:
            before = items_of(bed)
            found += [f"### Beds of {before} search items an objective", ""]
        found.append(section(bed))
    return found


def _versions() -> list[str]:
    found: dict[str, set[str]] = {}
    for bed in beds():
        for line in read(RESULTS / f"{bed}.jsonl"):
            for library, number in line["versions"].items():
                found.setdefault(library, set()).add(number)
    named = [f"{library} {', '.join(sorted(v))}" for library, v in sorted(found.items())]
    return [f"Libraries: {'; '.join(named)}.", ""]


ABLATIONS = {
    "guided": "as it is",
    "guided+racing": "with racing",
    "guided:slopes=false": "probes without slopes",
    "guided:signal=false": "probes by the metric",
    "guided:probes=0": "no probes: all candidates scored",
}
SHORT = 20  # full evaluations


def _ablations() -> list[str]:
    """What each part of the guided search brings, at a fifth of the budget."""
    rows = []
    for bed in beds():
        runs = load(bed, SHORT)
        if "guided" not in runs:
            continue
        for name, said in ABLATIONS.items():
            if name in runs:
                finals = runs[name].final().values()
                low, middle, high = quartiles(finals)
                held = [line["held_out"]["best"][0] for line in runs[name].lines.values()]
                rows.append(
                    f"| {bed} | {said} | {len(held)} | {middle:.4f} ({low:.4f}–{high:.4f}) "
                    f"| {median(held):.4f} |"
                )
    if not rows:
        return []
    return [
        "### Parts of the guided search",
        "",
        f"After {SHORT} full evaluations: hypervolume, median over seeds and quartiles; held-out "
        "mean of the candidate of the best mean, median.",
        "",
        "| bed | guided search | seeds | hypervolume | held out |",
        "|---|---|---:|---:|---:|",
        *rows,
        "",
    ]


def _racing() -> list[str]:
    """Of the runs in which something was dropped, all seeds of one algorithm together."""
    rows = []
    for bed, budget in product(beds(), (BUDGET, SHORT)):
        for name, runs in load(bed, budget).items():
            lines = [line for line in runs.lines.values() if line["dropped"]]
            dropped = sum(line["dropped"] for line in lines)
            if not dropped:
                continue
            whole = runs.items * sum(line["dropped"] + line["scored"] for line in lines)
            saved = runs.items * dropped - sum(line["dropped_items"] for line in lines)
            wrong = sum(line["false_drops"] for line in lines)
            right = wrong + sum(line["entered"] for line in lines)
            rows.append(
                f"| {bed} | `{name}` | {budget} | {len(lines)} "
                f"| {dropped * runs.items / whole:.0%} "
                f"| {saved / whole:.0%} | {wrong} of {right} ({wrong / max(right, 1):.1%}) |"
            )
    if not rows:
        return []
    return [
        "### Racing",
        "",
        f"Level {LEVEL:g}: of the candidates that belong on the front of their time at most that "
        "share may be dropped; dropped ones were fully scored afterwards to know. Items saved are "
        "of those that all candidates have, without probes.",
        "",
        "| bed | search | budget | seeds | dropped | items saved | wrongly dropped |",
        "|---|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]


def _workers() -> list[str]:
    tables = [table for bed in beds() if (table := asynchronous.table(bed))]
    if not tables:
        return []
    found = ["### Workers", "", "Efficiency: items that one worker needs over items that W need."]
    return [*found, *(line for table in tables for line in ("", *table)), ""]


def _overhead() -> list[str]:
    if not overhead.RESULT.exists():
        return []
    lines = ["### Overhead", "", "![seconds a proposal](search-overhead.png)", ""]
    for bed, algorithms in sorted(json.loads(overhead.RESULT.read_text()).items()):
        told = sorted({at for line in algorithms.values() for at in line["told"]})
        lines.append(f"| {bed}, told | " + " | ".join(f"{at:.0f}" for at in told) + " |")
        lines.append("|---|" + "---:|" * len(told))
        for name, line in algorithms.items():
            by = dict(zip(line["told"], line["seconds"], strict=True))
            cells = " | ".join(f"{by[at]:.2g}" if at in by else "" for at in told)
            lines.append(f"| `{name}` | {cells} |")
        lines.append("")
    return lines


if __name__ == "__main__":
    main()
