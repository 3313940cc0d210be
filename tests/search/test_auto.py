"""Which search `auto` chooses, and the reason it gives."""

from __future__ import annotations

import pytest

from evomerge.search import make_search
from evomerge.search.algorithms import ALGORITHMS, SearchSettings, check_settings
from evomerge.search.auto import choose
from evomerge.search.base import Measured
from evomerge.search.guided import GuidedSearch
from evomerge.search.nevergrad import NevergradSearch
from evomerge.search.optuna import OptunaSearch


@pytest.mark.parametrize(
    ("genes", "items", "signals", "candidates", "algorithm", "reason"),
    [
        (48, 300, True, 100, "guided", "a few of the 300 items"),
        (48, 300, True, None, "guided", "say more for their cost about 48 genes"),
        (300, 300, True, 2000, "guided", "about 300 genes"),
        (48, 100, True, 8, "guided", "100 items"),
        (48, 99, True, 100, "gp", "99 items are too few to be looked at in parts"),
        (48, 300, False, 100, "gp", "no objective has likelihoods to probe by"),
        (48, 300, True, 7, "gp", "a budget of 7 leaves no room for probes"),
        (60, 99, True, 200, "gp", "a Gaussian process bears 60 genes"),
        (60, 99, True, None, "gp", "a Gaussian process bears 60 genes"),
        (60, 99, True, 201, "cma", "60 genes or the budget are too many"),
        (61, 99, True, 100, "cma", "61 genes or the budget are too many"),
        (119, 99, True, None, "cma", "99 items are too few"),
        (120, 99, True, None, "diagonal-cma", "120 genes"),
        (120, 300, False, None, "diagonal-cma", "no objective has likelihoods"),
        (120, 300, True, 7, "diagonal-cma", "a budget of 7"),
    ],
)
def test_each_rule_and_its_reason(
    genes: int, items: int, signals: bool, candidates: int | None, algorithm: str, reason: str
) -> None:
    choice = choose(genes, items, signals, candidates)

    assert choice.algorithm == algorithm
    assert reason in choice.why
    assert choice.algorithm in ALGORITHMS
    check_settings(SearchSettings(choice.algorithm, 1, choice.options), objectives=3)


def measured(items: int, *signals: str) -> Measured:
    """Two objectives of so many items each, in two blocks."""
    half = items // 2
    blocks = tuple(
        {name: tuple(range(*ends)) for name in ("right", "fluent")}
        for ends in ((0, half), (half, items))
    )
    return Measured(blocks, frozenset(signals), lambda values: tuple(values.values()))


@pytest.mark.parametrize(
    ("dimension", "known", "kind"),
    [
        (10, measured(50, "right"), GuidedSearch),
        (10, measured(49, "right"), OptunaSearch),
        (10, measured(50), OptunaSearch),
        (10, None, OptunaSearch),
        (61, None, NevergradSearch),
    ],
    ids=["both objectives' items count", "few items", "no signals", "unmeasured", "many genes"],
)
def test_a_search_is_made_of_what_is_measured(
    dimension: int, known: Measured | None, kind: type
) -> None:
    assert type(make_search(SearchSettings("auto", 1), dimension, 2, measured=known)) is kind


def test_what_was_chosen_has_the_seed() -> None:
    known = measured(100, "right")
    by_auto, other = (
        make_search(SearchSettings("auto", seed), 10, 2, measured=known).ask([0, 1])
        for seed in (5, 6)
    )

    assert by_auto == make_search(SearchSettings("guided", 5), 10, 2, measured=known).ask([0, 1])
    assert by_auto != other


def test_it_takes_no_options() -> None:
    assert ALGORITHMS["auto"].options == {}
