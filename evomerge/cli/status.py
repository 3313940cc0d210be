"""``evomerge status``: how far a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a run is; reads only its ledger, also while it is running.

    Example: evomerge status runs/quickstart
    """
    from rich.console import Console

    from evomerge.report.terminal import status_view
    from evomerge.report.view import open_view

    view = open_view(run)
    state = view.state
    failures = [{"candidate": c.label, "reason": c.reason} for c in view.failed()]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "name": view.name,
                    "finished": state.finished,
                    "candidates": {
                        status: sum(c.status == status for c in state.searched())
                        for status in ("pending", "scored", "failed")
                    },
                    "hypervolume": view.hypervolume(),
                    "front": [c.id for c in view.front()],
                    "seconds": state.seconds,
                    "failures": failures,
                }
            )
        )
        return
    console = Console()
    console.print(status_view(view, running=len(state.pending())))
    console.print(state.finished or "not finished: run the same `evomerge run` command to go on")
    for failure in failures[-5:]:
        console.print(f"failed: {failure['candidate']}: {failure['reason']}", highlight=False)
