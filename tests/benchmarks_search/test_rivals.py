"""The published set-ups as searches."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from benchmarks.search import analytic, rivals
from benchmarks.search.bed import Bed
from benchmarks.search.wrappers import Generations, Scores, Tied
from evomerge.search.base import Genome, Measured
from evomerge.search.testing import FakeSearch
from evomerge.space import Gene

needs_pymoo = pytest.mark.skipif(
    importlib.util.find_spec("pymoo") is None, reason="pymoo is not installed"
)


# NGOpt's choice here, Cobyla, runs in a thread of nevergrad's, whose warnings nobody can catch.
threaded = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bed() -> Bed:
    return analytic.make_bed(20, 0)


def ask(bed: Bed, name: str, count: int, seed: int = 1) -> list[Genome]:
    """The first proposals, each told the mean of its genes and of their squares."""

    def scores(genome: Genome) -> tuple[float, float]:
        return float(np.mean(genome)), float(np.mean(np.square(genome)))

    search = rivals.RIVALS[name](bed, seed, 100, Measured((), frozenset(), lambda v: ()))
    for i, genome in enumerate(bed.references.values()):
        search.tell(i, genome, scores(genome))
    found: list[Genome] = []
    for candidate in range(100, 100 + count):
        (genome,) = search.ask([candidate])
        search.tell(candidate, genome, scores(genome))
        found.append(genome)
    return found


def test_tied_genes_share_one_value_an_expert() -> None:
    genes = tuple(
        Gene(f"{p}[{e}] language/{layer}/mlp", 0.0, high, False)
        for layer in range(2)
        for p, high in (("weight", 2.0), ("density", 1.0))
        for e in ("a", "b")
    )
    fake = FakeSearch([(0.1, 0.2, 0.3, 0.4)])
    search = Tied(genes, lambda _: fake)

    assert search.names == ["weight[a]", "weight[b]", "density[a]", "density[b]"]
    assert [g.high for g in search.genes] == [2.0, 2.0, 1.0, 1.0]
    (genome,) = search.ask([7])
    assert genome == pytest.approx((0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4))
    search.tell(7, genome, (1.0, 0.5))
    search.tell(8, (0.5,) * 8, (0.2, 0.1))  # a reference that lies in the small space
    search.tell(9, (0.5,) * 7 + (0.6,), (0.2, 0.1))  # one that does not
    told = [(c.candidate, c.genome) for c in fake.calls if c.kind == "tell"]
    assert [n for n, _ in told] == [7, 8]
    assert told[1][1] == (0.5,) * 4


@threaded
@pytest.mark.parametrize("name", ["evo-merging", "lorahub"])
def test_one_weight_an_expert_is_broadcast(bed: Bed, name: str) -> None:
    for genome in ask(bed, name, 12):
        assert len(genome) == 20
        assert all(len({*genome[e::5]}) == 1 for e in range(5))
        assert all(0 <= u <= 1 for u in genome)


@threaded
def test_evo_merging_starts_near_the_average_and_lorahub_at_zero(bed: Bed) -> None:
    near = np.array(ask(bed, "evo-merging", 20))
    assert near.mean() == pytest.approx(0.2, abs=0.03)
    assert 0.02 < near.std() < 0.1  # sigma 0.05
    assert ask(bed, "lorahub", 1)[0] == (0.0,) * 20


def test_mergekit_evolve_starts_at_the_average_with_sigma_a_sixth(bed: Bed) -> None:
    first = np.array(ask(bed, "mergekit-evolve", 12))  # its first generation

    assert len(np.unique(first[:, 0])) == 12
    # |x| for x of N(1/5, 1/6): mean 0.222, standard deviation 0.137
    assert first.mean() == pytest.approx(0.222, abs=0.03)
    assert first.std() == pytest.approx(0.137, abs=0.03)


def test_a_generation_waits_for_all_its_scores() -> None:
    class Pairs(Generations):
        heard: tuple[Scores, ...] = ()

        def propose(self) -> list[Genome]:
            return [(0.1,), (0.2,)]

        def learn(self, scores: list[Scores]) -> None:
            self.heard = (*self.heard, *scores)

    search = Pairs()
    assert search.ask([0, 1, 2]) == [(0.1,), (0.2,)]
    search.tell(1, (0.2,), (2.0,))
    assert search.ask([3]) == []
    search.tell(0, (0.1,), (1.0,))
    assert search.ask([3]) == [(0.1,)]
    assert search.heard == ((1.0,), (2.0,))


@needs_pymoo
def test_pymoo_takes_references_for_nothing_where_it_may(bed: Bed) -> None:
    warm = ask(bed, "pymoo-nsga2", 30)
    assert not set(warm) & set(bed.references.values())
    assert len(set(warm)) == 30
    later = np.mean(ask(bed, "pymoo-nsga2", 120)[-20:])
    assert later > np.mean(warm[:12]) + 0.1


@needs_pymoo
@pytest.mark.parametrize("name", ["mergenetic-ga", "mergenetic-nsga2"])
def test_mergenetic_learns_one_weight_an_expert(bed: Bed, name: str) -> None:
    found = ask(bed, name, 100)
    assert all(len({*genome[e::5]}) == 1 for genome in found for e in range(5))
    assert np.mean(found[-20:]) > np.mean(found[:20]) + 0.1
