"""The beds of real models answer as a search's worker does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MethodType
from typing import cast

import numpy as np
import pytest
import torch

from benchmarks.search import real
from benchmarks.search.bed import Bed, all_positions
from evomerge.backends.mapping import live_names
from evomerge.checkpoints.layout import layout
from evomerge.engine.tasks import Task
from evomerge.engine.worker import open_worker
from evomerge.recipe import Selector
from evomerge.scoring.blocks import Part, blocks
from evomerge.search.base import Genome

ITEMS = 12


@pytest.fixture(scope="module", params=["text", "zoo-full"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "FOLDER", tmp_path_factory.mktemp("directions"))
        yield real.bed(f"{request.param}@{ITEMS}")


def near_merge(bed: Bed, seed: int) -> Genome:
    merge = np.array(bed.references["swudi"])
    noise = np.random.default_rng(seed).normal(0, 0.1, len(merge))
    return tuple(np.clip(merge + noise, 0, 1).tolist())


def model_of(bed: Bed) -> real.Model:
    return cast("real.Model", cast("MethodType", bed.slopes).__self__)


def test_a_bed_judges_items_as_the_engine_does(bed: Bed) -> None:
    study = model_of(bed).study
    worker = open_worker(study.experiment, study.sources, study.objectives)
    genome = near_merge(bed, 0)

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


def test_slopes_are_those_that_the_engine_measures(bed: Bed) -> None:
    study = model_of(bed).study
    objectives = study.objectives[:2]
    worker = open_worker(study.experiment, study.sources, objectives)
    block, genome = blocks(objectives)[0], near_merge(bed, 5)
    task = Task(0, study.space.recipe(genome), "search", Part((0,), signal=True, slopes=True))
    (outcome,) = worker.run([task])
    model = real.Model(replace(study, objectives=objectives), 1 + max(map(max, block.values())))

    signals, slopes = model.slopes(genome, block)
    assert outcome.seen is not None
    for name, by_weight in outcome.seen.slopes.items():
        expected = study.space.slopes(genome, by_weight)
        assert signals[name] == pytest.approx(outcome.seen.items[name], abs=1e-4)
        assert slopes[name] == pytest.approx(expected, abs=1e-3 * np.abs(expected).max())


def test_slopes_are_those_of_the_weights_before_they_are_rounded(bed: Bed) -> None:
    model, genome = model_of(bed), near_merge(bed, 1)
    asked = {name: (3, 0, 7, 8, 1) for name in bed.objectives[:2]}
    signals, slopes = bed.slopes(genome, asked)
    for name, found in bed.signal(genome, asked).items():
        assert signals[name] == pytest.approx(found, abs=1e-5)

    # The bank rounds weights to bfloat16, so steps are taken in the live float32 parameters.
    experts = model.study.sources.experts
    base = model.study.sources.base
    live = live_names(model.model, base.tensors)[0]
    h = 0.004
    for expert, cell in (("swudi", 0), (next(iter(experts)), -1)):
        selector = model.study.space.cells[cell].selector
        gene = [g.name for g in bed.genes].index(f"weight[{expert}] {selector}")
        tensors = {
            n for n, p in layout(base.tensors).items() if Selector.parse(selector).matches(p)
        }
        at = {n: model.model.get_parameter(live[n]) for n in tensors}
        before = {n: p.detach().clone() for n, p in at.items()}
        means = []
        for sign in (1, -1):
            for n, p in at.items():
                # The genes are [-0.5, 2.0] wide.
                step = sign * h * 2.5 * (experts[expert].read(n) - base.read(n).float())
                p.data.copy_(before[n] + step)
            found = bed.signal(genome, asked)
            means.append({n: np.exp(np.array(v) / 2).mean() for n, v in found.items()})
        for n, p in at.items():
            p.data.copy_(before[n])
        for name in asked:
            expected = (means[0][name] - means[1][name]) / (2 * h)
            assert slopes[name][gene] == pytest.approx(expected, rel=0.01, abs=5e-5)


def test_slopes_leave_the_model_as_it_was(bed: Bed) -> None:
    model = model_of(bed)
    one, other = near_merge(bed, 3), near_merge(bed, 4)
    asked = {bed.objectives[0]: (0, 1, 2)}
    signal = bed.signal(one, asked)
    bed.slopes(other, asked)
    bed.metric(one, asked)
    before = {n: p.detach().clone() for n, p in model.model.named_parameters()}

    values, slopes = bed.slopes(one, asked)
    assert all(torch.equal(p, before[n]) for n, p in model.model.named_parameters())
    assert not any(p.requires_grad for p in model.model.parameters())
    assert bed.slopes(one, asked) == (values, slopes)
    assert bed.signal(one, asked) == signal
