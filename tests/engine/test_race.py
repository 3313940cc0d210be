"""The race: items that have weights, values that cannot be compared, the front it follows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.engine.pools.inline import InlinePool
from evomerge.engine.race import Race
from evomerge.engine.rungs import Rungs
from evomerge.engine.study import Study
from evomerge.ledger.fold import Candidate, Scores
from evomerge.scoring.statistics import Value
from tests.engine.racing import ITEMS, driven_by, listed, raced
from tests.engine.test_loop import run
from tests.studies import EXPERTS, settings

GOOD, BAD = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def study(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The raced study with answers of one to three words, so perplexity weighs its items."""
    folder = tmp_path_factory.mktemp("race")
    raced(workspace, folder)
    right, surprise = settings()["objectives"]
    lines = [
        {"prompt": f"{EXPERTS[i % 3]} says {i} it{i}", "answer": " ".join([f"it{i}"] * (1 + i % 3))}
        for i in range(ITEMS)
    ]
    (folder / "study" / "long.jsonl").write_text("\n".join(map(json.dumps, lines)))
    surprise["data"] = {"search": "long.jsonl"}
    changes = {"objectives": [right, surprise], "budget": {"candidates": 2}}
    return raced(workspace, folder, 0.4, **changes)


@pytest.fixture(scope="module")
def race(study: Study) -> Race:
    return Race(Rungs(study), lambda values: tuple(values.values()))


@pytest.fixture(scope="module")
def candidates(study: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Candidate]:
    """One that was scored, one that was dropped, and what this one would have had."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        driven_by(patch, listed([GOOD, BAD]))
        state = run(study, folder / "raced")
        search = study.experiment.search.model_copy(update={"racing": False})
        experiment = study.experiment.model_copy(update={"search": search})
        whole = replace(study, experiment=experiment)
        true = run(whole, folder / "whole", InlinePool(whole)).searched()[1]
    good, bad = state.searched()[:2]
    assert (good.status, bad.status) == ("scored", "dropped")
    return {c.label: c for c in state.references()} | {"good": good, "bad": bad, "true": true}


def begun(study: Study, candidates: dict[str, Candidate]) -> Race:
    """The race after the reference points."""
    race = Race(Rungs(study), lambda values: tuple(values.values()))
    for candidate in candidates.values():
        if candidate.is_reference:
            race.enter(candidate)
    return race


def test_weighted_items_are_compared_by_their_share(
    race: Race, candidates: dict[str, Candidate]
) -> None:
    scored = race._scored(candidates["good"])

    assert scored.forms == {"right": "mean", "surprise": "exp"}
    assert set(scored.weights["surprise"]) == {1.0, 2.0, 3.0}
    scores = candidates["good"].scores
    assert scores is not None
    mean = math.fsum(scored.items["surprise"]) / ITEMS
    assert math.exp(mean) == pytest.approx(scores.values["surprise"].value)


def test_a_weighted_value_is_told_as_it_is_measured(
    study: Study, candidates: dict[str, Candidate]
) -> None:
    race = begun(study, candidates)
    race.enter(candidates["good"])
    verdict = race.verdict(candidates["bad"])

    assert verdict is not None
    assert verdict["by"] == candidates["good"].id
    true = candidates["true"].scores
    assert true is not None
    _, surprise = verdict["told"]
    assert surprise == pytest.approx(true.values["surprise"].value, rel=0.2)
    scaled = race._scaled("surprise", range(ITEMS), true.items["surprise"])
    assert math.exp(math.fsum(scaled) / ITEMS) == pytest.approx(true.values["surprise"].value)


def test_other_weights_cannot_be_compared(study: Study, candidates: dict[str, Candidate]) -> None:
    race = begun(study, candidates)
    race.enter(candidates["good"])
    bad = candidates["bad"]
    [*before, last] = bad.seen
    weights = {"surprise": (*last.weights["surprise"][:-1], 7.0)}
    changed = replace(bad, seen=[*before, replace(last, weights=weights)])

    assert race.verdict(bad) is not None
    assert race.verdict(changed) is None


def test_a_value_that_is_no_mean_of_its_items_is_never_raced_by(
    study: Study, candidates: dict[str, Candidate]
) -> None:
    race = begun(study, candidates)
    good = candidates["good"]
    assert good.scores is not None
    values = {**good.scores.values, "right": Value(0.99, None, ITEMS)}
    race.enter(replace(good, scores=replace(good.scores, values=values)))

    assert race.verdict(candidates["bad"]) is None


def test_reference_points_drop_nobody(study: Study, candidates: dict[str, Candidate]) -> None:
    race = begun(study, candidates)
    race.enter(replace(candidates["good"], name="weight average"))

    assert race.verdict(candidates["bad"]) is None


def test_it_follows_the_front(study: Study, candidates: dict[str, Candidate]) -> None:
    race = Race(Rungs(study), lambda values: tuple(values.values()))
    scores = candidates["good"].scores
    assert scores is not None

    def entered(id: int, right: float, surprise: float) -> list[int]:
        values = {"right": Value(right, None, 1), "surprise": Value(surprise, None, 1)}
        items = {"right": (right,) * ITEMS, "surprise": (math.log(surprise),) * ITEMS}
        made = Scores("d", values, items, 0)
        race.enter(Candidate(id, genome=GOOD, status="scored", scores=made))
        return [scored.candidate.id for scored in race._front]

    assert entered(1, 0.5, 2.0) == [1]
    assert entered(2, 0.4, 3.0) == [1]  # dominated
    assert entered(3, 0.6, 2.5) == [1, 3]
    assert entered(4, 0.5, 2.0) == [1, 3, 4]  # a copy
    assert entered(5, 0.5, 1.5) == [3, 5]


def test_a_search_is_given_what_makes_a_mean_a_value(
    study: Study, race: Race, candidates: dict[str, Candidate]
) -> None:
    items = race._scored(candidates["good"]).items
    scores = candidates["good"].scores
    assert scores is not None
    for name in ("right", "surprise"):
        mean = math.fsum(items[name]) / ITEMS
        assert race.rungs.value(name, mean) == pytest.approx(scores.values[name].value)
    assert math.isfinite(race.rungs.value("surprise", 1e6))
