"""Writes docs/golden.md: ``python -m tests.methods.record`` from the project's root.

The page says how near each method comes to its formula (see ``golden``); ``test_docs.py`` fails
when a method is missing from it, or comes less near than the page says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.methods import all_methods, get_method
from tests.methods.golden import SHAPES, all_golden, counts, error

PAGE = Path(__file__).parents[2] / "docs" / "golden.md"

_HEAD = """\
# Golden values

Written by `python -m tests.methods.record`. Every merge method is run beside its formula, written
out again in float64 NumPy from the publication (`tests/methods/formulas`), on a wide (6 × 40) and a
tall (40 × 6) matrix, with 2 and with 5 experts (or as many as it takes), and on LoRA experts of
rank 1 where it has a shortcut for them. The error is the largest difference of an entry over the
largest change of an entry by the merge: a method's result is float32, whose roundings are about
1e-7 of the *weight*, and the changes here are about a fifth of the weights.

| method | family | formulas | LoRA shortcut | largest relative error | tolerance of the test |
|---|---|---:|---|---:|---:|
"""


@dataclass(frozen=True)
class Measured:
    """One row of the page."""

    formulas: int
    low_rank: bool
    error: float
    tolerance: float


def measure() -> dict[str, Measured]:
    """Every method's largest error over all its formulas, shapes and numbers of experts."""
    found: dict[str, Measured] = {}
    for case in all_golden():
        errors = [
            error(case, shape, count, low_rank)
            for shape in SHAPES
            for count in counts(get_method(case.method))
            for low_rank in ([False, True] if case.low_rank else [False])
        ]
        before = found.get(case.method, Measured(0, False, 0.0, 0.0))
        found[case.method] = Measured(
            before.formulas + 1,
            before.low_rank or case.low_rank,
            max(before.error, *errors),
            max(before.tolerance, case.tolerance),
        )
    return found


def page(measured: Mapping[str, Measured]) -> str:
    """The page's text."""
    rows = [
        f"| `{m.name}` | {m.family} | {measured[m.name].formulas} | "
        f"{'yes' if measured[m.name].low_rank else ''} | {measured[m.name].error:.1e} | "
        f"{measured[m.name].tolerance:g} |"
        for m in all_methods()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def recorded() -> dict[str, float]:
    """The errors that the page gives, by method."""
    rows = re.findall(
        r"^\| `(\w+)` \|(?:[^|]*\|){3} ([-+.e0-9]+) \|", PAGE.read_text("utf-8"), re.MULTILINE
    )
    return {name: float(value) for name, value in rows}


if __name__ == "__main__":
    PAGE.write_text(page(measure()), "utf-8")
