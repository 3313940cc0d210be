from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.checkpoints.sources import open_sources
from evomerge.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Make = Callable[..., Path]

UP = "model.layers.0.mlp.down_proj.weight"


def moved(weights: Tensors, *names: str) -> Tensors:
    return {name: each + 1 if name in names else each.clone() for name, each in weights.items()}


def renamed(weights: Tensors, new: str) -> Tensors:
    return {
        name.replace("model.", new, 1) if name.startswith("model.") else name: each
        for name, each in weights.items()
    }


def fail(base: Path, **experts: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_sources(str(base), {name: str(path) for name, path in experts.items()})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_full_expert(make: Make, weights: Tensors) -> None:
    base = make("base", weights)
    tuned = moved(weights, UP, "model.norm.weight")
    sources = open_sources(str(base), {"x": str(make("x", tuned, shards=2))})
    expert = sources.experts["x"]
    assert expert.kind == "full"
    assert expert.reference == str(expert.path)
    assert expert.changed == {UP, "model.norm.weight"}
    assert all(torch.equal(expert.read(name), tuned[name]) for name in weights)
    assert sources.tied == {}
    assert list(sources.experts) == ["x"]


@pytest.mark.parametrize("new", ["language_model.model.", "model.language_model."])
def test_expert_with_other_names(make: Make, weights: Tensors, new: str) -> None:
    base = make("base", weights)
    tuned = moved(weights, UP)
    expert = open_sources(str(base), {"x": str(make("x", renamed(tuned, new)))}).experts["x"]
    assert expert.changed == {UP}
    assert all(torch.equal(expert.read(name), tuned[name]) for name in weights)


def test_reading_gives_the_callers_own_copy(make: Make, weights: Tensors) -> None:
    path = str(make("base", weights))
    expert = open_sources(path, {"x": path}).experts["x"]
    expert.read(UP).zero_()
    assert torch.equal(expert.read(UP), weights[UP])


def test_other_dtype_with_equal_numbers_is_no_change(make: Make, weights: Tensors) -> None:
    half = {name: each.bfloat16() for name, each in weights.items()}
    tuned = moved({name: each.float() for name, each in half.items()}, UP)
    expert = open_sources(str(make("base", half)), {"x": str(make("x", tuned))}).experts["x"]
    assert expert.changed == {UP}
    assert expert.read(UP).dtype == torch.float32
    assert torch.equal(expert.read(UP), tuned[UP])


def test_lora_expert(make: Make, make_adapter: Make, weights: Tensors) -> None:
    stem = "base_model.model.model.layers.0"
    a, b = torch.randn(2, 8), torch.randn(4, 2)
    adapter = make_adapter(
        "x",
        {
            f"{stem}.mlp.down_proj.lora_A.weight": a,
            f"{stem}.mlp.down_proj.lora_B.weight": b,
            f"{stem}.self_attn.q_proj.lora_A.weight": torch.randn(2, 4),
            f"{stem}.self_attn.q_proj.lora_B.weight": torch.zeros(4, 2),
        },
    )
    half = {name: each.bfloat16() for name, each in weights.items()}
    expert = open_sources(str(make("base", half)), {"x": str(adapter)}).experts["x"]
    assert expert.kind == "lora"
    assert expert.changed == {UP}
    torch.testing.assert_close(expert.read(UP), half[UP].float() + 2.0 * b @ a)
    for name in set(weights) - {UP}:
        assert torch.equal(expert.read(name), half[name].float())
        assert expert.read(name).dtype == torch.float32


def test_every_mismatch_of_every_expert_is_listed(
    make: Make, make_adapter: Make, weights: Tensors
) -> None:
    base = make("base", weights, config={"num_attention_heads": 4})
    missing = {name: each for name, each in weights.items() if name != UP}
    extra = weights | {"model.layers.1.mlp.down_proj.weight": torch.ones(1)}
    shape = weights | {"model.norm.weight": torch.ones(5), UP: torch.ones(8, 4)}
    words = weights | {
        "model.embed_tokens.weight": torch.ones(7, 4),
        "lm_head.weight": torch.ones(9, 4),
    }
    packed = weights | {UP: torch.ones(4, 8, dtype=torch.int8)}
    twice = weights | {"language_model.model.norm.weight": torch.ones(4)}
    cut = make("cut", weights) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])
    adapter = make_adapter(
        "adapter",
        {
            "base_model.model.model.layers.7.mlp.down_proj.lora_A.weight": torch.ones(2, 8),
            "base_model.model.model.layers.7.mlp.down_proj.lora_B.weight": torch.ones(4, 2),
            "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": torch.ones(2, 4),
            "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight": torch.ones(4, 2),
        },
    )
    message = fail(
        base,
        missing=make("missing", missing),
        extra=make("extra", extra),
        shape=make("shape", shape),
        words=make("words", words),
        packed=make("packed", packed),
        kind=make("kind", weights, config={"model_type": "mistral", "num_attention_heads": 2}),
        twice=make("twice", twice),
        cut=cut.parent,
        gone=base.parent / "gone",
        adapter=adapter,
    )
    for part in (
        f"missing: tensor '{UP}' is missing",
        "extra: tensor 'model.layers.1.mlp.down_proj.weight' is not in the base",
        "shape: tensor 'model.norm.weight' has shape [5], the base's has [4]",
        f"shape: tensor '{UP}' has shape [8, 4], the base's has [4, 8]",
        "words: vocabulary: 'model.embed_tokens.weight' has 7 rows, the base's has 6",
        "words: vocabulary: 'lm_head.weight' has 9 rows, the base's has 6",
        f"packed: tensor '{UP}' has dtype I8",
        "kind: architecture: model_type is 'mistral', the base's is 'llama'",
        "kind: architecture: num_attention_heads is 2, the base's is 4",
        "twice: tensors",
        "cut/model.safetensors is truncated",
        "gone' is no directory",
        "adapter: 'base_model.model.model.layers.7.mlp.down_proj.lora_B.weight' adapts",
        "adapter: tensor 'base_model.model.model.layers.0.mlp.down_proj.lora_B.weight' has shape "
        "[4, 4], the base's has [4, 8]",
    ):
        assert part in message
    assert message.count(";") == 13


def test_an_expert_that_fits_is_not_named(make: Make, weights: Tensors) -> None:
    good = make("good", weights)
    bad = make("bad", {name: each for name, each in weights.items() if name != UP})
    message = fail(make("base", weights), good=good, bad=bad)
    assert "bad: " in message
    assert "good: " not in message


def test_adapter_as_base(make: Make, make_adapter: Make, weights: Tensors) -> None:
    adapter = make_adapter("a", {"x.lora_A.weight": torch.ones(2, 4)})
    assert "is an adapter, expected a full checkpoint" in fail(adapter, x=make("x", weights))


def test_nan_and_inf_name_tensor_and_file(make: Make, make_adapter: Make, weights: Tensors) -> None:
    broken = moved(weights)
    broken[UP][0, 0] = float("nan")
    worse = moved(weights)
    worse["lm_head.weight"][0, 0] = float("inf")
    stem = "base_model.model.model.layers.0.mlp.down_proj"
    adapter = make_adapter(
        "lora",
        {
            f"{stem}.lora_A.weight": torch.full((2, 8), float("nan")),
            f"{stem}.lora_B.weight": torch.ones(4, 2),
        },
    )
    base, x = make("base", worse), make("x", broken)
    message = fail(base, x=x, lora=adapter)
    assert f"base: tensor 'lm_head.weight' of {base / 'model.safetensors'}" in message
    assert f"x: tensor '{UP}' of {x / 'model.safetensors'}" in message
    assert f"lora: tensor '{stem}.lora_A.weight' of {adapter}" in message
    assert message.count(";") == 2


def tie(weights: Tensors) -> tuple[Tensors, Tensors]:
    """With the output projection stored, and without."""
    stored = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    return stored, {name: each for name, each in stored.items() if name != "lm_head.weight"}


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"text_config": {}}])
def test_tied_output_projection_may_be_stored_or_not(
    make: Make, weights: Tensors, config: dict[str, object]
) -> None:
    stored, bare = tie(weights)
    tuned_stored, tuned_bare = tie(moved(weights, "model.embed_tokens.weight"))
    paths = {
        "stored": make("stored", tuned_stored, config=config),
        "bare": make("bare", tuned_bare, config={"tie_word_embeddings": True}),
    }
    if "text_config" in config:  # nothing said: it depends on what is stored
        content = json.loads((paths["stored"] / "config.json").read_text())
        del content["tie_word_embeddings"]
        (paths["stored"] / "config.json").write_text(json.dumps(content))
    references = {name: str(path) for name, path in paths.items()}
    tied = {"tie_word_embeddings": True}

    sources = open_sources(str(make("base-bare", bare, config=tied)), references)
    assert sources.tied == {}
    for expert in sources.experts.values():
        assert expert.changed == {"model.embed_tokens.weight"}

    sources = open_sources(str(make("base-stored", stored, config=tied)), references)
    assert sources.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    for expert in sources.experts.values():
        assert expert.changed == {"model.embed_tokens.weight", "lm_head.weight"}
        table = expert.read("model.embed_tokens.weight")
        assert torch.equal(expert.read("lm_head.weight"), table)
        assert torch.equal(table, weights["model.embed_tokens.weight"] + 1)


def test_a_stored_output_projection_of_its_own_does_not_fit_a_tied_base(
    make: Make, weights: Tensors
) -> None:
    _, bare = tie(weights)
    base = make("base", bare, config={"tie_word_embeddings": True})
    assert "x: tensor 'lm_head.weight' is not in the base" in fail(base, x=make("x", weights))


def test_a_tied_expert_does_not_fit_an_untied_base(make: Make, weights: Tensors) -> None:
    _, bare = tie(weights)
    expert = make("x", bare, config={"tie_word_embeddings": True})
    assert "x: tensor 'lm_head.weight' is missing" in fail(make("base", weights), x=expert)


def test_buffers_that_the_architecture_computes_do_not_matter(make: Make, weights: Tensors) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    positions = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(3)}
    with_buffers = weights | {buffer: torch.ones(2)} | positions
    base, bare = make("base", with_buffers), make("bare", weights)
    expert = open_sources(str(base), {"x": str(bare)}).experts["x"]
    assert expert.changed == frozenset()
    assert torch.equal(expert.read(buffer), torch.ones(2))
    assert open_sources(str(bare), {"x": str(base)}).experts["x"].changed == frozenset()


def test_equal_integers_are_harmless(make: Make, weights: Tensors) -> None:
    base = make("base", weights | {"model.steps": torch.tensor([3])})
    same = make("same", weights | {"model.steps": torch.tensor([3])})
    other = make("other", weights | {"model.steps": torch.tensor([4])})
    assert open_sources(str(base), {"x": str(same)}).experts["x"].changed == frozenset()
    assert "x: tensor 'model.steps' has dtype I64" in fail(base, x=other)
