"""``evomerge watch``: a study while it runs, from any terminal; and the same view for ``run``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from evomerge.engine.loop import Observer
    from evomerge.ledger.fold import State
    from evomerge.report.live import Watch

_SECONDS = 1.0  # between two looks at the ledger


def watch(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
) -> None:
    """Follow a run from another terminal: front, hypervolume, pace, failures, time left.

    Reads only the ledger, so it never disturbs the run; it ends when the run has finished, or with
    Ctrl-C. Without a terminal it prints a line for every candidate.

    Example: evomerge watch runs/quickstart
    """
    from rich.console import Console

    from evomerge.report.live import Watch

    console = Console()
    seen = Watch(run)
    seen.update()
    if seen.state.finished and console.is_terminal:
        console.print(_picture(seen, console))
        return
    try:
        _follow(seen, console)
    except KeyboardInterrupt:
        console.print("the run itself goes on")


@contextmanager
def following(run: Path, console: Console) -> Iterator[Observer]:
    """Shows a run of this process while the block lasts; gives what the loop has to call.

    In a terminal a view that is redrawn in place, else a line for every candidate that is new.
    """
    from rich.live import Live

    from evomerge.report.live import Watch

    seen = Watch(run)
    seen.update()
    if not console.is_terminal:
        lines = _Lines(seen, console)

        def tell(state: State, running: int) -> None:
            lines.update()

        yield tell
        return

    def look() -> RenderableType:
        seen.update()
        return _picture(seen, console)

    with Live(
        get_renderable=look,
        console=console,
        refresh_per_second=1 / _SECONDS,
        transient=True,
        vertical_overflow="crop",
    ):
        yield lambda state, running: None


def _follow(seen: Watch, console: Console) -> None:
    """Until the run has finished: redraws the view, or prints lines without a terminal."""
    from rich.live import Live

    if not console.is_terminal:
        lines = _Lines(seen, console, new_only=False)
        while not lines.update():
            time.sleep(_SECONDS)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            seen.update()
            live.update(_picture(seen, console), refresh=True)
            if seen.state.finished:
                return
            time.sleep(_SECONDS)


def _picture(seen: Watch, console: Console) -> RenderableType:
    from evomerge.report.live import live_view

    return live_view(seen, console.width, time.time())


class _Lines:
    """One plain line for every candidate whose scoring has ended; probes are not scored."""

    def __init__(self, seen: Watch, console: Console, new_only: bool = True) -> None:
        self._seen, self._console = seen, console
        ended = list(self._ended()) if new_only else []
        self._told = set(ended)

    def update(self) -> bool:
        """Prints what is new; whether the run has finished."""
        from evomerge.report.live import plain_line

        self._seen.update()
        for id, status, held_out in self._ended():
            if (id, status, held_out) not in self._told:
                self._told.add((id, status, held_out))
                line = plain_line(self._seen, self._seen.state.candidates[id])
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        return self._seen.state.finished is not None

    def _ended(self) -> Iterator[tuple[int, str, bool]]:
        for candidate in self._seen.state.candidates.values():
            if candidate.status not in ("pending", "probed"):
                yield candidate.id, candidate.status, candidate.held_out is not None
