"""What both commands that write a model show: a progress bar, and a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evomerge.checkpoints.open import Checkpoint


@contextmanager
def bytes_written(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, fed with bytes so far and in all; nothing without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def warn_about_code(base: Checkpoint) -> None:
    """Says so if the base needs Python files of its own, which are never copied."""
    import typer

    from evomerge.checkpoints.companions import needs_code

    if needs_code(base):
        typer.echo(
            f"note: {base.reference} has code of its own (auto_map), which is not copied: put its "
            f".py files beside the merged model yourself if you trust them",
            err=True,
        )
