"""``evomerge ls``: the runs in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evomerge.report.view import View


def ls(
    folder: Annotated[Path, typer.Argument(help="Where to look, also below.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs in a folder: how far each is, and the best it has found.

    Example: evomerge ls runs
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [_row(path.parent) for path in sorted(folder.glob("**/ledger.db"))]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo(f"no runs in {folder}; start one with: evomerge run quickstart")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("run", overflow="fold")
    table.add_column("search", no_wrap=True)
    table.add_column("scored", justify="right", no_wrap=True)
    table.add_column("front", justify="right", no_wrap=True)
    table.add_column("best")
    table.add_column("state")
    for row in rows:
        best = ", ".join(f"{n.removeprefix('zoo/')} {v:.3f}" for n, v in row["best"].items())
        name = Path(row["run"]).relative_to(folder)
        counts = (str(row["scored"]), str(row["front"]))
        table.add_row(Text(str(name)), row["search"], *counts, Text(best), Text(row["state"]))
    Console().print(table)


def _row(run: Path) -> dict[str, Any]:
    from evomerge.errors import EvomergeError
    from evomerge.report.view import open_view

    empty = {"run": str(run), "search": "", "scored": 0, "front": 0, "best": {}}
    try:
        view = open_view(run)
    except EvomergeError as error:
        return {**empty, "state": str(error)}
    return {
        **empty,
        "search": view.study["experiment"]["search"]["algorithm"],
        "scored": view.state.ended("scored"),
        "front": len(view.front()),
        "best": _best(view),
        "state": view.state.finished or "not finished",
    }


def _best(view: View) -> dict[str, float]:
    found = {}
    for name in view.optimise.names:
        candidate = view.best(name)
        value = None if candidate is None else view.value(candidate, name)
        if value is not None:
            found[name] = value.value
    return found
