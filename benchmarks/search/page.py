"""Writes the generated part of docs/search-benchmark.md, from the data files alone.

python -m benchmarks.search.figures && python -m benchmarks.search.page
"""

from __future__ import annotations

import json

from benchmarks.search import asynchronous, overhead
from benchmarks.search.figures import DOCS
from benchmarks.search.tables import beds, section

PAGE = DOCS / "search-benchmark.md"
BEGIN, END = "<!-- generated: python -m benchmarks.search.page -->", "<!-- end -->"


def main() -> None:
    text = "\n".join([*map(section, beds()), *_workers(), *_overhead()])
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", "utf-8")


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
