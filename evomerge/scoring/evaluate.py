"""One pass over several objectives: each different request is asked once, whoever needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from evomerge.scoring.blocks import Block, Part, blocks
from evomerge.scoring.data import Item
from evomerge.scoring.measures import WeightStats
from evomerge.scoring.objectives import Objective, Split
from evomerge.scoring.requests import Request, Response
from evomerge.scoring.statistics import ItemScore

WEIGHTS = "weights"
"""Item id of the one score that an objective without items has."""
_PARTS = 64  # plans of parts that are kept


@dataclass(frozen=True)
class Use:
    """An item of an objective and where the responses to its requests stand.

    ``signal``: they are those that its signal needs, not its metric.
    """

    objective: str
    item: Item
    positions: tuple[int, ...]
    signal: bool = False


@dataclass(frozen=True)
class Plan:
    """What to ask of every candidate, without repetition, and what each answer serves."""

    objectives: tuple[Objective, ...]
    requests: tuple[Request, ...]
    uses: tuple[Use, ...]


Planner = Callable[[Split, Part | None], Plan]
"""Gives the plan of a split, or of a part of the search split."""


def plan(objectives: Sequence[Objective], split: Split, signal: bool = False) -> Plan:
    """The plan of a split; make it once, run it for every candidate.

    With ``signal``, objectives that have one are asked for that instead of their metric.

    Raises:
        ValueError: two objectives have the same name.
    """
    if len({o.name for o in objectives}) < len(objectives):
        raise ValueError(f"objectives must differ in name: {[o.name for o in objectives]}")
    requests: list[Request] = []
    position: dict[str, int] = {}
    uses: list[Use] = []
    for objective in objectives:
        by_signal = signal and objective.has_signal
        for item in objective.items(split):
            where = []
            asked = objective.signal_requests(item) if by_signal else objective.requests(item)
            for request in asked:
                if request.key not in position:
                    position[request.key] = len(requests)
                    requests.append(request)
                where.append(position[request.key])
            uses.append(Use(objective.name, item, tuple(where), by_signal))
    return Plan(tuple(objectives), tuple(requests), tuple(uses))


def planner(objectives: Sequence[Objective]) -> Planner:
    """Makes each plan once, when it is first needed; those of parts from those of their split."""

    @cache
    def whole(split: Split, signal: bool) -> Plan:
        return plan(objectives, split, signal)

    @cache
    def divided() -> tuple[Block, ...]:
        return blocks(objectives)

    @lru_cache(_PARTS)
    def part_of(part: Part) -> Plan:
        chosen = {
            (objective.name, objective.items("search")[position].id)
            for number in part.blocks
            for objective in objectives
            for position in divided()[number].get(objective.name, ())
        }
        return _restricted(whole("search", part.signal), chosen)

    return lambda split, part: whole(split, False) if part is None else part_of(part)


def _restricted(plan: Plan, chosen: set[tuple[str, str]]) -> Plan:
    """The plan of the items chosen by objective and id, in the order of the whole plan."""
    uses = [use for use in plan.uses if (use.objective, use.item.id) in chosen]
    kept = {old: new for new, old in enumerate(sorted({i for u in uses for i in u.positions}))}
    return Plan(
        plan.objectives,
        tuple(plan.requests[i] for i in kept),
        tuple(
            Use(u.objective, u.item, tuple(kept[i] for i in u.positions), u.signal) for u in uses
        ),
    )


def score(
    plan: Plan, responses: Sequence[Response], stats: WeightStats
) -> dict[str, dict[str, ItemScore]]:
    """Scores by objective and item id, from the responses to `plan.requests` in their order."""
    if len(responses) != len(plan.requests):
        raise ValueError(f"{len(plan.requests)} requests, but {len(responses)} responses")
    by_name = {objective.name: objective for objective in plan.objectives}
    scores: dict[str, dict[str, ItemScore]] = {name: {} for name in by_name}
    for name, objective in by_name.items():
        weighed = objective.weigh(stats)
        if weighed is not None:
            scores[name][WEIGHTS] = weighed
    for use in plan.uses:
        answered = [responses[i] for i in use.positions]
        objective = by_name[use.objective]
        scores[use.objective][use.item.id] = (
            ItemScore(objective.signal(use.item, answered))
            if use.signal
            else objective.score(use.item, answered)
        )
    return scores
