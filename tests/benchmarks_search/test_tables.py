"""What is read out of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.search import page, tables
from benchmarks.search.asynchronous import efficiency
from benchmarks.search.drive import Curve
from benchmarks.search.run import read
from benchmarks.search.tables import (
    Runs,
    beds,
    best_rival,
    costs_to,
    duel,
    figure_of,
    levels_of,
    paired,
)

ITEMS, BUDGET = 10, 10


def runs(name: str, *seeds: Sequence[tuple[int, float]]) -> Runs:
    """Curves given as steps of (cost, hypervolume)."""
    curves = {}
    for seed, steps in enumerate(seeds):
        cost, values = zip(*steps, strict=True)
        curves[seed] = Curve(cost, values, values, tuple(4.0 * c for c in cost))
    lines = {seed: {"tokens": 4.0 * ITEMS * BUDGET} for seed in curves}
    return Runs(name, curves, lines, ITEMS, BUDGET)


SLOW = runs("cma", *([(0, 0.1), (50, 0.3), (100, v)] for v in (0.5, 0.6, 0.7)))
FLAT = runs("random", *([(0, 0.1), (100, 0.2)] for _ in range(3)))
QUICK = runs("auto", *([(0, 0.1), (20, 0.4), (30, 0.65)] for _ in range(3)))
ALL = {r.name: r for r in (SLOW, FLAT, QUICK)}


def test_the_best_rival_is_no_challenger_and_has_seeds_enough() -> None:
    lucky = runs("gp", [(0, 0.1), (10, 0.9)])
    assert best_rival({**ALL, "gp": lucky}) is SLOW
    assert best_rival({"auto": QUICK}) is None


def test_levels_are_shares_of_the_way_to_the_best_rival() -> None:
    assert levels_of(ALL, 0.5, shared=False) == pytest.approx({0: 0.3, 1: 0.35, 2: 0.4})
    assert levels_of(ALL, 0.5, shared=True) == pytest.approx(dict.fromkeys(range(3), 0.4))
    assert costs_to(SLOW, {0: 0.3, 1: 0.31, 2: 0.8}) == [5.0, 10.0, float("inf")]


def test_a_duel_by_instance_and_on_one_problem() -> None:
    by_instance = duel(ALL, shared=False)
    assert by_instance is not None
    assert by_instance.rival == "cma"
    assert by_instance.shares == (0.3, 0.3, float("inf"))
    assert by_instance.wins == by_instance.seeds == 3
    together = duel(ALL, shared=True)
    assert together is not None
    assert together.shares == together.tokens == (0.3, 0.3, 0.3)
    assert together.tenths[4] == (0.65, "cma", 0.3)
    assert together.tenths[9] == (0.65, "cma", 0.6)
    assert duel({"cma": SLOW}, shared=True) is None


def test_the_paired_test() -> None:
    # All of n = 6 differences positive: exact two-sided p = 2 / 2^6.
    assert paired([1.1, 2.2, 3.3, 4.4, 5.5, 6.6], [1, 2, 3, 4, 5, 6]) == pytest.approx(1 / 32)
    assert paired([1.0, 2.0], [1.0, 2.0]) == 1.0


def test_efficiency_is_items_of_one_worker_over_items_of_many() -> None:
    one = runs("auto", *([(0, 0.1), (20, 0.4), (40, 0.5)] for _ in range(3)))
    four = runs("auto", *([(0, 0.1), (50, 0.5)] for _ in range(3)))
    found = efficiency({1: one, 4: four}, 0.95)

    assert found[1][0] == 1.0
    assert found[4][0] == pytest.approx(0.8)


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "bed.jsonl"
    path.write_text('{"a":1}\n{"a":2}\n{"a"')

    assert read(path) == [{"a": 1}, {"a": 2}]
    assert path.read_text() == '{"a":1}\n{"a":2}\n'
    assert read(tmp_path / "none.jsonl") == []


def test_beds_of_fewer_items_come_last_below_a_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    full = ["text", "zoo-full", "zoo-lora", "analytic-10", "analytic-60", "analytic-300"]
    few = ["text@80", "zoo-full@80", "zoo-lora@80"]
    for bed in ("_overhead", *few, *reversed(full)):
        (tmp_path / f"{bed}.jsonl").touch()

    assert beds() == [*full, *few]
    assert [figure_of(bed) for bed in ("text", "text@80")] == [
        "search-text.png",
        "search-text-80.png",
    ]
    lines = "\n".join(page.sections()).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        *(f"### {bed}" for bed in full),
        "### Beds of 80 search items an objective",
        *(f"#### {bed}" for bed in few),
    ]
    assert "![anytime curves on zoo-full@80](search-zoo-full-80.png)" in lines
