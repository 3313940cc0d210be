"""``evomerge status``: how far a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import typer


def status(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a run is; reads only its ledger, also while it is running.

    Example: evomerge status runs/quickstart
    """
    import time

    from rich.console import Console

    from evomerge.ledger.fold import Status
    from evomerge.report.live import Watch, live_view

    seen = Watch(run)
    seen.update()
    view = seen.view()
    if not as_json:
        console = Console()
        console.print(live_view(seen, console.width, time.time()))
        return
    state = view.state
    failures = [{"candidate": c.label, "reason": c.reason} for c in view.failed()]
    typer.echo(
        json.dumps(
            {
                "name": view.name,
                "phase": seen.phase(),
                "finished": state.finished,
                "candidates": {status: state.ended(status) for status in get_args(Status)},
                "budget": {name: [used, limit] for name, used, limit in seen.spent()},
                "hypervolume": view.hypervolume(),
                "front": [c.id for c in view.front()],
                "seconds": state.seconds,
                "left": seen.left(),
                "failures": failures,
            }
        )
    )
