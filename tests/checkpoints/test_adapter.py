from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints.adapter import open_adapter
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.sources import open_sources
from evomerge.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Make = Callable[..., Path]

DOWN = "base_model.model.model.layers.0.mlp.down_proj"
KEY = "language.layers.0.mlp.down_proj.weight"
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 40, "head_dim": 8,
}  # fmt: skip


def factors(stem: str = DOWN, rank: int = 2) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {
        f"{stem}.lora_A.weight": torch.randn(rank, 8, generator=generator),
        f"{stem}.lora_B.weight": torch.randn(4, rank, generator=generator),
    }


def test_delta_and_factors(make_adapter: Make) -> None:
    stored = factors()
    adapter = open_adapter(make_adapter("a", stored, r=2, lora_alpha=6))
    a, b, scaling = adapter.factors(KEY)
    assert scaling == 3.0
    assert torch.equal(a, stored[f"{DOWN}.lora_A.weight"])
    assert torch.equal(b, stored[f"{DOWN}.lora_B.weight"])
    expected = 3.0 * torch.einsum("or,ri->oi", b.double(), a.double())
    torch.testing.assert_close(adapter.delta(KEY), expected.float())
    assert adapter.delta(KEY).dtype == torch.float32
    assert torch.equal(adapter.delta(KEY), adapter.delta(KEY))
    assert not adapter.is_idle(KEY)


@pytest.mark.parametrize("rank", [8, 64, 256])
def test_the_delta_does_not_depend_on_the_number_of_threads(make_adapter: Make, rank: int) -> None:
    generator = torch.Generator().manual_seed(2)
    stored = {
        f"{DOWN}.lora_A.weight": torch.randn(rank, 1001, generator=generator),
        f"{DOWN}.lora_B.weight": torch.randn(1000, rank, generator=generator),
    }
    adapter = open_adapter(make_adapter("a", stored, r=rank, lora_alpha=6))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = adapter.delta(KEY)
        torch.set_num_threads(2)
        assert torch.equal(adapter.delta(KEY), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"r": 2, "lora_alpha": 8}, 4.0),
        ({"r": 2, "lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(2)),
        ({"r": 9, "lora_alpha": 8, "rank_pattern": {"down_proj": 2}}, 4.0),
        ({"r": 9, "lora_alpha": 8, "rank_pattern": {r"layers\.\d+\.mlp\.down_proj": 2}}, 4.0),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"mlp.down_proj": 3}}, 1.5),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"own_proj": 3}}, 4.0),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"up_proj": 3}, "rank_pattern": {"x": 7}}, 4.0),
    ],
)
def test_scaling(make_adapter: Make, config: dict[str, Any], scaling: float) -> None:
    assert open_adapter(make_adapter("a", factors(), **config)).factors(KEY)[2] == scaling


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "base_model.model.base_model.model."])
@pytest.mark.parametrize("suffix", [".weight", ".default.weight", ".mine.weight", ""])
def test_spellings_of_keys(make_adapter: Make, prefix: str, suffix: str) -> None:
    stored = {
        prefix + name.removeprefix("base_model.model.").removesuffix(".weight") + suffix: tensor
        for name, tensor in factors().items()
    }
    adapter = open_adapter(make_adapter("a", stored))
    assert list(adapter.modules) == [KEY]
    assert adapter.replaced == {}


def test_a_new_adapter_is_idle(make_adapter: Make) -> None:
    stored = factors()
    stored[f"{DOWN}.lora_B.weight"].zero_()
    assert open_adapter(make_adapter("a", stored)).is_idle(KEY)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"peft_type": None}, "peft_type None"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"init_lora_weights": ["x"]}, "changes the base's weights"),
        ({"r": 3}, "with r = 3"),
        ({"r": 0}, "a number above 0"),
        ({"r": "2"}, "r '2'"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"lora_alpha": True}, "lora_alpha True"),
        ({"alpha_pattern": {"down_proj": float("nan")}}, "lora_alpha nan"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern that cannot be used"),
        ({"rank_pattern": [1]}, "rank_pattern that cannot be used"),
    ],
)
def test_refused_configs(make_adapter: Make, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match="adapter") as caught:
        open_adapter(make_adapter("a", factors(), **config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{DOWN}.lora_magnitude_vector": torch.ones(4)}, "no plain LoRA factor"),
        ({f"{DOWN}.lora_B.bias": torch.ones(4)}, "no plain LoRA factor"),
        ({f"{DOWN}.lora_A.other.weight": torch.ones(2, 8)}, "two adapters"),
        ({f"{DOWN}x.lora_A.weight": torch.ones(2, 8)}, "has only"),
        ({"model.norm.weight": torch.ones(4, dtype=torch.int8)}, "dtype I8"),
        (
            {f"{DOWN}.c.lora_A.weight": torch.ones(2, 8, 1, 1),
             f"{DOWN}.c.lora_B.weight": torch.ones(4, 2, 1, 1)},
            "expected matrices",
        ),
        (
            {f"{DOWN}.c.lora_A.weight": torch.ones(8, 2),
             f"{DOWN}.c.lora_B.weight": torch.ones(2, 4)},
            "expected [r, in]",
        ),
        (
            {name.replace("model.layers", "language_model.layers"): tensor
             for name, tensor in factors().items()},
            "one weight under two names",
        ),
    ],
)  # fmt: skip
def test_refused_tensors(make_adapter: Make, extra: Tensors, message: str) -> None:
    with pytest.raises(CheckpointError, match="adapter_model") as caught:
        open_adapter(make_adapter("a", factors() | extra))
    assert message in str(caught.value)


def test_damaged_directories(make_adapter: Make, tmp_path: Path) -> None:
    path = make_adapter("a", factors())
    file = path / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        open_adapter(path)
    file.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        open_adapter(path)
    (path / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match="pickled"):
        open_adapter(path)
    (path / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        open_adapter(path)


def tiny(kind: str, tied: bool = False) -> Any:
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40)
        return transformers.GPT2LMHeadModel(config)
    if kind == "qwen2_vl":
        seen = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
        config = transformers.Qwen2VLConfig(
            text_config=SIZES, vision_config=seen, tie_word_embeddings=tied
        )
        return transformers.Qwen2VLForConditionalGeneration(config)
    config = transformers.Qwen2Config(**SIZES, tie_word_embeddings=tied)
    return transformers.Qwen2ForCausalLM(config)


ATTENTION = ["q_proj", "v_proj", "o_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("qwen2", {"target_modules": ATTENTION, "r": 4, "lora_alpha": 6}),
    "rslora": ("qwen2", {"target_modules": ATTENTION, "r": 4, "use_rslora": True}),
    "patterns": (
        "qwen2",
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"v_proj": 2, "layers.0.self_attn.q_proj": 3},
            "alpha_pattern": {"o_proj": 5},
        },
    ),
    "saved modules": (
        "qwen2",
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
    ),
    "embeddings": ("qwen2", {"target_modules": ["embed_tokens", "q_proj"], "r": 4}),
    "lm_head": ("qwen2", {"target_modules": ["lm_head", "q_proj"], "r": 4}),
    "all biases": ("qwen2", {"target_modules": ATTENTION, "bias": "all"}),
    "lora biases": ("qwen2", {"target_modules": ATTENTION, "bias": "lora_only"}),
    "fan in, fan out": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "vision and language": ("qwen2_vl", {"target_modules": [*ATTENTION, "qkv", "fc1", "mlp.0"]}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_equals_peft(tmp_path: Path, case: str) -> None:
    import peft

    kind, settings = CASES[case]
    model = tiny(kind)
    model.save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    trained = {name for name, each in wrapped.named_parameters() if each.requires_grad}
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")

    merged = open_checkpoint(tmp_path / "merged")
    assert set(merged.tensors) == set(base.tensors)
    sources = open_sources(
        str(tmp_path / "base"), {"x": str(tmp_path / "adapter"), "y": str(tmp_path / "merged")}
    )
    for name in base.tensors:
        torch.testing.assert_close(
            sources.experts["x"].read(name), merged.read(name).float(), rtol=1e-6, atol=1e-7
        )
    assert trained
    assert sources.experts["x"].kind == "lora"
    assert sources.experts["x"].changed == sources.experts["y"].changed
