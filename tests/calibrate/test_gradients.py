"""Fisher and second moments against autograd by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.backends.transformers import TransformersBackend
from evomerge.calibrate.gradients import gradients
from evomerge.calibrate.subject import Subject
from evomerge.checkpoints.sources import open_sources
from evomerge.checkpoints.statistics import Statistics
from tests.calibrate.world import (
    asked,
    loglikelihood,
    objectives_of,
    plain_model,
    relative,
    sources_of,
    statistics,
)
from tests.merging import full_expert
from tests.models import tiny_llama

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.1.input_layernorm.weight",
    "lm_head.weight",
]


@pytest.fixture(scope="module")
def collected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return statistics(world, tmp_path_factory.mktemp("out") / "s", "fisher", "second_moment")


def by_hand(
    folder: Path, source: str, task: str, weigh: Any = lambda value, answer: value
) -> Iterator[dict[str, torch.Tensor]]:
    """The gradient of each item's log-likelihood in float64, at the source's weights."""
    model = plain_model(folder, source).double()
    parameters = {name: model.get_parameter(name) for name in NAMES}
    for ids, answer in asked(folder, task):
        value = weigh(loglikelihood(model, ids, answer), answer)
        found = torch.autograd.grad(value, list(parameters.values()))
        yield dict(zip(NAMES, found, strict=True))


@pytest.mark.parametrize("source", ["adds", "names"])  # a full expert and a LoRA expert
def test_fisher(world: Path, collected: Statistics, source: str) -> None:
    squares = [{n: g.square() for n, g in each.items()} for each in by_hand(world, source, source)]
    for name in NAMES:
        wanted = torch.stack([each[name] for each in squares]).mean(dim=0)
        assert relative(collected.read("fisher", source, name), wanted) < 1e-4


def test_second_moment(world: Path, collected: Statistics) -> None:
    """Ten items: a batch of eight, then one of two."""
    answers = [answer for _, answer in asked(world, "adds")]
    steps = list(by_hand(world, "adds", "adds", lambda value, answer: -value))
    for name in NAMES:
        first = sum(each[name] for each in steps[:8]) / sum(answers[:8])
        second = sum(each[name] for each in steps[8:]) / sum(answers[8:])
        average = 0.999 * (0.001 * first.square()) + 0.001 * second.square()
        wanted = average / (1 - 0.999**2)
        assert relative(collected.read("second_moment", "adds", name), wanted) < 1e-4


def test_everything_that_an_expert_changes_is_covered(collected: Statistics) -> None:
    for kind in ("fisher", "second_moment"):
        for each in (c for c in collected.collections if c.kind == kind):
            assert len(each.tensors) == 2 * 9 + 3  # also of the LoRA expert, that changes fewer


def test_a_tied_weight_gets_the_gradient_of_both_uses(tmp_path: Path) -> None:
    from tests.calibrate.world import write_objective

    base = tiny_llama(tmp_path / "base", tie=True)
    full_expert(base, tmp_path / "ties", 1, r"embed")
    write_objective(tmp_path, "ties", ["a the b", "in"])
    found = statistics(
        tmp_path,
        tmp_path / "s",
        "fisher",
        sources=open_sources(str(base), {"ties": str(tmp_path / "ties")}),
        objectives=objectives_of(tmp_path, ["ties"]),
    )
    model = plain_model(tmp_path, "ties").double()
    table = model.get_parameter("model.embed_tokens.weight")
    assert model.lm_head.weight is table
    squares = [
        torch.autograd.grad(loglikelihood(model, ids, answer), table)[0].square()
        for ids, answer in asked(tmp_path, "ties")
    ]
    wanted = torch.stack(squares).mean(dim=0)
    assert relative(found.read("fisher", "ties", "model.embed_tokens.weight"), wanted) < 1e-4


def test_only_the_wanted_gradients_are_made_and_none_is_left(world: Path) -> None:
    backend = TransformersBackend(world / "base", device="cpu")
    backend.open()
    subject = Subject(backend, sources_of(world))
    item = objectives_of(world)[0].items("search")[0]
    frozen = subject.model.model.norm.weight.requires_grad_(False)
    seen: list[str] = []
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = {name: subject.parameters[name]}
    with gradients(subject, wanted, lambda name, gradient: seen.append(name)):
        assert [p for p in subject.model.parameters() if p.requires_grad] == [*wanted.values()]
        subject.loglikelihood(subject.example(item)).backward()
        assert all(p.grad is None for p in subject.model.parameters())
    assert seen == [name]
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in subject.model.parameters() if p is not frozen)
