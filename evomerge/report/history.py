"""How a study went: hypervolume over what was spent, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.config import Optimise
from evomerge.front import hypervolume
from evomerge.ledger.events import Event
from evomerge.ledger.fold import Scores, State
from evomerge.ledger.results import vector
from evomerge.ledger.seen import Seen

STAGES = ("reference points", "candidates", "held-out split")


@dataclass(frozen=True)
class Step:
    """The state of the search after one more scored candidate; all but ``candidate`` are sums.

    ``evaluations`` are full ones: parts of candidates count as what they are of a whole.
    """

    candidate: int
    evaluations: float
    items: int
    seconds: float  # of driver time, reference points included
    hypervolume: float


@dataclass
class Spent:
    """What one stage took: sums over its evaluations; seconds of workers by what they did.

    ``evaluations`` are whole ones, and ``parts`` those of some items only.
    """

    evaluations: int = 0
    parts: int = 0
    items: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, scores: Scores, rungs: Iterable[Seen] = ()) -> None:
        """Takes one evaluation into account, but for its rungs, which were taken before."""
        self.evaluations += 1
        self._count(sum(len(items) for items in scores.items.values()), scores.tokens)
        self._time(scores.timing)
        for seen in rungs:
            self._count(-seen.cost, -seen.tokens)
            self._time({name: -seconds for name, seconds in seen.timing.items()})

    def add_part(self, seen: Seen) -> None:
        """Takes a part into account."""
        self.parts += 1
        self._count(seen.cost, seen.tokens)
        self._time(seen.timing)

    def _count(self, items: int, tokens: int) -> None:
        self.items += items
        self.tokens += tokens

    def _time(self, timing: Mapping[str, float]) -> None:
        for name, seconds in timing.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True)
class History:
    """``wall`` is driver time in seconds over all sessions."""

    steps: tuple[Step, ...]
    stages: Mapping[str, Spent]
    wall: float
    sessions: int
    lost: int  # workers that died with a candidate
    started: float  # seconds since the epoch
    ended: float

    @property
    def busy(self) -> float:
        """Seconds that workers spent on evaluations, added up over workers."""
        return sum(sum(spent.seconds.values()) for spent in self.stages.values())

    @property
    def idle(self) -> float | None:
        """Driver time in which nothing was evaluated; None where workers overlapped."""
        return self.wall - self.busy if self.busy <= self.wall else None


def history(events: Iterable[Event], optimise: Optimise, directions: Mapping[str, str]) -> History:
    """Reads a study's events, oldest first."""
    state, steps = State(), list[Step]()
    stages = {name: Spent() for name in STAGES}
    volume = Volume(optimise, directions)
    sessions, lost, times = set[int](), 0, list[float]()
    for event in events:
        state.apply(event)
        sessions.add(event.session)
        times.append(event.time)
        lost += event.kind == "lost"
        if event.kind not in ("seen", "scored", "held_out") or event.candidate is None:
            continue
        candidate = state.candidates[event.candidate]
        stage = STAGES[2] if event.kind == "held_out" else STAGES[not candidate.is_reference]
        if event.kind == "seen":
            stages[stage].add_part(candidate.seen[-1])
            continue
        scores = candidate.held_out if event.kind == "held_out" else candidate.scores
        assert scores is not None
        stages[stage].add(scores, candidate.rungs if event.kind == "scored" else ())
        if stage == STAGES[1]:
            done = state.evaluations - state.failed
            reached = volume.with_(scores)
            steps.append(Step(candidate.id, done, state.items, state.seconds, reached))
    return History(tuple(steps), stages, state.seconds, len(sessions), lost, times[0], times[-1])


class Volume:
    """The hypervolume of a growing set of points; what another one dominates adds nothing."""

    def __init__(self, optimise: Optimise, directions: Mapping[str, str]) -> None:
        self._optimise, self._directions = optimise, directions
        self._front: list[tuple[float, ...]] = []
        pairs = zip(optimise.signs, optimise.reference_point, strict=True)
        self._origin = [sign * value for sign, value in pairs]
        self._volume = 0.0

    def with_(self, scores: Scores) -> float:
        """The hypervolume with one more point."""
        point = vector(scores, self._optimise, self._directions)
        if not any(_covers(other, point) for other in self._front):
            self._front = [p for p in self._front if not _covers(point, p)] + [point]
            self._volume = hypervolume(self._front, self._origin)
        return self._volume


def _covers(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether point a is at least as good as b everywhere."""
    return all(x >= y for x, y in zip(a, b, strict=True))
