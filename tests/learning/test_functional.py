"""The live model as a function of coefficients: the merge's own bits, and the true gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.backends.mapping import live_tensors
from evomerge.backends.prompts import collate
from evomerge.backends.transformers import TransformersBackend
from evomerge.checkpoints.layout import layout
from evomerge.checkpoints.sources import open_sources
from evomerge.errors import ConfigError
from evomerge.grouping import Grouping
from evomerge.instantiate import Merge
from evomerge.learning.coefficients import Coefficients, uniform
from evomerge.learning.functional import MergedModel, kept
from evomerge.recipe import Source
from evomerge.scoring.requests import Generate
from evomerge.space import Space, SpaceSpec, bind
from tests.backends.conftest import image_messages, text_messages
from tests.merging import full_expert, lora_expert, tensors_of, with_tensors
from tests.models import tiny_llama, tiny_llava, tiny_mixtral, tiny_qwen2_vl

EVERYTHING = r"\.weight$"
MODULES = ("attention", "mlp", "norm", "embedding")
TIES = {"scale": 1.0, "density": 0.5, "normalise": False}


class Case:
    """A tiny model with two experts, its live copy, in float64 so that differences are exact."""

    def __init__(
        self,
        base: Path,
        experts: dict[str, Path],
        images: bool = False,
        towers: Sequence[str] = ("language",),
        dtype: str = "float64",
    ) -> None:
        self.sources = open_sources(str(base), {n: str(p) for n, p in experts.items()})
        spec = SpaceSpec(
            method="task_arithmetic",
            groups=Grouping(towers=tuple(towers), depth="each", modules=MODULES),
            genes={"weight": {"per": ["expert", "group"]}},
        )
        self.space: Space = bind(
            spec,
            Source(path=str(base)),
            {name: Source(path=str(path)) for name, path in experts.items()},
            layout(self.sources.base.tensors),
            frozenset().union(*(e.changed for e in self.sources.experts.values())),
        )
        self.backend = TransformersBackend(base, device="cpu", dtype=dtype)
        self.backend.open()
        self.model, _, prompter = self.backend.live()
        self.live = live_tensors(self.model, self.sources.base)
        messages = [image_messages(1, "what"), image_messages(2, "or what")]
        if not images:
            messages = [text_messages("what is"), text_messages("the one of them")]
        prompts = [prompter.prompt(Generate(m, 1)) for m in messages]
        self.batch = collate(prompts, 0, self.model.device)

    def start(self, method: str = "task_arithmetic", **constants: Any) -> Coefficients:
        start = uniform(self.space, method, constants or {"scale": 1.0}, 0.3)
        rows = torch.linspace(-0.2, 0.8, 2 * len(start.groups)).view(-1, 2)
        rows[0, 0] = 0.0
        return start.at(rows.double().tolist())

    def merged(self, start: Coefficients) -> MergedModel:
        self.backend.load(Merge(start.recipe(self.space), self.sources).tensors())
        return MergedModel(self.model, self.live, start, self.space, self.sources)

    def loss(self, model: Any) -> torch.Tensor:
        logs = model(**self.batch, use_cache=False).logits[:, -2:].log_softmax(-1)
        return -logs[..., :5].mean()


def positive(base: Path, out: Path, seed: int) -> Path:
    """An expert with no negative entry in its task vector, so that no two ever contest a sign."""
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: t + 0.1 * torch.rand(t.shape, generator=generator) if "proj" in name else t
        for name, t in tensors_of(base).items()
    }
    return with_tensors(base, out, moved)


def dense_mixture(path: Path) -> Path:
    """A mixture that asks all its experts: a choice among them would jump between two points."""
    file = tiny_mixtral(path) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "num_experts_per_tok": config["num_local_experts"]}))
    return path


CASES: dict[str, tuple[Callable[[Path], Path], bool, list[str]]] = {
    "llama": (lambda p: tiny_llama(p / "base"), False, ["language"]),
    "tied": (lambda p: tiny_llama(p / "base", tie=True), False, ["language", "embeddings"]),
    "mixture": (lambda p: dense_mixture(p / "base"), False, ["language"]),
    "images": (lambda p: tiny_qwen2_vl(p / "base"), True, ["language", "vision", "embeddings"]),
    "llava": (lambda p: tiny_llava(p / "base"), True, ["language", "vision"]),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    make, images, towers = CASES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    base = make(root)
    experts = {n: full_expert(base, root / n, s, EVERYTHING) for s, n in enumerate("ab")}
    dtype = "float32" if request.param == "mixture" else "float64"  # all that its kernel takes
    return Case(base, experts, images, towers, dtype)


def lora_case(root: Path) -> Case:
    base = tiny_llama(root / "base")
    return Case(base, {n: lora_expert(base, root / n, s) for s, n in enumerate("ab")})


def same_bits(model: MergedModel, merge: Merge) -> None:
    made = dict(merge.tensors())
    assert made
    for name, spot in model._spots.items():
        weight = spot.of(model._leaves[spot.parameter].detach())
        assert torch.equal(weight, made[name].to(weight)), name


@pytest.mark.parametrize(("method", "constants"), [("task_arithmetic", {}), ("ties", TIES)])
def test_the_weights_are_those_of_the_recipe(
    case: Case, method: str, constants: dict[str, Any]
) -> None:
    start = case.start(method, **constants)
    model = case.merged(uniform(case.space, method, dict(start.constants), 0.1))
    model.place(torch.tensor(start.values))
    merge = Merge(start.recipe(case.space), case.sources)
    same_bits(model, merge)

    case.backend.load(merge.tensors())
    plain = case.model(**case.batch, use_cache=False).logits
    assert torch.equal(model(**case.batch, use_cache=False).logits, plain)


def differences(case: Case, model: MergedModel, start: Coefficients) -> torch.Tensor:
    """The loss's derivatives by central differences of fourth order."""
    at = torch.tensor(start.values, dtype=torch.float64)
    found = torch.zeros_like(at)
    step = 0.01

    def loss(shifted: torch.Tensor) -> float:
        model.place(shifted)
        return float(case.loss(model))

    with torch.no_grad():
        for index in torch.cartesian_prod(*(torch.arange(n) for n in at.shape)):
            one = torch.zeros_like(at)
            one[tuple(index)] = step
            near, far = loss(at + one) - loss(at - one), loss(at + 2 * one) - loss(at - 2 * one)
            found[tuple(index)] = (8 * near - far) / (12 * step)
    return found


def check_gradient(case: Case, start: Coefficients) -> None:
    model = case.merged(start)
    expected = differences(case, model, start)
    model.place(torch.tensor(start.values, dtype=torch.float64))
    case.loss(model).backward()
    largest = float(expected.abs().max())
    assert largest > 1e-2
    torch.testing.assert_close(model.gradient(), expected, rtol=1e-3, atol=1e-3 * largest)


def test_the_gradient_is_that_of_finite_differences(case: Case) -> None:
    """Also of a weight that is exactly 0, of tied, of stacked and of image towers' weights."""
    check_gradient(case, case.start())


def test_the_gradient_of_adapters(tmp_path: Path) -> None:
    case = lora_case(tmp_path)
    check_gradient(case, case.start())


def test_the_gradient_of_ties_between_elections(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    experts = {n: positive(base, tmp_path / n, s) for s, n in enumerate("ab")}
    case = Case(base, experts)
    start = uniform(case.space, "ties", TIES, 0.3)
    check_gradient(case, start)


def test_gradients_of_several_losses_add_up_until_the_next_place(tmp_path: Path) -> None:
    case = lora_case(tmp_path)
    start = case.start()
    model = case.merged(start)
    case.loss(model).backward()
    once = model.gradient()
    case.loss(model).backward()
    torch.testing.assert_close(model.gradient(), 2 * once)
    model.place(torch.tensor(start.values))
    assert not model.gradient().any()


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_experts_in_memory_or_not_give_the_same(tmp_path: Path, limit: int) -> None:
    case = lora_case(tmp_path)
    sources = kept(case.sources, case.space, limit)
    assert (sources is case.sources) == (limit == 0)
    start = case.start()
    merges = [Merge(start.recipe(case.space), s) for s in (case.sources, sources, sources)]
    first, *others = [dict(merge.tensors()) for merge in merges]
    for tensors in others:
        assert all(torch.equal(tensors[name], tensor) for name, tensor in first.items())


def test_a_tensor_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    case = lora_case(tmp_path)
    start = case.start()
    live = {name: t for name, t in case.live.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(ConfigError, match=r"up_proj.*is no part of the running model"):
        MergedModel(case.model, live, start, case.space, case.sources)
