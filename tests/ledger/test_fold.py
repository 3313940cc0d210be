from __future__ import annotations

import json
from typing import Any

import pytest

from evomerge.ledger.events import Event
from evomerge.ledger.fold import Scores, State, fold
from evomerge.ledger.seen import Seen, part_body, part_from
from evomerge.recipe import Group, Recipe, Source
from evomerge.scoring.blocks import Part
from evomerge.scoring.statistics import Value

RECIPE = Recipe(
    base=Source(path="b"),
    experts={"z": Source(path="z"), "a": Source(path="a")},
    method="slerp",
    parameters=(Group.model_validate({"tensors": "*/*/*", "t": 0.25}),),
)


def scored(value: float) -> dict[str, Any]:
    return {
        "digest": "d",
        "values": {"vqa": [value, None, 2]},
        "items": {"vqa": [value, value]},
        "tokens": 7,
        "weights": {},
    }


EVENTS = [
    Event("study", body={"experiment": {}}, time=100.0, session=1),
    Event(
        "reference",
        0,
        {"name": "base", "recipe": RECIPE.model_dump(mode="json"), "genome": None},
        time=101.0,
        session=1,
    ),
    Event("scored", 0, scored(0.5), {"seconds": 2.0}, time=103.5, session=1),
    Event("asked", 1, {"genome": [0.25, 0.75]}, time=104.0, session=1),
    Event("asked", 2, {"genome": [0.5, 0.5]}, time=104.0, session=1),
    # the next day
    Event("lost", 1, time=90000.0, session=2),
    Event("lost", 1, time=90001.0, session=2),
    Event("failed", 2, {"reason": "not finite"}, time=90002.0, session=2),
    Event("scored", 1, scored(0.75), time=90004.0, session=2),
    Event("held_out", 1, scored(0.625), time=90005.0, session=2),
    Event("finished", body={"reason": "candidates"}, time=90006.0, session=2),
]


def test_the_state_of_a_finished_study() -> None:
    state = fold(EVENTS)
    assert state.study == {"experiment": {}}
    assert state.finished == "candidates"
    base, one, two = (state.candidates[i] for i in range(3))
    assert (base.label, base.is_reference, base.genome, base.recipe) == ("base", True, None, RECIPE)
    assert base.recipe is not None
    assert base.recipe.order() == ("z", "a")
    assert base.scores == Scores(
        "d", {"vqa": Value(0.5, None, 2)}, {"vqa": (0.5, 0.5)}, 7, {"seconds": 2.0}
    )
    assert (one.label, one.genome, one.status, one.attempts) == ("#1", (0.25, 0.75), "scored", 2)
    assert one.held_out is not None
    assert one.held_out.values["vqa"].value == 0.625
    assert (two.status, two.reason, two.scores) == ("failed", "not finite", None)
    assert (state.references(), state.searched()) == ([base], [one, two])
    assert (state.scored(), state.pending()) == ([base, one], [])


def test_time_between_sessions_does_not_count() -> None:
    assert fold(EVENTS).seconds == pytest.approx((104.0 - 100.0) + (90006.0 - 90000.0))


def test_a_clock_set_back_does_not_count_backwards() -> None:
    events = [Event("lost", 0, time=t, session=1) for t in (10.0, 5.0, 7.0)]
    state = State(candidates=dict(fold(EVENTS).candidates))
    for event in events:
        state.apply(event)
    assert state.seconds == 2.0


@pytest.mark.parametrize("cut", range(len(EVENTS) + 1))
def test_folding_on_equals_folding_all(cut: int) -> None:
    state = fold(EVENTS[:cut])
    for event in EVENTS[cut:]:
        state.apply(event)
    assert state == fold(EVENTS)


def test_what_is_under_way_is_pending_and_a_new_question_reopens_the_study() -> None:
    state = fold([*EVENTS, Event("asked", 3, {"genome": [0.0, 1.0]}, time=90010.0, session=3)])
    assert [c.id for c in state.pending()] == [3]
    assert state.finished is None


def test_scores_survive_their_body() -> None:
    scores = Scores(
        "d", {"a": Value(1 / 3, 0.1, 3), "b": Value(2.0, None, 1)}, {"a": (0.1, 0.2)}, 9, {"s": 1.0}
    )
    assert Scores.from_body(scores.body(), {"s": 1.0}) == scores


def seen(*values: float, block: int = 0, signal: bool = False) -> dict[str, Any]:
    return Seen(Part((block,), signal), "d", {"vqa": values}, 1, {"sparse": 0.5}).body()


def raced(*events: Event) -> State:
    return fold([*EVENTS[:3], Event("asked", 1, {"genome": [0.25, 0.75]}), *events])


def test_rungs_count_once_also_when_the_whole_is_known() -> None:
    first = Event("seen", 1, seen(1.0))
    state = raced(first)
    assert (state.candidates[1].status, state.items, state.tokens) == ("pending", 1, 1)
    assert (state.whole, state.spent, state.evaluations) == (2, 1, 0.5)
    state = raced(first, Event("scored", 1, scored(0.75)))
    assert (state.candidates[1].status, state.items, state.tokens) == ("scored", 2, 7)
    assert state.evaluations == 1


def test_a_dropped_candidate_has_ended_and_costs_what_was_seen() -> None:
    drop = Event("dropped", 1, {"reason": "base dominates it", "by": 0, "told": [0.5]})
    state = raced(Event("seen", 1, seen(1.0)), drop)
    dropped = state.candidates[1]
    assert (dropped.status, dropped.reason, dropped.scores) == (
        "dropped",
        "base dominates it",
        None,
    )
    assert (state.items, state.pending(), state.ended("dropped")) == (1, [], 1)


def test_a_probe_has_ended_when_it_was_seen() -> None:
    look = {"blocks": [3], "signal": True}
    asked = Event("asked", 2, {"genome": [0.5, 0.5], "look": look})
    assert raced(asked).candidates[2].look == Part((3,), True)
    state = raced(asked, Event("seen", 2, seen(-1.5, block=3, signal=True)))
    assert (state.candidates[2].status, state.items) == ("probed", 1)
    assert state.candidates[2].rungs == []


def test_a_failed_candidate_costs_a_whole_one_whatever_was_seen() -> None:
    state = raced(Event("seen", 1, seen(1.0)), Event("failed", 1, {"reason": "not finite"}))
    assert (state.items, state.spent, state.evaluations) == (1, 2, 1)


def test_signals_of_a_reference_cost_nothing_and_it_stays_scored_without_them() -> None:
    state = raced(Event("seen", 0, seen(-1.0, -2.0, signal=True)))
    assert (state.candidates[0].status, state.items) == ("scored", 0)
    assert state.candidates[0].cost == 4
    state = raced(Event("failed", 0, {"reason": "not finite"}))
    assert (state.candidates[0].status, state.failed) == ("scored", 0)


def test_what_was_seen_survives_its_body() -> None:
    found = Seen(
        Part((1, 4), True), "d", {"a": (0.1, 1 / 3)}, 9, {"s": 0.5}, {"a": (2.0, 3.0)}, {"x": 1.0}
    )
    assert Seen.from_body(found.body(), {"x": 1.0}) == found


def sloped(*values: float) -> Seen:
    return Seen(Part((3,), True, True), "d", {"vqa": values}, 0, slopes={"vqa": (0.25, -1e-9)})


def test_slopes_survive_their_body() -> None:
    written = json.loads(json.dumps(sloped(-1.5).body()))
    assert Seen.from_body(written, {}) == sloped(-1.5)
    assert part_from(part_body(Part((3,), True, True))) == Part((3,), True, True)


def test_what_has_no_slopes_is_written_as_ever() -> None:
    assert part_body(Part((3,), True)) == {"blocks": [3], "signal": True}
    assert Seen(Part((3,), True), "d", {"vqa": (-1.5,)}, 0).body() == {
        "blocks": [3],
        "signal": True,
        "digest": "d",
        "items": {"vqa": [-1.5]},
        "tokens": 0,
        "weighed": {},
        "weights": {},
    }


def test_an_item_with_slopes_counts_three() -> None:
    look = part_body(Part((3,), True, True))
    asked = Event("asked", 2, {"genome": [0.5, 0.5], "look": look})
    state = raced(asked, Event("seen", 2, sloped(-1.5, -2.0).body()))
    assert (state.candidates[2].cost, state.items, state.spent) == (6, 6, 6)
    assert state.evaluations == 3
