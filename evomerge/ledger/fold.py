"""The state of a study as a fold over its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.ledger.events import Event
from evomerge.recipe import Recipe
from evomerge.scoring.statistics import Value


@dataclass(frozen=True)
class Scores:
    """What one evaluation on one split gave."""

    digest: str
    values: Mapping[str, Value]  # by objective
    items: Mapping[str, tuple[float, ...]]  # per-item scores by objective
    tokens: int
    timing: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of items, if not all 1

    def body(self) -> dict[str, Any]:
        """As an event's body; ``from_body`` gives the equal object back."""
        return {
            "digest": self.digest,
            "values": {n: [v.value, v.se, v.n] for n, v in self.values.items()},
            "items": {n: list(s) for n, s in self.items.items()},
            "tokens": self.tokens,
            "weights": {n: list(w) for n, w in self.weights.items()},
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any], timing: Mapping[str, float]) -> Scores:
        return cls(
            digest=body["digest"],
            values={n: Value(*v) for n, v in body["values"].items()},
            items={n: tuple(s) for n, s in body["items"].items()},
            tokens=body["tokens"],
            timing=timing,
            weights={n: tuple(w) for n, w in body["weights"].items()},
        )


@dataclass
class Candidate:
    """One merged model of a study: a reference point (it has a name) or one the search proposed."""

    id: int
    name: str | None = None
    genome: tuple[float, ...] | None = None
    recipe: Recipe | None = None  # of a reference point; a proposed one's follows from its genome
    status: Literal["pending", "scored", "failed"] = "pending"
    scores: Scores | None = None
    held_out: Scores | None = None
    reason: str | None = None
    attempts: int = 0  # workers that died with it

    @property
    def is_reference(self) -> bool:
        return self.name is not None

    @property
    def label(self) -> str:
        return self.name or f"#{self.id}"


@dataclass
class State:
    """Everything the events say so far.

    ``asked`` counts what the search proposed, ``items`` and ``tokens`` what scoring that on the
    search split took: sums that the loop needs at every step, whatever their number.
    """

    study: Mapping[str, Any] | None = None
    candidates: dict[int, Candidate] = field(default_factory=dict)
    finished: str | None = None
    seconds: float = 0.0  # of driver time, over all sessions
    asked: int = 0
    items: int = 0
    tokens: int = 0
    _session: tuple[int, float] = (0, 0.0)

    def references(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.is_reference]

    def searched(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if not c.is_reference]

    def scored(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.status == "scored"]

    def pending(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.status == "pending"]

    def apply(self, event: Event) -> None:
        """Takes one more event into account."""
        self._count_time(event)
        if event.kind == "study":
            self.study = event.body
        elif event.kind == "finished":
            self.finished = event.body["reason"]
        elif event.candidate is not None:
            self._apply_to_candidate(event, event.candidate)

    def _apply_to_candidate(self, event: Event, id: int) -> None:
        body = event.body
        if event.kind in ("reference", "asked"):
            genome = body["genome"]
            self.candidates[id] = Candidate(
                id,
                name=body.get("name"),
                genome=None if genome is None else tuple(genome),
                recipe=Recipe(**body["recipe"]) if "recipe" in body else None,
            )
            self.asked += not self.candidates[id].is_reference
            self.finished = None
            return
        candidate = self.candidates[id]
        if event.kind == "scored":
            candidate.status = "scored"
            candidate.scores = Scores.from_body(body, event.timing)
            if not candidate.is_reference:
                self.items += sum(len(scores) for scores in candidate.scores.items.values())
                self.tokens += candidate.scores.tokens
        elif event.kind == "failed":
            candidate.status, candidate.reason = "failed", body["reason"]
        elif event.kind == "held_out":
            candidate.held_out = Scores.from_body(body, event.timing)
        elif event.kind == "lost":
            candidate.attempts += 1

    def _count_time(self, event: Event) -> None:
        session, last = self._session
        if event.session == session:
            self.seconds += max(0.0, event.time - last)
        self._session = (event.session, event.time)


def fold(events: Iterable[Event]) -> State:
    """The state after all of ``events``."""
    state = State()
    for event in events:
        state.apply(event)
    return state
