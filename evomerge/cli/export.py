"""``evomerge export``: write a point of a run as a Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    pick: Annotated[
        str,
        typer.Option(help="knee, best:OBJECTIVE, a candidate's number, or a reference's name."),
    ] = "knee",
    out: Annotated[
        Path | None, typer.Option(help="New directory of the model [default: RUN/export].")
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Load the export back and score it again.")
    ] = False,
) -> None:
    """Write a point of the front as an ordinary checkpoint, verified against what was scored.

    Example: evomerge export runs/quickstart --pick knee --out my-merged-model
    """
    from evomerge.errors import OutputError
    from evomerge.report.view import open_view

    view = open_view(run)
    candidate = view.pick(pick)
    if candidate.scores is None:
        raise OutputError(f"{candidate.label} is {candidate.status}: only a scored one is exported")
    digest = candidate.scores.digest

    from evomerge.cli.progress import bytes_written, warn_about_code
    from evomerge.export import export as write
    from evomerge.instantiate import open_merge
    from evomerge.report.card import candidate_card

    target = out or run / "export"
    merge = open_merge(view.recipe(candidate), streaming=True)
    warn_about_code(merge.sources.base)
    with bytes_written("writing") as progress:
        write(merge, target, candidate_card(view, candidate, digest), digest, progress)
    typer.echo(f"{candidate.label} written to {target}; its weights are those scored: {digest}")
    if rescore:
        from evomerge.engine.rescore import rescore as score_again

        again = score_again(view.study, target, candidate.scores)
        items = sum(len(scores) for scores in again.items.values())
        typer.echo(f"loaded back: all {items} items of the search split are answered as scored")
