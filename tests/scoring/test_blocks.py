"""Blocks: every item once, the same share of every objective, common data together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from evomerge.scoring.blocks import Part, blocks
from evomerge.scoring.data import Item
from evomerge.scoring.evaluate import plan, planner
from evomerge.scoring.measures import KINDS, Sparsity, WeightStats
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import Generate, LogLikelihood

DATA = {"search": "search.jsonl"}
ANSWER = {"kind": "answer", "metric": "exact_match", "max_new_tokens": 4, "data": DATA}


def objective(name: str, count: int, text: str = "ask", **spec: object) -> Objective:
    items = tuple(
        Item(str(i), ({"role": "user", "content": f"{text} {i}"},), answer=f"a{i}")
        for i in range(count)
    )
    given = {**ANSWER, **spec, "name": name}
    if given["kind"] != "answer":
        given = {k: v for k, v in given.items() if k not in ("metric", "max_new_tokens")}
    measure = KINDS[str(given["kind"])].model_validate(given)
    return Objective(name, "maximise", measure, {"search": items})


SPARSE = Objective("sparse", "maximise", Sparsity(name="sparse", kind="sparsity"))


@pytest.mark.parametrize("counts", [(20, 20), (47, 300), (1000, 33)])
def test_every_item_is_in_one_block_and_every_block_has_its_share(counts: Sequence[int]) -> None:
    objectives = [objective(f"o{i}", n, text=f"t{i}") for i, n in enumerate(counts)]
    found = blocks(objectives)

    assert len(found) == 20
    for name, count in (("o0", counts[0]), ("o1", counts[1])):
        assert sorted(i for b in found for i in b[name]) == list(range(count))
        assert {len(b[name]) for b in found} <= {count // 20, -(-count // 20)}
        assert all(list(b[name]) == sorted(b[name]) for b in found)


def test_objectives_over_the_same_data_have_the_same_items_in_each_block() -> None:
    found = blocks([objective("a", 50), objective("p", 50, kind="perplexity")])

    assert all(block["a"] == block["p"] for block in found)


def test_the_order_of_a_file_does_not_matter() -> None:
    there = objective("a", 50)
    back = replace(there, splits={"search": there.items("search")[::-1]})

    def ids(objective: Objective) -> list[set[str]]:
        items = objective.items("search")
        return [{items[i].id for i in block["a"]} for block in blocks([objective])]

    assert ids(there) == ids(back)
    assert ids(there) != [{str(i) for i in range(b * 5 // 2, (b + 1) * 5 // 2)} for b in range(20)]


def test_no_block_lacks_an_objective() -> None:
    found = blocks([objective("few", 3), objective("many", 100, text="t"), SPARSE])

    assert len(found) == 3
    assert all(set(block) == {"few", "many"} for block in found)
    assert blocks([SPARSE]) == ()


def test_parts_ask_together_what_the_whole_asks() -> None:
    objectives = [objective("a", 50), objective("p", 50, kind="perplexity"), SPARSE]
    planned = planner(objectives)
    parts = [Part((0, 1)), Part(tuple(range(2, 20)))]
    whole = planned("search", None)

    asked = Counter(r.key for part in parts for r in planned("search", part).requests)
    assert asked == Counter(r.key for r in whole.requests)
    used = [(u.objective, u.item.id) for part in parts for u in planned("search", part).uses]
    assert sorted(used) == sorted((u.objective, u.item.id) for u in whole.uses)
    for part in parts:
        made = planned("search", part)
        assert made is planned("search", part)  # made once
        for use in made.uses:
            (request,) = (made.requests[i] for i in use.positions)
            assert request.messages == use.item.messages  # type: ignore[union-attr]
        order = [use.item.id for use in made.uses if use.objective == "a"]
        assert order == sorted(order, key=int)


def test_a_part_by_signal_asks_for_the_signal_of_those_that_have_one() -> None:
    objectives = [objective("a", 40), objective("p", 40, text="t", kind="perplexity"), SPARSE]
    made = planner(objectives)("search", Part((3,), signal=True))

    assert {use.signal for use in made.uses if use.objective == "a"} == {True}
    assert {use.signal for use in made.uses if use.objective == "p"} == {False}
    assert all(isinstance(request, LogLikelihood) for request in made.requests)
    assert any(isinstance(request, Generate) for request in plan(objectives, "search").requests)
    assert SPARSE.weigh(WeightStats(2, 1)) is not None
