"""The guided search where slopes can be measured: what it asks then, and that it finds more."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evomerge.search import guided as guided_module
from evomerge.search import make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Evidence, Genome, Look, OptionValue
from evomerge.search.guided import GuidedSearch
from evomerge.search.slopes import Slopes
from evomerge.search.slopes import fit_slopes as fit
from evomerge.space import Gene
from tests.search.test_guided import array, best_of_random
from tests.search.toy import (
    BLOCKS,
    GENES,
    NAMES,
    REFERENCES,
    D,
    Run,
    Toy,
    drive,
    skill,
    skill_slope,
    true_mean,
)

TOY, BLIND = Toy(slopes=True), Toy()
NEAR = 1.0  # a radius that stays in the neighbourhood of nine genes


def guided(toy: Toy = TOY, seed: int = 1, **options: OptionValue) -> GuidedSearch:
    """With the usual options unless others are given."""
    settings = SearchSettings("guided", seed, options)
    made = make_search(settings, D, len(NAMES), GENES, toy.measured)
    assert isinstance(made, GuidedSearch)
    return made


def looks(search: GuidedSearch, count: int) -> list[Look | None]:
    for candidate in range(count):
        search.replay(candidate, (0.5,) * D)
    return [search.look(candidate) for candidate in range(count)]


@pytest.fixture(scope="module")
def run() -> Run:
    """With the usual options, one after the other."""
    return drive(guided(radius=NEAR), TOY, 10)


def test_the_slopes_that_the_toy_shows_are_those_of_its_skills() -> None:
    genome, step = np.full(D, 0.3), 1e-6
    for name in NAMES:
        moved = [
            skill(name, tuple(genome + e)) - skill(name, tuple(genome - e))
            for e in np.eye(D) * step
        ]
        assert skill_slope(name, tuple(genome)) == pytest.approx(np.array(moved) / (2 * step))


@pytest.mark.parametrize("options", [{}, {"startup": 7, "probes": 2}])
def test_scores_are_wanted_after_20_probes_and_then_after_4_unless_others_are_given(
    options: dict[str, Any],
) -> None:
    startup, probes = options.get("startup", 20), options.get("probes", 4)
    found = looks(guided(**options), 45)

    assert [turn for turn, look in enumerate(found) if look is None] == [
        turn for turn in range(45) if turn >= startup and (turn - startup) % (probes + 1) == 0
    ]


def test_a_probe_asks_for_slopes_of_one_block_and_each_block_takes_its_turn() -> None:
    probes = [look for look in looks(guided(), 60) if look is not None]

    assert probes == [Look((n % BLOCKS,), signal=True, slopes=True) for n in range(len(probes))]
    assert len(probes) > 2 * BLOCKS


def test_no_two_probes_are_a_pair_and_all_levels_move_alike_often() -> None:
    moves = np.array([array(genome) for genome in guided(startup=300).ask(range(300))]) - 0.75
    lengths = np.sqrt((moves**2).mean(axis=1))

    likeness = (moves[::2] * moves[1::2]).sum(axis=1) / (lengths[::2] * lengths[1::2]) / D
    assert likeness.min() > -1 + 1e-6
    assert lengths.min() >= 0.05 - 1e-12
    assert lengths.max() <= 0.2 + 1e-12
    assert lengths.max() > 2.5 * lengths.min()
    # experts or places; an expert's depths or module kinds; genes by themselves
    kinds = Counter(len(set(np.round(move, 9))) for move in moves)
    assert set(kinds) == {3, 6, D}
    assert kinds[3] == pytest.approx(120, abs=30)
    assert kinds[D] == pytest.approx(60, abs=20)


def test_a_step_may_be_given() -> None:
    usual, longer = (np.array(guided(step=s).ask(range(20))) - 0.5 for s in (None, 0.15))

    assert longer == pytest.approx(1.5 * usual)


@pytest.mark.parametrize("radius", [0.1, None])
def test_a_candidate_to_be_scored_is_within_the_radius_of_one_that_was(
    radius: float | None,
) -> None:
    scored = [array(call.genome) for call in drive(guided(radius=radius), TOY, 6).scored]
    found = [
        min(float(np.linalg.norm(scored[i] - before)) for before in scored[:i])
        for i in range(len(REFERENCES), len(scored))
    ]
    assert min(found) > 0
    assert max(found) <= (radius or 1.5) + 1e-9
    assert max(found) > 0.09


@pytest.mark.parametrize("off", [{"slopes": False}, {"signal": False}, {"probes": 0}], ids=str)
def test_without_them_all_is_as_where_there_are_none(off: dict[str, Any]) -> None:
    given, absent = drive(guided(**off), TOY, 8), drive(guided(BLIND, **off), BLIND, 8)

    assert given.calls == absent.calls
    assert given.looks == absent.looks
    assert not any(look and look.slopes for look in given.looks.values())


def test_what_the_backend_cannot_measure_is_not_asked_for() -> None:
    found = looks(guided(BLIND), 82)

    assert [turn for turn, look in enumerate(found) if look is None] == [60, 81]
    assert not any(look and look.slopes for look in found)


def test_five_observations_are_a_version() -> None:
    """Proposals change with every fifth, whatever they say."""
    search = guided()
    drive(search, TOY, 0)  # six references
    [genome] = search.ask([50])
    proposed: list[Genome] = []
    for turn in range(15):
        look = search.look(50 + turn)
        assert look is not None
        for evidence in TOY.evidence(genome, look):
            search.observe(50 + turn, genome, evidence)
        proposed += search.ask([101])  # the same turn each time
    changed = [i for i in range(1, 15) if proposed[i] != proposed[i - 1]]

    assert changed
    assert set(changed) <= {4, 9, 14}  # references count when they are told
    assert 9 in changed


def test_slopes_are_taken_in_natural_units() -> None:
    """By a weight of one where a gene reaches over four, by its range where it is no weight."""
    genes = [Gene("weight[a]", 0.0, 4.0, log=False), Gene("density[a]", 0.0, 4.0, log=False)]
    search = make_search(SearchSettings("guided", 1), 2, 3, genes, TOY.measured)
    assert isinstance(search, GuidedSearch)
    [genome] = search.ask([0])
    evidence = Evidence(True, {"adds": ((0, 1), (-1.0, -2.0))}, {"adds": (8.0, 8.0)})
    search.observe(0, genome, evidence)

    assert search._rows[0, False].slopes["adds"].tolist() == [2.0, 8.0]
    assert search._rows[0, False].place.tolist() == [genome[0] * 4, genome[1]]


def test_the_model_has_the_slopes_of_what_it_saw() -> None:
    """Of all items, from probes of a block each."""
    search = guided(radius=NEAR)
    drive(search, TOY, 5)
    search.ask([1000])
    model = search._model
    assert model is not None
    assert model.names == NAMES
    _, slopes = model.surrogate.mean(model.start)
    genome = tuple(((model.centre + model.start) / 1.5).tolist())
    for found, name in zip(slopes.T, NAMES, strict=True):
        truth = skill_slope(name, genome)
        assert found @ truth > 0.9 * np.linalg.norm(found) * np.linalg.norm(truth)


def test_full_scores_say_what_the_model_leaves_over() -> None:
    """Where they are as many as genes, and gains count from the best; else, from the reference."""
    near = np.random.default_rng(3).uniform(0.2, 0.4, (D + 1, D))
    for references, known in ((near, True), (near[:3], False)):
        search = guided()
        drive(search, TOY, 5, references=[tuple(place.tolist()) for place in references])
        search.ask([1000])
        model = search._model
        assert model is not None
        assert (model.residual is not None) == known
        assert (model.known == 0).all() == known
        origin = (model.centre + model.known) * search._unit
        assert any(np.allclose(origin, place) for place in references) == (not known)


def test_where_less_is_known_a_step_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain over the best reference must outweigh the doubt about it."""
    best = np.array(max(REFERENCES, key=lambda genome: sum(TOY.scores(genome))))
    away = {}
    for caution in (0.0, 2.0, 20.0):
        monkeypatch.setattr(guided_module, "CAUTION_FIRST", caution)
        found = drive(guided(radius=NEAR), TOY, 3.1).scored[len(REFERENCES)]
        away[caution] = float(np.linalg.norm(np.array(found.genome) - best))
    assert 0 < away[20.0] < away[2.0] < away[0.0]


def test_slopes_are_fitted_again_only_if_there_are_others_or_another_centre(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits: list[Slopes] = []
    search = guided()
    drive(search, TOY, 6)
    monkeypatch.setattr(guided_module, "fit_slopes", lambda seen: fits.append(seen) or fit(seen))

    def told(candidate: int, gene: float, score: float) -> int:
        """The fits after another candidate was told and a probe was asked for."""
        place = (gene,) * D
        for evidence in TOY.evidence(place, Look(tuple(range(BLOCKS)), signal=False)):
            search.observe(candidate, place, evidence)
        search.tell(candidate, place, (score,) * len(NAMES))
        search.ask([candidate + 1])
        return len(fits)

    first = told(1000, 0.0, -1.0)
    assert first <= 1
    assert told(1002, 0.1, -1.0) == first
    assert told(1004, 0.35, 9.0) == first + 1


def test_cut_anywhere_it_asks_for_the_same_looks(run: Run) -> None:
    """A look is a function of the turn alone: the ledger knows it, and it is asked only once."""
    fresh = guided()
    for candidate, look in run.looks.items():
        fresh.replay(candidate, (0.5,) * D)
        assert fresh.look(candidate) == look


def shown(search: GuidedSearch, count: int, failing: int = 0) -> None:
    """Asks for so many candidates from 50 on, of which none is to be scored, and shows them.

    One of so many ``failing`` cannot be built.
    """
    for candidate in range(50, 50 + count):
        [genome] = search.ask([candidate])
        look = search.look(candidate)
        assert look is not None
        if failing and candidate % failing == 0:
            search.fail(candidate)
            continue
        for evidence in TOY.evidence(genome, look):
            search.observe(candidate, genome, evidence)


def test_sixteen_may_wait_at_once() -> None:
    search = guided()
    drive(search, TOY, 0)
    shown(search, 20)
    genomes = search.ask(range(70, 86))

    assert len(set(genomes)) == 16
    assert [c for c in range(70, 86) if search.look(c) is None] == [70, 75, 80, 85]


def test_candidates_whose_scores_are_awaited_are_gone_on_from() -> None:
    """Nor are they forgotten before they are told or fail; then the next is as if they were not."""
    first = guided()
    drive(first, TOY, 0)
    shown(first, 20)
    asked = first.ask(range(70, 111))[::5]  # each of the four weightings twice, and one thrice
    assert len(set(asked)) > 4  # more than weightings; without what is awaited they would repeat

    resumed, failed = guided(), guided()
    for search in (resumed, failed):
        drive(search, TOY, 0)
        shown(search, 20)
    [again] = failed.ask([70])
    failed.fail(70)
    resumed.replay(70, again)
    assert resumed.ask([90]) != failed.ask([90]) == [again]


def test_probes_that_cannot_be_built_are_no_obstacle() -> None:
    search = guided()
    drive(search, TOY, 0)
    shown(search, 20, failing=2)
    [genome] = search.ask([70])

    assert search._model is not None
    assert true_mean(genome) > max(map(true_mean, REFERENCES))
    none = guided()
    drive(none, TOY, 0)
    shown(none, 20, failing=1)
    assert none.ask([70]) == [REFERENCES[2]]  # the best that it knows


def test_an_objective_without_any_slope_is_no_obstacle() -> None:
    """Solved by all, say."""
    search = guided(startup=10)
    for candidate, genome in enumerate(REFERENCES[:3]):
        for evidence in TOY.evidence(genome, Look(tuple(range(BLOCKS)), signal=False)):
            search.observe(candidate, genome, evidence)
        search.tell(candidate, genome, TOY.scores(genome))
    for candidate in range(50, 75):
        [genome] = search.ask([candidate])
        look = search.look(candidate)
        if look is not None:
            [evidence] = TOY.evidence(genome, look)
            flat = dict(evidence.slopes) | {"adds": (0.0,) * D}
            search.observe(candidate, genome, replace(evidence, slopes=flat))
    [genome] = search.ask([80])

    assert search._model is not None
    assert np.isfinite(genome).all()


@pytest.mark.parametrize("waiting", [1, 16])
def test_ten_full_evaluations_find_what_no_reference_and_no_random_point_is(waiting: int) -> None:
    seeds = (0, 1, 2)
    runs = [drive(guided(TOY, seed, radius=NEAR), TOY, 10, waiting=waiting) for seed in seeds]
    found = [true_mean(run.best()) for run in runs]
    by_chance = [true_mean(best_of_random(TOY, seed, 10)) for seed in seeds]

    assert all(10 * TOY.whole <= run.cost < 11 * TOY.whole for run in runs)
    assert min(found) > max(map(true_mean, REFERENCES)) + 0.15
    assert all(a > b + 0.12 for a, b in zip(found, by_chance, strict=True))


def test_slopes_find_more_at_the_same_cost() -> None:
    """Of 0.643, what the toy has at most; a probe with slopes counts three times."""
    with_them, without = [], []
    for seed in range(4):
        with_them.append(true_mean(drive(guided(TOY, seed, radius=NEAR), TOY, 7).best()))
        without.append(true_mean(drive(guided(BLIND, seed), BLIND, 7).best()))

    assert np.mean(with_them) > np.mean(without) + 0.05
    assert min(with_them) > 0.58
