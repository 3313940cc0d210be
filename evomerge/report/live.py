"""The live view of a study: what a ledger says while it grows, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.errors import OutputError
from evomerge.ledger.events import Event
from evomerge.ledger.fold import Candidate, State
from evomerge.ledger.store import read_events, read_settings
from evomerge.report.history import Volume
from evomerge.report.terminal import best_table, format_seconds, scatter, show
from evomerge.report.view import View, view_of

RECENT = 20  # evaluations that the pace is taken from
_BLOCKS = " ▁▂▃▄▅▆▇█"
_WIDE = 140  # columns from which charts stand side by side


@dataclass
class Watch:
    """Follows a run's ledger; ``update`` reads only what is new."""

    run: Path
    state: State = field(default_factory=State)
    volumes: list[float] = field(default_factory=list)  # after every scored candidate
    asked: dict[int, float] = field(default_factory=dict)  # when each candidate was asked for
    done: list[tuple[float, float]] = field(default_factory=list)  # when how much was evaluated
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the last session: budget, pool
    _volume: Volume | None = None
    _read: int = 0
    _session: int = 0

    def update(self) -> bool:
        """Reads what is new; whether there was anything.

        Raises:
            OutputError: the directory holds no ledger.
        """
        events = read_events(self.run, self._read)
        self._read += len(events)
        for event in events:
            self._apply(event)
        if events:
            self.settings = read_settings(self.run)
        return bool(events)

    def _apply(self, event: Event) -> None:
        self.state.apply(event)
        if event.session != self._session:
            self._session, self.done = event.session, []
        if event.candidate is None:
            return
        candidate = self.state.candidates[event.candidate]
        if event.kind == "asked":
            self.asked[candidate.id] = event.time
        if event.kind in ("seen", "scored") and not candidate.is_reference:
            self.done.append((event.time, self.state.evaluations - self.state.failed))
        if event.kind == "scored" and not candidate.is_reference:
            assert candidate.scores is not None
            if self._volume is None:
                view = view_of(self.state)
                self._volume = Volume(view.optimise, view.directions)
            self.volumes.append(self._volume.with_(candidate.scores))

    def view(self) -> View:
        """The study so far; OutputError if nothing has been written yet."""
        return view_of(self.state, self.run)

    @property
    def pace(self) -> float | None:
        """Full evaluations a second, lately; None before the second one of this session."""
        (first, before), *_, (last, now) = self.done[-RECENT:] if self.done[1:] else [(0, 0)] * 2
        return (now - before) / (last - first) if last > first else None

    def phase(self) -> str:
        """What the study is doing."""
        state = self.state
        if state.finished:
            return state.finished
        references = state.references()
        waiting = sum(c.status == "pending" for c in references)
        if waiting:
            return f"reference points: {len(references) - waiting} of {len(references)}"
        rescored = sum(c.held_out is not None for c in state.candidates.values())
        return f"held-out split: {rescored} scored" if rescored else "searching"

    def spent(self) -> list[tuple[str, float, float]]:
        """(what, used, limit) of every limit of the budget."""
        used = {
            "candidates": self.state.evaluations,
            "items": self.state.items,
            "tokens": self.state.tokens,
            "hours": self.state.seconds / 3600,
        }
        budget = self.settings.get("budget", {})
        return [(name, used[name], budget[name]) for name in used if budget.get(name)]

    def left(self) -> float | None:
        """Seconds until the budget is spent at the present pace; None if it cannot be told."""
        pace, done = self.pace, self.state.evaluations - self.state.failed
        if not pace or not done or self.state.finished:
            return None
        rates = {
            "candidates": pace,
            "items": pace * self.state.items / done,
            "tokens": pace * self.state.tokens / done,
            "hours": 1 / 3600,
        }
        spans = [max(0.0, limit - used) / rates[name] for name, used, limit in self.spent()]
        return min(spans, default=None)


def live_view(watch: Watch, width: int, now: float) -> RenderableType:
    """Everything at a glance, for a terminal of ``width`` columns at the time ``now`` (epoch)."""
    try:
        view = watch.view()
    except OutputError:
        return Text("nothing in the ledger yet")
    parts: list[RenderableType] = [_head(watch, view, width), best_table(view)]
    side = _beside(watch, view, width, now)
    names = view.optimise.names
    if len(names) >= 2 and view.state.scored():
        if width >= _WIDE:
            plot = scatter(view, names[0], names[1], width // 2 - 14, 16)
            grid = Table.grid(padding=(0, 2))
            grid.add_row(plot, side)
            parts.append(grid)
        else:
            parts += [scatter(view, names[0], names[1], width - 12, 10), side]
    else:
        parts.append(side)
    return Group(*parts)


def _head(watch: Watch, view: View, width: int) -> Text:
    state = watch.state
    algorithm = view.study["experiment"]["search"]["algorithm"]
    text = Text(f"{view.name} ", style="bold")
    text.append(f"{algorithm}, {len(view.study['genes'])} genes", style="dim")
    text.append(f"  {watch.phase()}\n", style="green" if state.finished else "yellow")
    for name, used, limit in watch.spent():
        size = min(30, width // 3)
        full = min(size, int(size * used / limit))
        text.append("━" * full, style="green")
        text.append("━" * (size - full), style="dim")
        number = f"{used:.2f} of {limit:g}" if name == "hours" else f"{used:,.0f} of {limit:,.0f}"
        text.append(f" {number} {name}\n")
    if not watch.spent():
        text.append(f"{len(watch.volumes)} candidates scored\n")
    facts = [f"{format_seconds(state.seconds)} gone"]
    if watch.pace and not state.finished:
        facts.append(f"{60 * watch.pace:.3g} candidates a minute")
    left = watch.left()
    if left is not None:
        facts.append(f"about {format_seconds(left)} left")
    for status in ("dropped", "probed"):
        if count := state.ended(status):
            facts.append(f"{count} {status}")
    facts.append(f"hypervolume {watch.volumes[-1] if watch.volumes else 0:.4f}")
    text.append(", ".join(facts))
    return text


def _beside(watch: Watch, view: View, width: int, now: float) -> RenderableType:
    room = width // 2 - 6 if width >= _WIDE else width - 2
    parts: list[RenderableType] = []
    if watch.volumes and watch.volumes[-1] > watch.volumes[0]:
        parts.append(curve(watch.volumes, min(room - 10, 64), 5))
    parts.append(_under_way(watch, now, room))
    failed = view.failed()
    if failed:
        text = Text(f"{len(failed)} failed\n", style="red")
        for candidate in failed[-3:]:
            text.append(_cut(f"  {candidate.label}: {candidate.reason}\n", room))
        parts.append(text)
    return Group(*parts)


def _under_way(watch: Watch, now: float, room: int) -> Text:
    state = watch.state
    text = Text()
    pool = watch.settings.get("pool", {})
    if pool:
        text.append(f"{pool.get('workers', 1)} × {pool.get('name', '?')}: ", style="dim")
    if state.finished:
        text.append("all done\n", style="dim")
        return text
    waiting = state.pending()
    references = [c.label for c in waiting if c.is_reference]
    asked = [c for c in waiting if c.id in watch.asked]
    if references:
        text.append(_cut(f"next {', '.join(references[:4])}", room - 10))
    elif asked:
        listed = [_with_age(c, watch, now) for c in islice(asked, 8)]
        more = f", {len(asked) - 8} more" if len(asked) > 8 else ""
        text.append(f"under way {', '.join(listed)}{more}")
    else:
        text.append("nothing under way", style="dim")
    text.append("\n")
    return text


def _with_age(candidate: Candidate, watch: Watch, now: float) -> str:
    tries = f", try {candidate.attempts + 1}" if candidate.attempts else ""
    return f"{candidate.label} ({format_seconds(max(0.0, now - watch.asked[candidate.id]))}{tries})"


def curve(values: Sequence[float], width: int, height: int) -> Text:
    """A rising line of at most ``width`` columns and ``height`` rows, with its range."""
    step = max(1.0, len(values) / width)
    shown = [values[min(len(values) - 1, int((i + 1) * step) - 1)] for i in range(width)]
    shown = shown[: len(values)] if len(values) < width else shown
    low, high = min(shown), max(shown)
    eighths = [round((v - low) / ((high - low) or 1) * (8 * height - 1)) + 1 for v in shown]
    text = Text("hypervolume\n", style="dim")
    for row in reversed(range(height)):
        tick = {height - 1: f"{high:.4f}", 0: f"{low:.4f}"}.get(row, "")
        text.append(f"{tick:>8} ", style="dim")
        text.append(
            "".join(_BLOCKS[min(8, max(0, e - 8 * row))] for e in eighths) + "\n", style="green"
        )
    return text


def plain_line(watch: Watch, candidate: Candidate) -> str:
    """What became of a candidate, as one line without colours."""
    view = watch.view()
    split = "held_out" if candidate.held_out else "search"
    values = [f"{n} {show(view.value(candidate, n, split))}" for n in view.optimise.names]  # type: ignore[arg-type]
    left = watch.left()
    tail = "" if left is None else f", about {format_seconds(left)} left"
    what = ", ".join(values) if candidate.scores else candidate.reason
    return f"{candidate.label} {split.replace('_', '-')}: {what}{tail}"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room - 2)] + "…\n" * text.endswith("\n")
