"""Evo-Merging's two stages: what each moves, where it starts, and what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.engine.study import open_study
from evomerge.errors import ConfigError
from evomerge.search import check_space, make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Search
from evomerge.space import Gene
from tests.studies import small_experiment

EXPERTS = "abcd"
DENSITIES = [Gene(f"density[{e}] language/*/mlp", 0.0, 1.0, log=False) for e in EXPERTS]
WEIGHTS = [Gene(f"weight[{e}] language/*/mlp", -1.5, 1.5, log=False) for e in EXPERTS]
GENES = [*DENSITIES, *WEIGHTS]


def make(genes: list[Gene] = GENES, seed: int = 1, **options: Any) -> Search:
    settings = SearchSettings("evo-merging", seed, options)
    return make_search(settings, len(genes), 1, genes)


def values(genome: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Densities and weights."""
    found = [gene.decode(u) for gene, u in zip(GENES, genome, strict=True)]
    return found[:4], found[4:]


def test_the_first_stage_moves_the_densities_alone() -> None:
    search = make()
    drawn = [values(genome) for genome in search.ask(range(200))]
    assert all(weights == pytest.approx([0.25] * 4) for _, weights in drawn)
    below = 1 - np.array([densities for densities, _ in drawn])
    assert (below >= 0).all()
    assert 0.3 < (below == 0).mean() < 0.7  # half of a Gaussian around 1 lies beyond the border
    # |N(0, σ)| has the mean σ √(2/π)
    assert below[below > 0].mean() == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.15)


def test_the_second_stage_moves_the_weights_around_the_best_densities() -> None:
    search = make(denoising=3)
    first = search.ask(range(3))
    for candidate, score in enumerate((0.1, 0.9, 0.5)):
        search.tell(candidate, first[candidate], (score,))
    drawn = [values(genome) for genome in search.ask(range(3, 203))]
    assert all(densities == values(first[1])[0] for densities, _ in drawn)
    weights = np.array([weights for _, weights in drawn])
    assert weights.mean() == pytest.approx(0.25, abs=0.01)
    assert weights.std(axis=0) == pytest.approx([0.05] * 4, rel=0.2)


def test_sparser_is_better_where_scores_are_equal() -> None:
    search = make(denoising=10)
    first = search.ask(range(10))
    for candidate, genome in enumerate(first):
        search.tell(candidate, genome, (0.5,))
    sparsest = min(first, key=lambda genome: sum(values(genome)[0]))
    assert search.ask([10])[0][:4] == sparsest[:4]


@pytest.mark.parametrize(("penalty", "chosen"), [(0.05, 0), (0.5, 1)])
def test_the_penalty_is_weighed_against_the_score(penalty: float, chosen: int) -> None:
    search = make(denoising=2, penalty=penalty)
    first = sorted(search.ask([0, 1]), key=lambda genome: -sum(values(genome)[0]))
    gap = sum(values(first[0])[0]) - sum(values(first[1])[0])
    # the denser one is better by as much as a quarter of the gap (the mean of four) is worth at 0.2
    search.tell(0, first[0], (0.5 + 0.2 * gap / 4,))
    search.tell(1, first[1], (0.5,))
    assert search.ask([2])[0][:4] == first[chosen][:4]


def test_the_second_stage_waits_for_the_first() -> None:
    search = make(denoising=3)
    first = search.ask([0, 1, 2, 3, 4])
    assert len(first) == 3
    assert search.ask([3]) == []
    search.tell(2, first[2], (0.5,))
    search.fail(0)
    assert search.ask([3]) == []
    search.tell(1, first[1], (0.7,))
    (second,) = search.ask([3])
    assert second[:4] == first[1][:4]


def test_a_first_stage_that_fails_leaves_the_densities_at_one() -> None:
    search = make(denoising=2)
    search.ask([0, 1])
    search.fail(0)
    search.fail(1)
    assert values(search.ask([2])[0])[0] == [1.0] * 4


def test_reference_points_are_not_learned_from() -> None:
    search, other = make(), make()
    search.tell(900, (0.0,) * 8, (1e9,))
    search.fail(901)
    assert search.ask(range(5)) == other.ask(range(5))


def test_it_finds_what_to_keep_and_whom_to_turn_round() -> None:
    """The score wants expert b dense, the others not, and expert c with a negative weight."""
    wanted = (np.array([0.7, 1.0, 0.8, 0.9]), np.array([0.4, 0.3, -0.3, 0.2]))
    search = make(denoising=150, population=10)
    for candidate in range(450):
        (genome,) = search.ask([candidate])
        off = [np.sum((np.array(v) - w) ** 2) for v, w in zip(values(genome), wanted, strict=True)]
        search.tell(candidate, genome, (-float(sum(off)),))
    densities, weights = values(genome)
    assert densities == pytest.approx(wanted[0], abs=0.06)
    assert weights == pytest.approx(wanted[1], abs=0.06)


@pytest.mark.parametrize(
    ("genes", "found"),
    [
        ([], "found genes: none"),
        (WEIGHTS, "found genes: 4 of weight"),
        ([*GENES, Gene("scale", 0.0, 1.0, log=False)], "4 of density, 4 of weight, 1 of scale"),
        ([DENSITIES[0], *WEIGHTS], "1 of density, 4 of weight"),
        ([*DENSITIES, *WEIGHTS[:3], Gene("weight[d]", 0.1, 1.0, log=True)], "none logarithmic"),
    ],
)
def test_other_spaces_are_refused(genes: list[Gene], found: str) -> None:
    with pytest.raises(ConfigError, match="takes a space of densities and weights") as refused:
        make(genes)
    assert found in str(refused.value)
    with pytest.raises(ConfigError, match="use the space evo-merging"):
        check_space(SearchSettings("evo-merging", 1), genes, None)


def test_a_budget_that_ends_in_the_first_stage_is_refused() -> None:
    settings = SearchSettings("evo-merging", 1, {"denoising": 40})
    check_space(settings, GENES, 41)
    check_space(settings, GENES, None)
    with pytest.raises(ConfigError, match="denoising is 40, but the budget is 40 candidates"):
        check_space(settings, GENES, 40)
    with pytest.raises(ConfigError, match="denoising is 400, but the budget is 120"):
        check_space(SearchSettings("evo-merging", 1), GENES, 120)


def test_a_study_is_checked_before_any_worker_starts(workspace: Path, tmp_path: Path) -> None:
    search = {"algorithm": "evo-merging", "seed": 1}
    one = {"maximise": ["right"]}
    with pytest.raises(ConfigError, match="takes a space of densities and weights"):
        open_study(small_experiment(workspace, search=search, optimise=one))
    with pytest.raises(ConfigError, match="denoising is 400"):
        open_study(small_experiment(workspace, search=search, optimise=one, space="evo-merging"))
