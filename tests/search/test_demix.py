"""DeMix: mixtures that stay on their simplices, and a loop that finds the best of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.search import check_space, make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Genome, Search
from evomerge.search.demix import simplices_of
from evomerge.space import Gene

EXPERTS = "abcde"


def weights(group: str, low: float = 0.0, high: float = 1.0, experts: str = EXPERTS) -> list[Gene]:
    return [Gene(f"weight[{e}] {group}", low, high, log=False) for e in experts]


GENES = [*weights("g"), Gene("density g", 0.1, 1.0, log=False), *weights("h", -1.5, 1.5)]


def make(genes: list[Gene] = GENES, **options: Any) -> Search:
    settings = SearchSettings("demix", 1, {"pool": 1000, **options})
    return make_search(settings, len(genes), 1, genes)


def values(genome: Genome, genes: list[Gene] = GENES) -> list[float]:
    return [gene.decode(u) for gene, u in zip(genes, genome, strict=True)]


def test_every_group_stays_on_its_simplex() -> None:
    search = make(samples=8, batch=5)
    for candidate in range(25):
        (genome,) = search.ask([candidate])
        found = values(genome)
        for group in (found[:5], found[6:]):
            assert sum(group) == pytest.approx(1.0, abs=1e-9)
            assert min(group) >= -1e-12
            assert max(group) <= 0.8 + 1e-9  # four times an even prior
            assert all(w == pytest.approx(0, abs=1e-12) or w > 1e-4 for w in group)
        search.tell(candidate, genome, (-found[0],))


def test_some_mixtures_are_nearly_even_and_some_nearly_pure() -> None:
    (simplex,) = simplices_of(weights("g"), 5)
    drawn = simplex.draw(np.random.default_rng(0), 2000)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(2000))
    assert drawn.mean(axis=0) == pytest.approx(np.full(5, 0.2), abs=0.02)
    assert (drawn == 0).mean() > 0.1
    # Var = p (1 − p) / (s + 1) of a Dirichlet of strength s, the mean over the strengths
    strengths = np.logspace(np.log10(0.5), np.log10(5), 15)
    assert drawn.var(axis=0).mean() < 0.16 * np.mean(1 / (strengths + 1))  # capped
    assert drawn.var(axis=0).mean() > 0.7 * 0.16 * np.mean(1 / (strengths + 1))


def test_caps_hold_where_ranges_are_tight() -> None:
    (simplex,) = simplices_of(weights("g", high=0.25), 5)
    drawn = simplex.draw(np.random.default_rng(0), 500)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(500))
    assert drawn.max() <= 0.25 + 1e-12
    assert drawn.min() >= 0


def test_the_loop_finds_the_mixture() -> None:
    genes, best = weights("g", experts="abc"), np.array([0.6, 0.1, 0.3])
    search = make(genes, samples=15, batch=10)
    away = []
    for candidate in range(55):
        (genome,) = search.ask([candidate])
        away.append(float(np.abs(np.array(values(genome, genes)) - best).sum()))
        search.tell(candidate, genome, (1 - away[-1] ** 2,))
    assert np.mean(away[-10:]) < 0.5 * np.mean(away[:15])


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ([Gene("t g", 0.0, 1.0, log=False)], "found genes: t"),
        (weights("g", experts="a"), "at least two experts"),
        ([*weights("g"), *weights("h", experts="a")], "at least two experts"),
        ([Gene(f"weight[{e}]", 0.1, 1.0, log=True) for e in "ab"], "not logarithmic"),
        (weights("g", low=0.1), "exclude; let them reach from 0 to 1"),
        (weights("g", high=0.19), "exclude; let them reach from 0 to 1"),
    ],
)
def test_spaces_without_mixtures_are_refused(genes: list[Gene], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_space(SearchSettings("demix", 1), genes, 100)


def test_spaces_with_mixtures_are_taken() -> None:
    check_space(SearchSettings("demix", 1), GENES, 100)
    check_space(SearchSettings("demix", 1), weights("g", high=0.2), 100)
