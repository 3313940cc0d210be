"""The state of a study as a fold over its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.ledger.events import Event
from evomerge.ledger.seen import Seen, part_from
from evomerge.recipe import Recipe
from evomerge.scoring.blocks import Part
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


Status = Literal["pending", "scored", "dropped", "probed", "failed"]


@dataclass
class Candidate:
    """One merged model of a study: a reference point (it has a name) or one the search proposed.

    A proposed one ends as scored, or failed; as dropped, if it lost a race; as probed, if it was
    only to be looked at. ``seen`` holds the parts that came before that, in their order.
    """

    id: int
    name: str | None = None
    genome: tuple[float, ...] | None = None
    recipe: Recipe | None = None  # of a reference point; a proposed one's follows from its genome
    look: Part | None = None  # of a probe: all that is asked of it
    status: Status = "pending"
    seen: list[Seen] = field(default_factory=list)
    scores: Scores | None = None
    held_out: Scores | None = None
    reason: str | None = None
    attempts: int = 0  # workers that died with it

    @property
    def rungs(self) -> list[Seen]:
        """The parts of its score that are known."""
        return [] if self.look is not None else [s for s in self.seen if not s.part.signal]

    @property
    def cost(self) -> int:
        """Items scored so far, each as often as it was; with slopes it counts more."""
        if self.scores is None:
            return sum(seen.cost for seen in self.seen)
        whole = sum(len(scores) for scores in self.scores.items.values())
        return whole + sum(seen.cost for seen in self.seen if seen.part.signal)

    @property
    def tokens(self) -> int:
        """Tokens generated so far."""
        if self.scores is None:
            return sum(seen.tokens for seen in self.seen)
        return self.scores.tokens + sum(seen.tokens for seen in self.seen if seen.part.signal)

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
    search split took, ``failed`` those of it that failed and ``wasted`` the items of these: sums
    that the loop needs at every step, whatever their number. ``whole`` is the number of items of
    one candidate; 0 until the first is scored.
    """

    study: Mapping[str, Any] | None = None
    candidates: dict[int, Candidate] = field(default_factory=dict)
    finished: str | None = None
    seconds: float = 0.0  # of driver time, over all sessions
    asked: int = 0
    items: int = 0
    tokens: int = 0
    failed: int = 0
    wasted: int = 0
    whole: int = 0
    _session: tuple[int, float] = (0, 0.0)

    def references(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.is_reference]

    def searched(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if not c.is_reference]

    def ended(self, status: Status) -> int:
        """How many of what the search proposed ended like this."""
        return sum(c.status == status for c in self.candidates.values() if not c.is_reference)

    def scored(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.status == "scored"]

    def pending(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.status == "pending"]

    @property
    def spent(self) -> int:
        """Items that the search took, where a candidate that failed took all of its."""
        return self.items - self.wasted + self.failed * self.whole

    @property
    def evaluations(self) -> float:
        """The same in full evaluations."""
        return self.spent / self.whole if self.whole else float(self.failed)

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
                look=part_from(body["look"]) if "look" in body else None,
            )
            self.asked += not self.candidates[id].is_reference
            self.finished = None
            return
        candidate = self.candidates[id]
        if event.kind in ("seen", "scored"):
            self._apply_evaluation(event, candidate)
        elif event.kind == "dropped":
            candidate.status, candidate.reason = "dropped", body["reason"]
        elif event.kind == "failed":
            candidate.reason = body["reason"]
            if candidate.scores is None:  # else it is the signal of a reference that has none
                candidate.status = "failed"
            if not candidate.is_reference:
                self.failed += 1
                self.wasted += candidate.cost
        elif event.kind == "held_out":
            candidate.held_out = Scores.from_body(body, event.timing)
        elif event.kind == "lost":
            candidate.attempts += 1

    def _apply_evaluation(self, event: Event, candidate: Candidate) -> None:
        items, tokens = candidate.cost, candidate.tokens
        if event.kind == "scored":
            candidate.status = "scored"
            candidate.scores = Scores.from_body(event.body, event.timing)
            self.whole = self.whole or candidate.cost
        else:
            candidate.seen.append(Seen.from_body(event.body, event.timing))
            if candidate.look is not None:
                candidate.status = "probed"
        if not candidate.is_reference:
            self.items += candidate.cost - items
            self.tokens += candidate.tokens - tokens

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
