"""The simulated engine: what is asked, in what order, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from benchmarks.search.bed import Bed, Positions, Slopes, Values
from benchmarks.search.drive import (
    Curve,
    Dropped,
    Record,
    blocks_of,
    chosen,
    curve,
    drive,
    rungs_of,
)
from benchmarks.search.run import race
from evomerge.search.base import Evidence, Genome, Look, Measured
from evomerge.search.testing import FakeSearch
from evomerge.space import Gene

COUNTS = {"a": 40, "b": 60}


def bed(counts: Mapping[str, int] = COUNTS) -> Bed:
    """Item i of n is right if the gene is beyond (i + 0.5) / n, shuffled; so accuracy = gene."""

    def metric(genome: Genome, positions: Positions) -> Values:
        def right(name: str, i: int) -> float:
            n = counts[name]
            return float(genome[0] > ((i * 7) % n + 0.5) / n)

        return {name: tuple(right(name, i) for i in at) for name, at in positions.items()}

    def signal(genome: Genome, positions: Positions) -> Values:
        return {name: (genome[0] - 1.0,) * len(at) for name, at in positions.items()}

    def slopes(genome: Genome, positions: Positions) -> tuple[Values, Slopes]:
        # soft(x - 1) has the slope exp((x - 1) / 2) / 2 at each item.
        slope = math.exp((genome[0] - 1.0) / 2) / 2
        return signal(genome, positions), {name: (slope,) for name in positions}

    return Bed(
        name="line",
        genes=(Gene("weight[a] language/0/mlp", 0.0, 1.0, False),),
        objectives=tuple(counts),
        counts=counts,
        references={"base": (0.2,), "average": (0.5,)},
        metric=metric,
        signal=signal,
        slopes=slopes,
        held_out=lambda genome: dict.fromkeys(counts, genome[0]),
        tokens=dict.fromkeys(counts, (3, 0)),
        reference_point=(0.0, 0.0),
    )


class Prober(FakeSearch):
    """Looks at blocks 0 and 1 of every other candidate, by the signal."""

    def __init__(self, genomes: list[Genome], slopes: bool = False) -> None:
        super().__init__(genomes)
        self.slopes = slopes
        self.seen: list[tuple[int, Evidence]] = []

    def look(self, candidate: int) -> Look | None:
        return Look((0, 1), True, self.slopes) if candidate % 2 == 0 else None

    def observe(self, candidate: int, genome: Genome, evidence: Evidence) -> None:
        self.seen.append((candidate, evidence))


def genomes(*values: float) -> list[Genome]:
    return [(value,) for value in values]


def test_blocks_are_stratified_and_hold_each_item_once() -> None:
    blocks = blocks_of(bed({"a": 41, "b": 60}), 20)

    assert len(blocks) == 20
    assert sorted(i for b in blocks for i in b["a"]) == list(range(41))
    assert {len(b["a"]) for b in blocks} == {2, 3}
    assert {len(b["b"]) for b in blocks} == {3}
    assert len(blocks_of(bed({"a": 7, "b": 60}), 20)) == 7


def test_rungs_are_the_declared_shares_of_the_blocks() -> None:
    assert [len(rung) for rung in rungs_of(20)] == [2, 3, 5, 10]
    assert [i for rung in rungs_of(7) for i in rung] == list(range(7))


def test_a_full_evaluation_costs_its_items_and_references_nothing() -> None:
    search = FakeSearch(genomes(0.3, 0.7, 0.6, 0.9))
    record = drive(bed(), lambda _: search, budget=350)

    assert record.cost == 300  # a fourth would need 400
    assert [s.cost for s in record.scored] == [100, 200, 300]
    assert record.tokens == 900
    assert [s.values for s in record.references] == [{"a": 0.2, "b": 0.2}, {"a": 0.5, "b": 0.5}]
    told = [c for c in search.calls if c.kind == "tell"]
    assert [c.candidate for c in told] == [0, 1, 2, 3, 4]
    assert [c.scores for c in told] == [pytest.approx((v, v)) for v in (0.2, 0.5, 0.3, 0.7, 0.6)]


def test_a_probe_costs_its_blocks_and_is_never_told() -> None:
    search = Prober(genomes(0.3, 0.7, 0.6, 0.9))
    record = drive(bed(), lambda _: search, budget=230)

    assert (record.probes, record.cost) == (2, 10 + 100 + 10 + 100)
    assert record.tokens == 600
    assert [c.candidate for c in search.calls if c.kind == "tell"] == [0, 1, 3, 5]
    probes = [(n, e) for n, e in search.seen if e.signal]
    assert [n for n, _ in probes] == [2, 4]
    positions, values = probes[0][1].items["b"]
    assert positions == (0, 1, 2, 3, 4, 5)
    assert values == pytest.approx([-0.7] * 6)


def test_an_item_with_slopes_counts_three_times() -> None:
    search = Prober(genomes(0.3, 0.7, 0.6, 0.9), slopes=True)
    record = drive(bed(), lambda _: search, budget=260)

    assert record.cost == record.clock == 30 + 100 + 30 + 100
    assert [s.cost for s in record.scored] == [130, 260]
    assert record.tokens == 600  # probes by likelihood generate none
    assert [n for n, _ in search.seen] == [0, 1, 2, 3, 4, 5]
    probes = [e for _, e in search.seen if e.signal]
    assert probes[0].items["a"] == ((0, 1, 2, 3), pytest.approx([-0.7] * 4))
    assert probes[0].slopes == {name: pytest.approx([0.5 * math.exp(-0.35)]) for name in "ab"}
    assert all(not e.slopes for _, e in search.seen if not e.signal)


def test_a_probe_with_slopes_has_to_fit_the_budget_as_it_counts() -> None:
    search = Prober(genomes(0.3, 0.7, 0.6), slopes=True)
    record = drive(bed(), lambda _: search, budget=159)

    assert (record.probes, record.cost) == (1, 130)


def test_several_workers_share_a_candidate_of_a_guided_search() -> None:
    search = Prober(genomes(0.3, 0.7, 0.6, 0.9), slopes=True)
    record = drive(bed(), lambda _: search, budget=260, workers=2)

    # Probe 2 ends at 30, one half of candidate 3 at 50, its other half at 80, and so does probe 4,
    # which is asked for once all of 3 is under way; the halves of 5 take from 80 to 130.
    assert [n for n, e in search.seen] == [0, 1, 2, 3, 3, 4, 5, 5]
    assert (record.cost, record.clock) == (260, 130)
    positions = [at for n, e in search.seen if n == 3 for at in e.items["a"][0]]
    assert sorted(positions) == list(range(40))
    assert [s.values for s in record.scored] == [
        {"a": 0.7, "b": pytest.approx(0.7)},
        {"a": 0.9, "b": pytest.approx(0.9)},
    ]


def test_the_blocks_and_fitness_that_a_search_is_given_are_those_of_the_bed() -> None:
    given: list[Measured] = []

    def make(measured: Measured) -> FakeSearch:
        given.append(measured)
        return FakeSearch([])

    drive(bed(), make, budget=100)
    assert given[0].blocks == blocks_of(bed())
    assert given[0].signals == {"a", "b"}
    assert given[0].slopes
    assert given[0].fitness({"a": 0.25, "b": 0.75}) == (0.5, 0.25)


def test_races_end_early_for_what_the_front_beats_and_for_nothing_else() -> None:
    search = FakeSearch(genomes(0.0, 0.9, 0.1, 0.95))
    record = drive(bed(), lambda _: search, budget=400, level=0.05)

    assert [d.genome for d in record.dropped] == genomes(0.0, 0.1)
    assert all(d.items in (10, 25, 50) for d in record.dropped)
    assert [d.before for d in record.dropped] == [0, 1]
    assert [s.genome for s in record.scored] == genomes(0.9, 0.95)
    assert race(bed(), record) == {"entered": 2, "false_drops": 0}
    wrong = Record(record.references, record.scored[:1], [Dropped((0.95,), 50, 1)])
    assert race(bed(), wrong) == {"entered": 1, "false_drops": 1}
    assert record.cost == 200 + sum(d.items for d in record.dropped)
    estimates = {c.candidate: c.scores for c in search.calls if c.kind == "tell"}
    assert estimates[2][0] < 0.2  # what the score would be


def test_workers_share_the_clock_and_not_the_cost() -> None:
    alone = drive(bed(), lambda _: FakeSearch(genomes(*[0.5] * 8)), budget=800)
    four = drive(bed(), lambda _: FakeSearch(genomes(*[0.5] * 8)), budget=800, workers=4)

    assert (alone.cost, alone.clock) == (800, 800)
    assert (four.cost, four.clock) == (800, 200)


def test_what_is_told_late_is_not_known_early() -> None:
    search = FakeSearch(genomes(*[0.5] * 4))
    drive(bed(), lambda _: search, budget=400, workers=2)
    kinds = [c.kind for c in search.calls if c.candidate > 1]

    assert kinds == ["ask", "ask", "tell", "ask", "tell", "ask", "tell", "tell"]


def test_the_curve_steps_where_something_rose() -> None:
    record = drive(bed(), lambda _: FakeSearch(genomes(0.7, 0.6, 0.9)), budget=300)
    found = curve(bed(), record)

    assert found.cost == (0, 100, 300)
    assert found.tokens == (0, 300, 900)
    assert found.best == pytest.approx((0.5, 0.7, 0.9))
    assert found.hypervolume == pytest.approx((0.25, 0.49, 0.81))
    assert chosen(record)["best"].genome == (0.9,)


def test_readings_of_a_curve() -> None:
    steps = Curve(
        cost=(0, 100, 300), hypervolume=(0.1, 0.3, 0.5), best=(0.5, 0.6, 0.7), tokens=(0, 1, 2)
    )

    assert [steps.at(c) for c in (0, 99, 100, 299, 300, 999)] == [0.1, 0.1, 0.3, 0.3, 0.5, 0.5]
    assert steps.at(150, "best") == 0.6
    assert [steps.reaches(v) for v in (0.05, 0.3, 0.31)] == [0, 100, 300]
    assert np.isinf(steps.reaches(0.51))
    assert steps.area(400) == pytest.approx((100 * 0.1 + 200 * 0.3 + 100 * 0.5) / 400)
    assert steps.area(200) == pytest.approx((100 * 0.1 + 100 * 0.3) / 200)
