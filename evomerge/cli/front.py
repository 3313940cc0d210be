"""``evomerge front``: the Pareto front of a run beside its reference points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evomerge.ledger.fold import Candidate
    from evomerge.report.view import View


def front(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the Pareto front beside the base, every expert and the static merges.

    The front is chosen on the search split; once the run has finished, the values shown are those
    of the held-out split, which the search has never seen.

    Example: evomerge front runs/quickstart
    """
    from rich.console import Console

    from evomerge.report.terminal import front_view
    from evomerge.report.view import open_view

    view = open_view(run)
    if as_json:
        typer.echo(json.dumps(_as_json(view)))
        return
    console = Console()
    console.print(front_view(view, console.width))


def _as_json(view: View) -> dict[str, Any]:
    on_front = view.front()
    return {
        "name": view.name,
        "optimise": view.optimise.model_dump(),
        "hypervolume": view.hypervolume(),
        "knee": view.knee().id if on_front else None,
        "front": [_point(view, c) for c in on_front],
        "references": [_point(view, c) for c in view.state.references()],
    }


def _point(view: View, candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "name": candidate.name,
        "search": _values(view, candidate, "search"),
        "held_out": _values(view, candidate, "held_out"),
    }


def _values(view: View, candidate: Candidate, split: Any) -> dict[str, Any] | None:
    found = {name: view.value(candidate, name, split) for name in view.columns}
    values = {n: {"value": v.value, "se": v.se, "n": v.n} for n, v in found.items() if v}
    return values or None
