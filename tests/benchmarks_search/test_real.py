"""The beds of real models answer as a search's worker does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import real
from benchmarks.search.bed import all_positions
from evomerge.engine.study import open_study
from evomerge.engine.tasks import Task
from evomerge.engine.worker import open_worker
from evomerge.scoring.blocks import Part, blocks

ITEMS = 12


@pytest.mark.parametrize("name", ["text", "zoo-full"])
def test_a_bed_judges_items_as_the_engine_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "FOLDER", tmp_path)
    bed = real.bed(f"{name}@{ITEMS}")
    study = open_study(real.experiment_of(name))
    worker = open_worker(study.experiment, study.sources, study.objectives)
    rng = np.random.default_rng(0)
    merge = np.array(bed.references["swudi"])
    genome = tuple(np.clip(merge + rng.normal(0, 0.1, len(merge)), 0, 1).tolist())

    right = bed.metric(genome, all_positions(bed))
    signal = bed.signal(genome, all_positions(bed))
    recipe = study.space.recipe(genome)
    scored = worker.score(recipe, "search")
    every = Part(tuple(range(len(blocks(study.objectives)))), signal=True)
    (outcome,) = worker.run([Task(0, recipe, "search", every)])

    values = [value for found in right.values() for value in found]
    assert 0 < sum(values) < len(values) == ITEMS * len(study.objectives)
    for objective, found in right.items():
        assert found == scored.items[objective][:ITEMS]
    assert outcome.seen is not None
    for objective, found in signal.items():
        assert found == pytest.approx(outcome.seen.items[objective][:ITEMS], abs=1e-4)
