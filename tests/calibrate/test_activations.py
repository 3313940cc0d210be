"""Grams and magnitudes against plain transformers, and how they are collected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evomerge.calibrate.subject import passes
from evomerge.checkpoints.sources import open_sources
from evomerge.checkpoints.statistics import Statistics, open_statistics
from tests.calibrate.world import (
    asked,
    collect,
    objectives_of,
    plain_inputs,
    relative,
    statistics,
    write_objective,
)
from tests.merging import full_expert, tensors_of
from tests.models import tiny_mixtral, tiny_qwen2_vl

LAYERS = [
    f"model.layers.{block}.{layer}.weight"
    for block in (0, 1)
    for layer in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]


@pytest.fixture(scope="module")
def collected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return statistics(world, tmp_path_factory.mktemp("out") / "s", "gram", "magnitude")


@pytest.mark.parametrize("source", ["adds", "names"])  # a full expert and a LoRA expert
@pytest.mark.parametrize("layer", LAYERS)
def test_gram(world: Path, collected: Statistics, source: str, layer: str) -> None:
    x = plain_inputs(world, source, source, layer)
    assert relative(collected.read("gram", source, layer), x.T @ x / len(x)) < 2e-6


def test_the_first_layer_by_hand(world: Path, collected: Statistics) -> None:
    """Embeddings, scaled to root mean square 1 and by the norm's weight: no model runs."""
    weights = {name: t.double() for name, t in tensors_of(world / "adds").items()}
    tokens = torch.cat([ids[0] for ids, _ in asked(world, "adds")])
    x = weights["model.embed_tokens.weight"][tokens]
    x = x / (x.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    x = x * weights["model.layers.0.input_layernorm.weight"]
    found = collected.read("gram", "adds", "model.layers.0.self_attn.q_proj.weight")
    assert relative(found, x.T @ x / len(x)) < 2e-6


@pytest.mark.parametrize("layer", LAYERS[3:5])
def test_magnitude_is_the_bases_over_the_items_of_all(
    world: Path, collected: Statistics, layer: str
) -> None:
    """Ten items, so five of each objective: every second one."""
    found = []
    for task in ("adds", "names"):
        lengths = [ids.shape[1] for ids, _ in asked(world, task)]
        found += list(plain_inputs(world, "base", task, layer).split(lengths))[::2]
    x = torch.cat(found)
    assert relative(collected.read("magnitude", "base", layer), x.abs().mean(dim=0)) < 2e-6
    assert collected.read("gram", "base", layer) is None
    assert collected.read("magnitude", "adds", layer) is None


def test_symmetric_and_of_layers_only(collected: Statistics) -> None:
    (grams,) = (c for c in collected.collections if (c.kind, c.source) == ("gram", "adds"))
    assert len(grams.tensors) == 14  # no embedding, head or norm, although this expert changes them
    for name in grams.tensors:
        gram = collected.read("gram", "adds", name)
        assert gram is not None
        assert torch.equal(gram, gram.T)
    assert grams.origin.items == 10


def test_layers_with_the_same_input_share_a_file(collected: Statistics) -> None:
    (grams,) = (c for c in collected.collections if (c.kind, c.source) == ("gram", "adds"))
    for block in (0, 1):
        at = f"model.layers.{block}"
        q, k, v, o = (grams.tensors[f"{at}.self_attn.{n}_proj.weight"] for n in "qkvo")
        gate, up = (grams.tensors[f"{at}.mlp.{n}_proj.weight"] for n in ("gate", "up"))
        assert q == k == v
        assert gate == up
        assert len({q, o, gate}) == 3
    assert len(set(grams.tensors.values())) == 8


@pytest.mark.parametrize("tie", [False, True])
def test_towers_and_images(tmp_path: Path, tie: bool) -> None:
    """The vision tower's tokens are patches; text without an image does not pass through it."""
    from tests.backends.conftest import picture
    from tests.backends.running import fresh
    from tests.backends.running import inputs_of as prompt_of

    base = tiny_qwen2_vl(tmp_path / "base", tie=tie)
    full_expert(base, tmp_path / "sees", 1, r"proj\.weight|qkv\.weight|mlp\.[02]\.weight|fc\d\.")
    write_objective(tmp_path, "sees", ["no picture"])
    image = {"type": "image", "image": picture(3)}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "what is it"}]}]
    with (tmp_path / "objectives" / "sees" / "search.jsonl").open("a") as stream:
        stream.write(json.dumps({"messages": messages, "answer": "noise"}) + "\n")
    collect(
        tmp_path,
        tmp_path / "s",
        "gram",
        sources=open_sources(str(base), {"sees": str(tmp_path / "sees")}),
        objectives=objectives_of(tmp_path, ["sees"]),
    )
    collected = open_statistics(str(tmp_path / "s"))
    model = fresh(tmp_path / "sees")
    names = {
        "visual.blocks.0.attn.qkv.weight": model.model.visual.blocks[0].attn.qkv,
        "visual.blocks.0.mlp.fc2.weight": model.model.visual.blocks[0].mlp.fc2,
        "visual.merger.mlp.2.weight": model.model.visual.merger.mlp[2],
    }
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name, module in names.items():
        module.register_forward_hook(
            lambda m, args, out, name=name: seen[name].append(args[0].double().flatten(0, -2))
        )
    with torch.no_grad():
        model(**prompt_of(tmp_path / "sees", model, messages))
    for name, inputs in seen.items():
        (x,) = inputs
        assert relative(collected.read("gram", "sees", name), x.T @ x / len(x)) < 2e-6
    language = collected.read("gram", "sees", "model.layers.1.mlp.down_proj.weight")
    assert language is not None


def test_passes() -> None:
    sizes = {"a": 4, "b": 5, "c": 20, "d": 1, "e": 1, "f": 9}
    assert passes(sizes, 10) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert passes(sizes, 11) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert passes(sizes, 1) == [[name] for name in sizes]
    assert passes(sizes, 99) == [list(sizes)]
    assert passes({}, 99) == []


@pytest.mark.parametrize("width", [3, 1024, 1500])
def test_a_gram_is_mirrored_block_by_block(width: int) -> None:
    from evomerge.calibrate.activations import _Gram

    generator = torch.Generator().manual_seed(0)
    total = _Gram(width, torch.device("cpu"))
    x = torch.randn(2, 5, width, generator=generator)
    total.add(x)
    total.total += 1e-9 * torch.randn(width, width, generator=generator, dtype=torch.float64)
    mean = total.mean()
    assert torch.equal(mean, mean.T)
    rows = x.reshape(10, width).double()
    assert relative(mean, rows.T @ rows / 10) < 1e-6


def test_what_no_linear_layer_holds_alone_is_left_out_and_named(tmp_path: Path) -> None:
    base = tiny_mixtral(tmp_path / "base")
    full_expert(base, tmp_path / "mixes", 1, r"w1\.weight|q_proj\.weight")
    write_objective(tmp_path, "mixes", ["a b", "the"])
    options = {
        "sources": open_sources(str(base), {"mixes": str(tmp_path / "mixes")}),
        "objectives": objectives_of(tmp_path, ["mixes"]),
    }
    report = collect(tmp_path, tmp_path / "s", "gram", "fisher", **options)
    collected = open_statistics(str(tmp_path / "s"))
    for kind in ("gram", "fisher"):
        assert collected.read(kind, "mixes", "model.layers.0.self_attn.q_proj.weight") is not None
        fused = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
        assert collected.read(kind, "mixes", fused) is None
        assert any(note.startswith(f"{kind} ") and fused in note for note in report.notes)


def test_a_conv1d_is_left_out_and_named(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.models import tiny_tokenizer, vocabulary_size

    config = GPT2Config(
        vocab_size=vocabulary_size(), n_embd=16, n_layer=1, n_head=2, n_positions=128
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    full_expert(tmp_path / "base", tmp_path / "old", 1, r"c_fc\.weight")
    write_objective(tmp_path, "old", ["a b"])
    report = collect(
        tmp_path,
        tmp_path / "s",
        "gram",
        "fisher",
        sources=open_sources(str(tmp_path / "base"), {"old": str(tmp_path / "old")}),
        objectives=objectives_of(tmp_path, ["old"]),
    )
    (note,) = report.notes
    assert note.startswith("gram ")
    assert "h.0.mlp.c_fc.weight" in note
    (gram, fisher) = (line.collection.tensors for line in report.lines)
    assert not gram
    assert len(fisher) == 1
