"""Slopes that a worker measures: those of finite differences, at the values of a plain probe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.backends import transformers as backend_module
from evomerge.backends.config import TransformersConfig
from evomerge.backends.transformers import TransformersBackend
from evomerge.checkpoints.layout import layout
from evomerge.checkpoints.sources import open_sources
from evomerge.engine import slopes as slopes_module
from evomerge.engine.tasks import Task
from evomerge.engine.worker import Worker
from evomerge.errors import ConfigError
from evomerge.grouping import Grouping
from evomerge.ledger.seen import Seen
from evomerge.recipe import Group, Recipe, Source
from evomerge.scoring.blocks import Part
from evomerge.scoring.data import Item
from evomerge.scoring.evaluate import planner
from evomerge.scoring.measures import KINDS
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import LogLikelihood
from evomerge.scoring.signals import soft
from evomerge.space import Space, SpaceSpec, bind
from tests.backends.conftest import image_messages, text_messages
from tests.merging import full_expert, lora_expert
from tests.models import tiny_llama, tiny_mixtral, tiny_qwen2_vl

EVERYTHING = r"\.weight$"
MODULES = ("attention", "mlp", "norm", "embedding")
CHOICES = ("n", "it is", "a")
TEXTS = ("what is", "the one of them, and more", "a", "how many in the end")


def items(pictures: bool) -> tuple[Item, ...]:
    """Texts, and between them pictures with a text."""
    asked = [text_messages(text) for text in TEXTS]
    if pictures:
        asked[1:3] = [image_messages(1, "what"), image_messages(2, "or the other", width=56)]
    return tuple(
        Item(str(i), messages, CHOICES[i % 3], CHOICES) for i, messages in enumerate(asked)
    )


def objectives(pictures: bool = False) -> tuple[Objective, ...]:
    kinds: dict[str, dict[str, Any]] = {
        "answer": {"metric": "exact_match", "max_new_tokens": 3},
        "choice": {"normalise": "tokens"},
    }
    return tuple(
        Objective(
            kind,
            "maximise",
            KINDS[kind].model_validate({"name": kind, "kind": kind, "data": {"search": "x"}, **w}),
            {"search": items(pictures)},
        )
        for kind, w in kinds.items()
    )


@dataclass(frozen=True)
class Case:
    """A worker, and a point of its space."""

    worker: Worker
    space: Space
    genome: tuple[float, ...]

    @property
    def recipe(self) -> Recipe:
        return self.space.recipe(self.genome)

    def asked(self, recipe: Recipe, slopes: bool, blocks: Sequence[int] = (0, 1, 2, 3)) -> Seen:
        """What the worker sees of a recipe's signals."""
        task = Task(0, recipe, "search", Part(tuple(blocks), True, slopes))
        [outcome] = self.worker.run([task])
        assert outcome.seen is not None, outcome.reason
        return outcome.seen

    def weights(self) -> list[tuple[int, str]]:
        """Group and expert of each slope."""
        groups = self.recipe.parameters
        return [(i, e) for i, group in enumerate(groups) for e in group.values["weight"]]

    def moved(self, at: tuple[int, str], step: float) -> Recipe:
        """The recipe with one weight moved."""
        group, expert = at
        found = list(self.recipe.parameters)
        weight = dict(found[group].values["weight"])
        weight[expert] += step
        values = {**found[group].values, "weight": weight}
        found[group] = Group(tensors=found[group].tensors, **values)
        return self.recipe.model_copy(update={"parameters": tuple(found)})

    def differences(self, at: tuple[int, str], step: float = 0.004) -> dict[str, float]:
        """Derivatives of the mean soft scores by one weight, central, of fourth order."""

        def means(by: float) -> dict[str, float]:
            seen = self.asked(self.moved(at, by), slopes=False)
            return {name: float(np.mean(soft(values))) for name, values in seen.items.items()}

        near, far = (
            {n: up - means(-by)[n] for n, up in means(by).items()} for by in (step, 2 * step)
        )
        return {name: (8 * near[name] - far[name]) / (12 * step) for name in near}


def opened(
    base: Path,
    experts: dict[str, Path],
    pictures: bool = False,
    towers: tuple[str, ...] = ("language",),
    **config: Any,
) -> Case:
    sources = open_sources(str(base), {n: str(p) for n, p in experts.items()})
    space = bind(
        SpaceSpec(
            method="task_arithmetic",
            groups=Grouping(towers=towers, depth="each", modules=MODULES),
            genes={"weight": {"per": ["expert", "group"]}},
        ),
        Source(path=str(base)),
        {name: Source(path=str(path)) for name, path in experts.items()},
        layout(sources.base.tensors),
        frozenset().union(*(e.changed for e in sources.experts.values())),
    )
    # float64 is none of the settings: a model's arithmetic for tests alone
    settings = TransformersConfig(device="cpu").model_copy(update=config)
    worker = Worker(sources, objectives(pictures), settings)
    genome = np.linspace(0.1, 0.6, space.dimension)
    genome[1] = 0.0  # a weight of 0 has a slope too
    return Case(worker, space, tuple(genome.tolist()))


def dense_mixture(path: Path) -> Path:
    """A mixture that asks all its experts: a choice among them would jump between two points."""
    file = tiny_mixtral(path) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "num_experts_per_tok": config["num_local_experts"]}))
    return path


def full(base: Path) -> dict[str, Path]:
    # not in the order in which a method gets them
    return {n: full_expert(base, base.parent / n, s, EVERYTHING) for s, n in enumerate("ba")}


def lora(base: Path) -> dict[str, Path]:
    return {n: lora_expert(base, base.parent / n, s) for s, n in enumerate("ba")}


CASES: dict[str, Callable[[Path], Case]] = {
    "llama": lambda p: opened(b := tiny_llama(p / "base"), full(b), dtype="float64"),
    "adapters": lambda p: opened(b := tiny_llama(p / "base"), lora(b), dtype="float64"),
    "tied": lambda p: opened(
        b := tiny_llama(p / "base", tie=True),
        full(b),
        towers=("language", "embeddings"),
        dtype="float64",
    ),
    "mixture": lambda p: opened(b := dense_mixture(p / "base"), full(b)),  # its kernel is float32
    "pictures": lambda p: opened(
        b := tiny_qwen2_vl(p / "base"),
        full(b),
        pictures=True,
        towers=("vision", "language"),
        dtype="float64",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_finite_differences(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    found = case.asked(case.recipe, slopes=True).slopes
    places = case.weights()
    assert {len(slopes) for slopes in found.values()} == {len(places)}
    largest = {name: max(map(abs, slopes)) for name, slopes in found.items()}
    assert min(largest.values()) > 1e-6

    chosen = [0, 1, *range(2, len(places), 3)]
    for at in chosen:
        for objective, expected in case.differences(places[at]).items():
            allowed = 2e-3 * largest[objective]
            assert found[objective][at] == pytest.approx(expected, rel=2e-3, abs=allowed), (
                objective,
                places[at],
            )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """In float32, with pictures among the texts."""
    base = tiny_qwen2_vl(tmp_path_factory.mktemp("slopes") / "base")
    return opened(base, full(base), pictures=True, towers=("vision", "language"))


def state(case: Case) -> list[tuple[str, torch.Tensor, bool]]:
    model, _, _ = backend(case).live()
    return [(n, p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()]


def backend(case: Case) -> TransformersBackend:
    assert isinstance(case.worker.backend, TransformersBackend)
    return case.worker.backend


def unchanged(case: Case, before: list[tuple[str, torch.Tensor, bool]]) -> bool:
    model, _, _ = backend(case).live()
    now = dict(model.named_parameters())
    return all(
        torch.equal(now[n], p) and now[n].requires_grad == r and now[n].grad is None
        for n, p, r in before
    )


def test_the_signals_are_those_of_a_plain_probe(case: Case) -> None:
    plain, sloped = (case.asked(case.recipe, slopes) for slopes in (False, True))

    assert (sloped.digest, sloped.tokens, plain.slopes) == (plain.digest, plain.tokens, {})
    for name, values in plain.items.items():
        assert sloped.items[name] == pytest.approx(values, abs=1e-4)  # other batches, float32
    assert set(sloped.timing) == {"instantiate", "prefill", "backward", "score"}


def test_in_float64_they_are_the_same_to_the_last_digits(tmp_path: Path) -> None:
    case = CASES["llama"](tmp_path)
    plain, sloped = (case.asked(case.recipe, slopes) for slopes in (False, True))
    for name, values in plain.items.items():
        # the log-softmax is in float32
        assert sloped.items[name] == pytest.approx(values, abs=1e-6)


def test_the_model_stays_as_it_was(case: Case) -> None:
    before = case.asked(case.recipe, slopes=False)
    held = state(case)
    case.asked(case.recipe, slopes=True)

    assert unchanged(case, held)
    assert case.asked(case.recipe, slopes=False).body() == before.body()


def test_measured_again_they_are_the_same(case: Case) -> None:
    first = case.asked(case.recipe, slopes=True)
    case.asked(case.space.recipe([0.5] * case.space.dimension), slopes=True)
    assert case.asked(case.recipe, slopes=True).body() == first.body()


@pytest.mark.parametrize(("batch", "followed"), [(64, 60), (1, 2048), (5, 100)])
def test_batches_do_not_matter(
    case: Case, monkeypatch: pytest.MonkeyPatch, batch: int, followed: int
) -> None:
    """Neither their rows nor their tokens; an item with more choices than a batch holds too."""
    expected = case.asked(case.recipe, slopes=True)
    monkeypatch.setattr(backend(case), "_batch", batch)
    monkeypatch.setattr(backend_module, "_FOLLOWED", followed)
    found = case.asked(case.recipe, slopes=True)

    for name, slopes in expected.slopes.items():
        assert found.slopes[name] == pytest.approx(slopes, rel=1e-3, abs=1e-4 * max(slopes))
        assert found.items[name] == pytest.approx(expected.items[name], abs=1e-4)


def test_objectives_drawn_back_one_by_one_give_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = case.asked(case.recipe, slopes=True)
    drawn: list[set[str]] = []
    draw_back = slopes_module.draw_back

    def noted(merge: Any, gradients: Any, weights: Any) -> Any:
        drawn.append(set(gradients))
        return draw_back(merge, gradients, weights)

    monkeypatch.setattr(slopes_module, "draw_back", noted)
    assert case.asked(case.recipe, slopes=True).body() == together.body()
    monkeypatch.setattr(slopes_module, "HELD", 0)
    assert case.asked(case.recipe, slopes=True).body() == together.body()
    assert drawn == [{"answer", "choice"}, {"answer"}, {"choice"}]


def test_of_a_part_they_are_of_its_items_alone(case: Case) -> None:
    """The mean over all items is that of the means over single ones."""
    whole = case.asked(case.recipe, slopes=True).slopes
    parts = [case.asked(case.recipe, slopes=True, blocks=[b]).slopes for b in range(4)]
    for name, slopes in whole.items():
        mean = np.mean([part[name] for part in parts], axis=0)
        assert slopes == pytest.approx(mean, rel=1e-3, abs=1e-4 * max(slopes))


def test_one_weight_for_all_has_the_sum_of_the_slopes(case: Case) -> None:
    def alike(each: bool) -> Recipe:
        groups = tuple(
            Group(tensors=g.tensors, weight={"b": 0.3, "a": 0.3} if each else 0.3)
            for g in case.recipe.parameters
        )
        return case.recipe.model_copy(update={"parameters": groups})

    apart, together = (case.asked(alike(each), slopes=True).slopes for each in (True, False))
    for name, slopes in together.items():
        pairs = np.reshape(apart[name], (-1, 2)).sum(axis=1)
        assert slopes == pytest.approx(pairs, rel=1e-5, abs=1e-6 * max(slopes))


def test_seven_digits_are_kept(case: Case) -> None:
    slopes = case.asked(case.recipe, slopes=True).slopes["answer"]
    assert all(slope == float(f"{slope:.7g}") for slope in slopes)
    assert len(json.dumps(slopes)) < 20 * len(slopes)


def test_after_a_failure_the_model_is_as_it_was(case: Case) -> None:
    case.asked(case.recipe, slopes=False)
    held = state(case)
    plan = planner(case.worker.objectives)("search", Part((0,), True, True))
    assert isinstance(plan.requests[0], LogLikelihood)

    def broken(at: int, responses: object) -> list[float]:
        raise RuntimeError("no signal")

    with pytest.raises(RuntimeError, match="no signal"):
        backend(case).gradients([plan.requests], broken, list(case.space.moves(held_names(case))))
    assert unchanged(case, held)


def test_items_that_ask_nothing_are_passed_over(case: Case) -> None:
    case.asked(case.recipe, slopes=False)
    (request, *_) = planner(case.worker.objectives)("search", Part((0,), True)).requests
    weighed: list[int] = []

    def weigh(at: int, responses: Sequence[object]) -> list[float]:
        weighed.append(at)
        return [1.0 for _ in responses]

    answers, gradients = backend(case).gradients([[], [request], []], weigh, held_names(case))
    assert [len(each) for each in answers] == [0, 1, 0]
    assert weighed == [1]
    assert any(gradient.any() for gradient in gradients.values())


def held_names(case: Case) -> list[str]:
    return list(case.worker.sources.base.tensors)


def test_a_slope_that_is_not_finite_is_the_candidates_failure(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend(case).gradients

    def overflowing(*arguments: Any) -> Any:
        answers, gradients = made(*arguments)
        return answers, {name: gradient * torch.inf for name, gradient in gradients.items()}

    monkeypatch.setattr(backend(case), "gradients", overflowing)
    task = Task(0, case.recipe, "search", Part((0,), True, True))
    [outcome] = case.worker.run([task])
    assert outcome.reason is not None
    assert outcome.reason.startswith("CandidateError: a slope of answer is not finite")
    assert not outcome.unexpected


def test_a_device_too_small_for_them_ends_the_run_with_a_remedy(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    task = Task(0, case.recipe, "search", Part((0,), True, True))
    monkeypatch.setattr(case.worker, "_slopes_fit", False)
    with monkeypatch.context() as patched:
        patched.setattr(slopes_module, "measure", full)
        with pytest.raises(ConfigError, match="slopes: false"):
            case.worker.run([task])
    assert case.worker.run([task])[0].seen is not None

    monkeypatch.setattr(slopes_module, "measure", full)
    [outcome] = case.worker.run([task])
    assert outcome.lost  # they had fitted: another worker may do better
