"""RegMean++'s Grams and Sens-Merging's sensitivities against plain transformers."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.backends.transformers import TransformersBackend
from evomerge.calibrate import joint
from evomerge.calibrate.store import open_store
from evomerge.calibrate.subject import Subject
from evomerge.checkpoints.catalog import fingerprint
from evomerge.checkpoints.statistics import Origin, Statistics
from tests.calibrate.world import (
    asked,
    inputs_of,
    loglikelihood,
    objectives_of,
    plain_model,
    relative,
    sources_of,
    statistics,
)

EXPERTS = ("adds", "names")
A = 0.7


@pytest.fixture(scope="module")
def collected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    out = tmp_path_factory.mktemp("out") / "s"
    return statistics(world, out, "gram", "merged_gram", "sensitivity", off_diagonal=A)


def regmean_by_hand(weights: list[torch.Tensor], inputs: list[torch.Tensor]) -> torch.Tensor:
    """(Σ Ĝ)⁻¹ Σ Ĝ W of the weights as (in, out), off-diagonal entries shrunk by A."""
    grams = [x.T @ x / len(x) for x in inputs]
    shrunk = [A * g + (1 - A) * torch.diag(g.diagonal()) for g in grams]
    right = sum(g @ w.double().T for g, w in zip(shrunk, weights, strict=True))
    return torch.linalg.solve(sum(shrunk), right).T


def test_merged_gram(world: Path, collected: Statistics) -> None:
    """The blocks merged one after the other in float64, every expert's run written out."""
    models = {expert: plain_model(world, expert).double() for expert in EXPERTS}
    mixed = {expert: plain_model(world, expert).double() for expert in EXPERTS}  # merged so far

    def average(names: list[str]) -> None:
        for name in names:
            mean = torch.stack([m.get_parameter(name).data for m in models.values()]).mean(dim=0)
            for model in mixed.values():
                model.get_parameter(name).data.copy_(mean)

    every = [name for name, _ in models["adds"].named_parameters()]
    average([name for name in every if ".layers." not in name])
    for block in (0, 1):
        own = [name for name in every if f".layers.{block}." in name]
        matrices = [name for name in own if "_proj" in name]
        seen: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for expert in EXPERTS:
            for name in matrices:
                with inputs_of(mixed[expert], name) as found, torch.no_grad():
                    for ids, _ in asked(world, expert):
                        mixed[expert](ids)
                seen[name][expert] = x = torch.cat(found)
                wanted = x.T @ x / len(x)
                # float32, and sums that were solved for: errors of one block grow in the next
                assert relative(collected.read("merged_gram", expert, name), wanted) < 1e-4
        average([name for name in own if name not in matrices])
        for name in matrices:
            weights = [m.get_parameter(name).data for m in models.values()]
            merged = regmean_by_hand(weights, [seen[name][e] for e in EXPERTS])
            for model in mixed.values():
                model.get_parameter(name).data.copy_(merged)


def test_merging_the_blocks_before_changes_the_grams_behind(collected: Statistics) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    for expert in EXPERTS:
        gram = collected.read("gram", expert, name)
        assert gram is not None
        assert relative(collected.read("merged_gram", expert, name), gram.double()) > 0.01


def test_sensitivity(world: Path, collected: Statistics) -> None:
    for expert in EXPERTS:
        model = plain_model(world, expert).double()
        sums: dict[str, float] = defaultdict(float)
        for ids, answer in asked(world, expert):
            model.zero_grad()
            (-loglikelihood(model, ids, answer) / answer).backward()
            for name, p in model.named_parameters():
                layer = ".".join(name.split(".")[:3]) if ".layers." in name else name
                sums[layer] += float((p.detach() * p.grad).abs().sum())
        assert len(sums) == 5  # two blocks, embedding, norm, head
        norm = math.sqrt(sum(s * s for s in sums.values()))
        for name, layer in {
            "model.layers.1.self_attn.q_proj.weight": "model.layers.1",
            "model.layers.0.mlp.gate_proj.weight": "model.layers.0",
            "lm_head.weight": "lm_head.weight",
        }.items():
            found = collected.read("sensitivity", expert, name)
            assert found is not None
            assert found.shape == (2,)
            assert float(found[0]) == pytest.approx(sums[layer] / norm, rel=1e-4)


def test_distances_of_logits(world: Path, collected: Statistics) -> None:
    models = {expert: plain_model(world, expert).double() for expert in EXPERTS}
    for expert, other in (EXPERTS, EXPERTS[::-1]):
        distances = []
        with torch.no_grad():
            for ids, answer in asked(world, other):
                apart = models[expert](ids).logits[0] - models[other](ids).logits[0]
                distances.append(apart[-answer - 1 : -1].square().sum(dim=1).sqrt().mean())
        found = collected.read("sensitivity", expert, "lm_head.weight")
        assert found is not None
        assert float(found[1]) == pytest.approx(float(torch.stack(distances).mean()), rel=1e-4)


def test_a_single_expert_is_at_distance_zero(world: Path, tmp_path: Path) -> None:
    found = statistics(
        world, tmp_path / "s", "sensitivity", sources=sources_of(world, ["adds"]), items=2
    ).read("sensitivity", "adds", "lm_head.weight")
    assert found is not None
    assert float(found[1]) == 0
    assert 0 < float(found[0]) < 1


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_base_is_back_afterwards(world: Path, tmp_path: Path, interrupted: bool) -> None:
    backend = TransformersBackend(world / "base", device="cpu")
    backend.open()
    sources = sources_of(world)
    subject = Subject(backend, sources)
    before = {name: t.clone() for name, t in subject.model.state_dict().items()}
    items = [o.items("search")[:2] for o in objectives_of(world)]
    examples: dict[str, Any] = {
        e: [subject.example(i) for i in own] for e, own in zip(EXPERTS, items, strict=True)
    }

    def step(done: int, total: int) -> None:
        if interrupted and done == 3:  # the first block is merged
            raise KeyboardInterrupt

    def run() -> None:
        with open_store(tmp_path / "s", fingerprint(sources.base)) as store:
            drafts = {
                e: store.begin(e, "merged_gram", Origin("0" * 64, 2, 9, "0" * 64)) for e in EXPERTS
            }
            joint.merged_gram(subject, examples, drafts, 1 << 30, A, step)

    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    subject.become("adds")
    subject.become("base")
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
