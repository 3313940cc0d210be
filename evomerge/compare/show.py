"""The comparison for people: one table, in a terminal and as Markdown, and numbers as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from evomerge.compare.run import Row
from evomerge.engine.study import Study
from evomerge.ledger.fold import Scores
from evomerge.ledger.results import value_of
from evomerge.scoring.statistics import Value

BASELINE = "task arithmetic 0.3"


def ranked(rows: Sequence[Row], study: Study, criterion: str) -> list[Row]:
    """Best held-out value of the criterion first; rows without one last."""
    sign = -1.0 if study.directions.get(criterion) == "minimise" else 1.0

    def rank(row: Row) -> float:
        value = _value(row, criterion, study.directions)
        return math.inf if value is None else -sign * value.value

    return sorted(rows, key=rank)


def gain(row: Row, baseline: Row, study: Study) -> Value | None:
    """By how much the mean over maximised objectives exceeds the baseline's, held out.

    Both answered the same items, so the standard error is that of the per-item differences: for
    objective j with n_j items and variance s_j², sqrt(Σ s_j² / n_j) over the number of objectives.
    """
    if row.held_out is None or baseline.held_out is None:
        return None
    names = [n for n, direction in study.directions.items() if direction == "maximise"]
    names = [n for n in names if n in row.held_out.items and n in baseline.held_out.items]
    means, errors, count = [], [], 0
    for name in names:
        pairs = zip(row.held_out.items[name], baseline.held_out.items[name], strict=True)
        differences = [a - b for a, b in pairs]
        n = len(differences)
        mean = math.fsum(differences) / n
        means.append(mean)
        count += n
        if n > 1:
            errors.append(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    if not means:
        return None
    se = math.sqrt(math.fsum(errors)) / len(means) if len(errors) == len(means) else None
    return Value(math.fsum(means) / len(means), se, count)


def columns(study: Study, criterion: str) -> tuple[str, ...]:
    """The criterion, then the objectives."""
    return tuple(dict.fromkeys((criterion, *(o.name for o in study.objectives))))


def table(rows: Sequence[Row], study: Study, criterion: str, width: int) -> Table:
    """For a terminal; the narrower it is, the fewer columns and standard errors it shows."""
    names = columns(study, criterion)
    room = width - 34 - 8 * len(names)  # beside the names and the bare values
    errors = names if room >= 40 + 8 * len(names) else (criterion,)
    shown = Table(
        title=f"{study.experiment.name}: held-out split (± standard error)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    extras = {"chosen": room >= 14, f"vs {BASELINE}": room >= 28, "merge s": room >= 40}
    shown.add_column("merge", no_wrap=True)
    if extras["chosen"]:
        shown.add_column("chosen", no_wrap=True)
    for name in names:
        shown.add_column(name.removeprefix("zoo/"), justify="right", no_wrap=True)
    for header in list(extras)[1:]:
        if extras[header]:
            shown.add_column(header, justify="right")
    baseline = _baseline(rows)
    for row in ranked(rows, study, criterion):
        style = {"reference": "cyan", "given": "magenta"}.get(row.entry.kind)
        *values, difference, seconds = _cells(row, study, names, errors, baseline)
        wanted = zip((_chosen(row), difference, seconds), extras.values(), strict=True)
        first, *rest = [cell if there else None for cell, there in wanted]
        cells = [row.entry.name, first, *values, *rest]
        shown.add_row(*[cell for cell in cells if cell is not None], style=style)
    return shown


def markdown(rows: Sequence[Row], study: Study, criterion: str) -> str:
    """The table as Markdown, every value with its standard error; references in italics."""
    names = columns(study, criterion)
    heads = ["merge", "chosen", *(n.removeprefix("zoo/") for n in names), f"vs {BASELINE}", "s"]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(names) + 2)}"]
    baseline = _baseline(rows)
    for row in ranked(rows, study, criterion):
        name = f"`{row.entry.name}`" if row.entry.kind == "method" else f"*{row.entry.name}*"
        cells = _cells(row, study, names, names, baseline)
        lines.append(f"| {' | '.join([name, _chosen(row), *cells])} |")
    return "\n".join(lines) + "\n"


def as_data(rows: Sequence[Row], study: Study, criterion: str) -> dict[str, Any]:
    """Everything that the table and the chart show, and the recipes of the chosen tries."""
    names = columns(study, criterion)
    baseline = _baseline(rows)

    def plain(value: Value | None) -> list[Any] | None:
        return None if value is None else [value.value, value.se, value.n]

    def row_data(row: Row) -> dict[str, Any]:
        return {
            "name": row.entry.name,
            "kind": row.entry.kind,
            "chosen": row.chosen.label if row.chosen else None,
            "tries": len(row.entry.tries),
            "search": _all(row.search, names, study.directions, plain),
            "held_out": _all(row.held_out, names, study.directions, plain),
            "gain": plain(gain(row, baseline, study)) if baseline else None,
            "merge_seconds": row.seconds,
            "reason": row.reason,
            "recipe": row.chosen.recipe.model_dump(mode="json") if row.chosen else None,
        }

    return {
        "experiment": study.experiment.name,
        "criterion": criterion,
        "columns": list(names),
        "rows": [row_data(row) for row in ranked(rows, study, criterion)],
    }


def _all(
    scores: Scores | None, names: Sequence[str], directions: Mapping[str, str], plain: Any
) -> Any:
    return {n: plain(value_of(scores, n, directions)) for n in names} if scores else None


def _baseline(rows: Sequence[Row]) -> Row | None:
    return next((r for r in rows if r.entry.name == BASELINE), None)


def _value(row: Row, name: str, directions: Mapping[str, str]) -> Value | None:
    return value_of(row.held_out, name, directions) if row.held_out else None


def _chosen(row: Row) -> str:
    return row.chosen.label if row.chosen else "failed"


def _cells(
    row: Row, study: Study, names: Sequence[str], errors: Sequence[str], baseline: Row | None
) -> list[str]:
    if row.held_out is None:
        return [(row.reason or "")[:60], *([""] * (len(names) + 1))]
    cells = [_show(_value(row, n, study.directions), n in errors) for n in names]
    difference = gain(row, baseline, study) if baseline and baseline is not row else None
    seconds = f"{row.seconds:.2g}" if row.seconds is not None else ""
    return [*cells, _show(difference, True, sign="+"), seconds]


def _show(value: Value | None, error: bool, sign: str = "") -> str:
    if value is None:
        return ""
    text = format(value.value, f"{sign}.3f")
    return f"{text} ± {value.se:.3f}" if error and value.se is not None else text
