"""The loop: an asynchronous steady state of ask, evaluate, tell, with every step in the ledger.

The ledger is the only memory. A run that is started again folds the ledger, replays the search to
where it was, evaluates what was under way, and goes on; with one inline worker the result is the
same ledger, event for event, as without the interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import islice
from math import ceil, inf
from typing import Any, Literal, cast

from evomerge.config import Optimise, Scalarise
from evomerge.engine.pools import Pool
from evomerge.engine.race import Race
from evomerge.engine.rungs import Rungs
from evomerge.engine.study import Study, fingerprint_of, search_settings, with_search_of
from evomerge.engine.tasks import Outcome, Task, failure
from evomerge.errors import CandidateError, OutputError
from evomerge.ledger.events import Event
from evomerge.ledger.fold import Candidate, Scores, State
from evomerge.ledger.results import front, vector
from evomerge.ledger.seen import Seen, part_body
from evomerge.ledger.store import Ledger
from evomerge.recipe import Recipe
from evomerge.scoring.blocks import Part
from evomerge.scoring.objectives import Split
from evomerge.scoring.statistics import Value
from evomerge.search import make_search
from evomerge.search.base import Evidence, Guided, Measured, Search
from evomerge.search.scalarise import chebyshev, weighted_sum

ATTEMPTS = 3  # workers that may die with a candidate before it is given up
Observer = Callable[[State, int], None]  # called after every event with the tasks under way


@dataclass
class Loop:
    """One session of a study: from whatever the ledger holds to the end of the budget."""

    study: Study
    ledger: Ledger
    state: State = field(default_factory=State)
    _running: set[tuple[int, Part | None]] = field(default_factory=set)

    def check(self) -> None:
        """What can be known before any worker starts; a choice of `auto` stays what it was.

        Raises:
            OutputError: the ledger belongs to another experiment.
        """
        events = self.ledger.events()
        if events and events[0].kind == "study":
            self.study = with_search_of(self.study, events[0].body)
        body = self.study.body()
        if events and (events[0].kind != "study" or _fingerprints_differ(events[0].body, body)):
            raise OutputError(
                "the run directory holds a run of another experiment (or this one has changed: "
                f"{_difference(dict(events[0].body), body)}); choose another --out"
            )

    def run(self, pool: Pool, observe: Observer = lambda state, running: None) -> State:
        """Runs until the budget is spent and the front is re-scored; returns the final state.

        Raises:
            OutputError: the ledger belongs to another experiment.
            CandidateError: the base itself cannot be scored.
        """
        self.check()
        self.pool, self.observe = pool, observe
        self._open_search()
        self._resume()
        self._propose_references()
        self._evaluate(self.state.pending(), "search", then_ask=True)
        self._rescore()
        if self.state.finished is None:
            self._record(Event("finished", body={"reason": self._spent() or "nothing left to ask"}))
        return self.state

    def _open_search(self) -> None:
        study = self.study
        settings, objectives = search_settings(study.experiment)
        self._fitness = partial(_fitness, study.experiment.optimise, study.directions)
        self._rungs = rungs = Rungs(study)
        measured = Measured(rungs.blocks, rungs.signals, self._fitness, rungs.value, rungs.slopes)
        space = study.space
        self._search: Search = make_search(
            settings, space.dimension, objectives, space.genes, measured
        )
        self._guide = cast(Guided, self._search) if hasattr(self._search, "look") else None
        self._race = Race(self._rungs, self._fitness)

    def _resume(self) -> None:
        """Folds the ledger and brings the search to where it was."""
        events = self.ledger.events()
        if not events:
            self._record(Event("study", body=self.study.body()))
        for event in events:
            self.state.apply(event)
            self._replay(event)
        if events and events[-1].kind == "seen" and events[-1].candidate is not None:
            # whoever was seen later than this was judged at once: the next event shows it
            self._judge(self.state.candidates[events[-1].candidate])

    def _replay(self, event: Event) -> None:
        if event.candidate is None:
            return
        candidate = self.state.candidates[event.candidate]
        if event.kind == "asked" and candidate.genome is not None:
            self._search.replay(candidate.id, candidate.genome)
        else:
            self._inform(event)

    def _record(self, event: Event) -> None:
        """Ledger first, then the state, then the search: a crash between them loses nothing."""
        stamped = self.ledger.append(event)
        self.state.apply(stamped)
        self._inform(stamped)
        self.observe(self.state, len(self._running))

    def _inform(self, event: Event) -> None:
        """Tells the search, and the race, of an outcome."""
        if event.candidate is None:
            return
        candidate = self.state.candidates[event.candidate]
        if event.kind == "seen" and self._guide is not None and candidate.genome is not None:
            self._show(candidate, self._rungs.evidence(candidate.genome, candidate.seen[-1]))
        elif event.kind == "scored":
            self._inform_of_score(candidate)
        elif event.kind == "dropped":
            self._inform_of_drop(candidate, event.body["told"])
        elif event.kind == "failed" and not candidate.is_reference:
            self._search.fail(candidate.id)

    def _inform_of_score(self, candidate: Candidate) -> None:
        assert candidate.scores is not None
        if self.study.experiment.search.racing:
            self._race.enter(candidate)
        if candidate.genome is None:
            return
        self._show(candidate, [self._rungs.rest(candidate)] if self._guide else [])
        values = {name: value.value for name, value in candidate.scores.values.items()}
        self._search.tell(candidate.id, candidate.genome, self._fitness(values))

    def _inform_of_drop(self, candidate: Candidate, told: Sequence[float]) -> None:
        """A guided search has seen what there is; another one learns that it is poor."""
        assert candidate.genome is not None
        if self._guide is not None:
            self._search.fail(candidate.id)
        else:
            self._search.tell(candidate.id, candidate.genome, tuple(told))

    def _show(self, candidate: Candidate, found: Iterable[Evidence]) -> None:
        """Shows a guided search what was seen of a candidate."""
        if self._guide is None or candidate.genome is None:
            return
        for evidence in found:
            self._guide.observe(candidate.id, candidate.genome, evidence)

    def _propose_references(self) -> None:
        known = {c.name for c in self.state.references()}
        for id, reference in enumerate(self.study.references):
            if reference.name not in known:
                body = {
                    "name": reference.name,
                    "recipe": reference.recipe.model_dump(mode="json"),
                    "genome": reference.genome,
                }
                self._record(Event("reference", id, body))

    def _evaluate(
        self, candidates: Iterable[Candidate], split: Split, then_ask: bool = False
    ) -> None:
        """Keeps the pool busy with ``candidates``, then with what the search asks for."""
        queue = [task for c in candidates for task in self._tasks(c, split)]
        while True:
            while (free := self.pool.capacity - len(self._running)) > 0:
                if not queue and then_ask and not self._references_pending():
                    asked = [self.state.candidates[id] for id in self._ask(free)]
                    queue = [task for c in asked for task in self._tasks(c, split)]
                if not queue:
                    break
                self._submit(queue.pop(0))
            if not self._running:
                return
            again = []
            for outcome in self.pool.wait():
                self._running.discard((outcome.task.candidate, outcome.task.part))
                again += self._record_outcome(outcome)
            queue = [task for task in (*again, *queue) if not self._is_over(task)]

    def _tasks(self, candidate: Candidate, split: Split) -> list[Task]:
        """What is now to be asked of a candidate that has nothing under way."""
        workers = self._workers if self._guide is not None else 1
        parts = self._rungs.next(candidate, workers) if split == "search" else (None,)
        recipe = self.recipe(candidate)
        return [Task(candidate.id, recipe, split, part) for part in parts]

    @property
    def _workers(self) -> int:
        return max(1, self.pool.capacity // self.study.slots)

    def _submit(self, task: Task) -> None:
        self._running.add((task.candidate, task.part))
        self.pool.submit(task)
        self.observe(self.state, len(self._running))

    def _is_over(self, task: Task) -> bool:
        """Whether another part of the candidate has failed meanwhile."""
        return self.state.candidates[task.candidate].status == "failed"

    def recipe(self, candidate: Candidate) -> Recipe:
        """The recipe of a candidate: its own for a reference point, else its genome's."""
        if candidate.recipe is not None:
            return candidate.recipe
        assert candidate.genome is not None
        return self.study.space.recipe(candidate.genome)

    def _references_pending(self) -> bool:
        first = islice(self.state.candidates.values(), len(self.study.references))
        return any(c.status == "pending" for c in first)  # references are proposed first

    def _ask(self, free: int) -> list[int]:
        """New candidates for the free workers, as many as the budget and the search allow."""
        if self._spent() is not None:
            return []
        if self._guide is not None and self._workers > 1:
            free = 1  # its parts may take all workers
        free = int(min(free, self._left()))
        first = len(self.state.candidates)
        genomes = self._search.ask(range(first, first + free)) if free > 0 else []
        for id, genome in enumerate(genomes, first):
            look = None if self._guide is None else self._guide.look(id)
            body: dict[str, Any] = {"genome": genome}
            if look is not None:
                body["look"] = part_body(self._rungs.part_of(look))
            self._record(Event("asked", id, body))
        return list(range(first, first + len(genomes)))

    def _left(self) -> float:
        """Full evaluations that the budget allows beside those under way, rounded up."""
        limit = self.study.experiment.budget.candidates
        if limit is None:
            return inf
        state = self.state
        running = [state.candidates[id] for id in {id for id, _ in self._running}]
        promised = self._rungs.promised(running, state.whole)
        return ceil(limit - Fraction(state.spent + promised, state.whole))

    def _spent(self) -> str | None:
        """Which part of the budget is used up, or None."""
        budget = self.study.experiment.budget
        spent = {
            "candidates": self.state.evaluations,
            "items": self.state.items,
            "tokens": self.state.tokens,
            "hours": self.state.seconds / 3600,
        }
        for name, used in spent.items():
            limit = getattr(budget, name)
            if limit is not None and used >= limit:
                return f"budget of {limit} {name} is spent"
        return None

    def _record_outcome(self, outcome: Outcome) -> list[Task]:
        """Writes what became of a task; returns what is to be asked of the candidate next."""
        id, split = outcome.task.candidate, outcome.task.split
        if self._is_over(outcome.task):
            return []
        if outcome.seen is not None:
            return self._record_part(outcome.task, outcome.seen)
        if outcome.scores is not None:
            kind: Literal["scored", "held_out"] = "scored" if split == "search" else "held_out"
            self._record(Event(kind, id, outcome.scores.body(), outcome.scores.timing))
            return []
        if outcome.lost:
            self._record(Event("lost", id, {"reason": outcome.reason}))
            if self.state.candidates[id].attempts < ATTEMPTS:
                return [outcome.task]
        if split == "held_out":
            raise CandidateError(
                f"{self.state.candidates[id].label} was scored in the search but not on the "
                f"held-out split: {outcome.reason}; run the same command again to retry"
            )
        if self.state.candidates[id].name == "base" and self.state.candidates[id].scores is None:
            raise CandidateError(f"the base itself cannot be scored: {outcome.reason}")
        self._record(Event("failed", id, {"reason": outcome.reason}))
        return []

    def _record_part(self, task: Task, seen: Seen) -> list[Task]:
        """Writes a part, or the whole score that it completes."""
        candidate = self.state.candidates[task.candidate]
        try:
            scores = self._rungs.completed(candidate, seen)
        except CandidateError as error:
            return self._record_outcome(failure(task, error))
        if scores is not None:
            self._record(Event("scored", candidate.id, scores.body(), scores.timing))
            return []
        self._record(Event("seen", candidate.id, seen.body(), seen.timing))
        self._judge(candidate)
        goes_on = self.study.experiment.search.racing and candidate.status == "pending"
        return self._tasks(candidate, "search") if goes_on else []

    def _judge(self, candidate: Candidate) -> None:
        """Ends a candidate that is in a race if the front of this moment dominates it."""
        verdict = self._race.verdict(candidate) if candidate.rungs else None
        if verdict is not None:
            self._record(Event("dropped", candidate.id, verdict))

    def _rescore(self) -> None:
        """Scores the front and the reference points on the held-out split."""
        if not any(o.items("held_out") for o in self.study.objectives):
            return
        optimise, directions = self.study.experiment.optimise, self.study.directions
        chosen = [
            *(c for c in self.state.references() if c.status == "scored"),
            *front(self.state.searched(), optimise, directions),
        ]
        self._evaluate([c for c in chosen if c.held_out is None], "held_out")


def _fitness(
    optimise: Optimise, directions: Mapping[str, str], values: Mapping[str, float]
) -> tuple[float, ...]:
    """What a search is told of values by objective, to be maximised."""
    known = {name: Value(value, None, 0) for name, value in values.items()}
    scores = vector(Scores("", known, {}, 0), optimise, directions)
    if optimise.scalarise is None:
        return scores
    return (_scalar(scores, optimise.names, optimise.signs, optimise.scalarise),)


def _scalar(
    scores: tuple[float, ...],
    names: tuple[str, ...],
    signs: tuple[float, ...],
    rule: Scalarise,
) -> float:
    weights = [rule.weights.get(name, 1.0) for name in names]
    if rule.rule == "weighted-sum":
        return weighted_sum(scores, weights)
    ideal = [1.0 if sign > 0 else 0.0 for sign in signs]  # accuracies at most 1, costs at least 0
    return chebyshev(scores, weights, ideal)


def _fingerprints_differ(before: Mapping[str, object], now: Mapping[str, object]) -> bool:
    return fingerprint_of(before) != fingerprint_of(now)


def _difference(before: dict[str, object], now: dict[str, object]) -> str:
    """The first keys in which two study events differ."""
    if isinstance(before.get("experiment"), dict) and isinstance(now.get("experiment"), dict):
        before = {**before, **before.pop("experiment")}  # type: ignore[dict-item]
        now = {**now, **now["experiment"]}  # type: ignore[dict-item]
    changed = [k for k in now if k != "experiment" and before.get(k) != now[k]]
    return ", ".join(changed)
