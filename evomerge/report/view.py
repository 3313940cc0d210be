"""A study as its ledger tells it: the fold of the events with what is needed to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.config import Optimise
from evomerge.engine.study import space_of
from evomerge.errors import ConfigError, OutputError
from evomerge.ledger.fold import Candidate, State, fold
from evomerge.ledger.results import (
    Split,
    best,
    front,
    front_hypervolume,
    front_knee,
    scores_on,
    value_of,
)
from evomerge.ledger.store import read_events
from evomerge.recipe import Recipe
from evomerge.scoring.statistics import Value
from evomerge.space import Space


@dataclass(frozen=True)
class View:
    """A run opened for looking; it writes nothing."""

    state: State
    study: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.study["name"])

    @property
    def optimise(self) -> Optimise:
        return Optimise(**self.study["experiment"]["optimise"])

    @property
    def directions(self) -> dict[str, str]:
        return {n: o["direction"] for n, o in self.study["objectives"].items()}

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.study["objectives"])

    @property
    def columns(self) -> tuple[str, ...]:
        """What to show of a candidate: what the front is over, then the other objectives."""
        return tuple(dict.fromkeys((*self.optimise.names, *self.objectives)))

    @property
    def space(self) -> Space:
        return space_of(self.study)

    def recipe(self, candidate: Candidate) -> Recipe:
        """The recipe of a candidate."""
        if candidate.recipe is not None:
            return candidate.recipe
        assert candidate.genome is not None
        return self.space.recipe(candidate.genome)

    def value(self, candidate: Candidate, name: str, split: Split = "search") -> Value | None:
        """An objective's or aggregate's value with its standard error."""
        scores = scores_on(candidate, split)
        return None if scores is None else value_of(scores, name, self.directions)

    def front(self) -> list[Candidate]:
        """The front of what the search proposed; reference points stand beside it, not in it."""
        return front(self.state.searched(), self.optimise, self.directions)

    def failed(self) -> list[Candidate]:
        """The candidates that could not be scored, reference points included."""
        return [c for c in self.state.candidates.values() if c.status == "failed"]

    def hypervolume(self) -> float:
        return front_hypervolume(self.state.searched(), self.optimise, self.directions)

    def knee(self) -> Candidate:
        """The knee of the front."""
        if not self.front():
            raise OutputError("no candidate is scored yet; run the search first")
        return front_knee(self.state.searched(), self.optimise, self.directions)

    def best(self, name: str) -> Candidate | None:
        """The proposed candidate with the best search-split value of an objective or aggregate."""
        if name not in (*self.columns, "mean", "min"):
            raise ConfigError(f"no objective {name!r}; known: {', '.join(self.columns)}")
        return best(self.state.searched(), name, self.directions)

    def pick(self, choice: str) -> Candidate:
        """``knee``, ``best:OBJECTIVE``, a candidate's number, or a reference point's name."""
        if choice == "knee":
            return self.knee()
        if choice.startswith("best:"):
            found = self.best(choice.removeprefix("best:"))
            if found is None:
                raise OutputError("no candidate is scored yet; run the search first")
            return found
        for candidate in self.state.candidates.values():
            if choice in (str(candidate.id), f"#{candidate.id}", candidate.name):
                return candidate
        raise ConfigError(
            f"nothing to pick is called {choice!r}; give knee, best:OBJECTIVE, a candidate's "
            f"number, or one of: {', '.join(c.label for c in self.state.references())}"
        )


def open_view(run: Path) -> View:
    """Opens a run directory for reading; OutputError if there is none."""
    return view_of(fold(read_events(run)), run)


def view_of(state: State, run: Path | None = None) -> View:
    """The view of a state; OutputError if nothing has been written yet."""
    if state.study is None:
        raise OutputError(f"the run in {run} has not begun; start it with `evomerge run`")
    return View(state, state.study)
