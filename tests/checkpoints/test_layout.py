from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints.headers import read_header
from evomerge.checkpoints.layout import MODULES, TOWERS, Place, canonical, layout, place, unknown

TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 40, "head_dim": 8,
}  # fmt: skip
SEEN = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
QWEN_SEEN = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
QWEN_2_5_SEEN = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16,
}  # fmt: skip
HEARD = {
    "model_type": "qwen2_audio_encoder", "d_model": 16, "encoder_layers": 2,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
    "max_source_positions": 10,
}  # fmt: skip
CLIP = {**SEEN, "model_type": "clip_vision_model", "projection_dim": 16}
SQUARE = {**SEEN, "image_size": [28, 28], "patch_size": [14, 14], "use_qk_norm": True}

# family -> class prefix, kind of model, config
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "ForCausalLM", TEXT),
    "mistral": ("Mistral", "ForCausalLM", TEXT),
    "qwen2": ("Qwen2", "ForCausalLM", TEXT),
    "qwen3": ("Qwen3", "ForCausalLM", TEXT),
    "gemma": ("Gemma", "ForCausalLM", TEXT),
    "gemma2": ("Gemma2", "ForCausalLM", TEXT),
    "gemma3": (
        "Gemma3",
        "ForConditionalGeneration",
        {"text_config": TEXT, "vision_config": SEEN, "mm_tokens_per_image": 4},
    ),
    "qwen2_vl": (
        "Qwen2VL",
        "ForConditionalGeneration",
        {"text_config": TEXT, "vision_config": QWEN_SEEN},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        "ForConditionalGeneration",
        {"text_config": TEXT, "vision_config": QWEN_2_5_SEEN},
    ),
    "internvl": (
        "InternVL",
        "ForConditionalGeneration",
        {"text_config": {**TEXT, "model_type": "qwen2"}, "vision_config": SQUARE},
    ),
    "llava": (
        "Llava",
        "ForConditionalGeneration",
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": CLIP},
    ),
    "llava_next": (
        "LlavaNext",
        "ForConditionalGeneration",
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": CLIP},
    ),
    "qwen2_audio": (
        "Qwen2Audio",
        "ForConditionalGeneration",
        {"text_config": {**TEXT, "model_type": "qwen2"}, "audio_config": HEARD},
    ),
}

# real names of published checkpoints, in spellings that transformers no longer writes
OLD_NAMES = {
    "language_model.model.layers.3.self_attn.q_proj.weight": Place("language", 3, "attention"),
    "model.layers.3.mlp.gate_proj.weight": Place("language", 3, "mlp"),
    "model.layers.3.block_sparse_moe.experts.1.w2.weight": Place("language", 3, "mlp"),
    "language_model.model.layers.0.attention.wqkv.weight": Place("language", 0, "attention"),
    "language_model.model.layers.0.feed_forward.w1.weight": Place("language", 0, "mlp"),
    "language_model.model.layers.0.ffn_norm.weight": Place("language", 0, "norm"),
    "language_model.model.tok_embeddings.weight": Place("embeddings", None, "embedding"),
    "language_model.output.weight": Place("head", None, "head"),
    "language_model.lm_head.weight": Place("head", None, "head"),
    "lm_head.bias": Place("head", None, "bias"),
    "transformer.h.5.attn.c_attn.weight": Place("language", 5, "attention"),
    "transformer.h.5.attn.c_attn.bias": Place("language", 5, "bias"),
    "transformer.h.5.ln_1.bias": Place("language", 5, "norm"),
    "transformer.wpe.weight": Place("embeddings", None, "embedding"),
    "vision_tower.vision_model.encoder.layers.7.self_attn.q_proj.bias": Place("vision", 7, "bias"),
    "vision_tower.vision_model.pre_layrnorm.weight": Place("vision", None, "norm"),
    "model.vision_tower.vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight":
        Place("vision", 2, "mlp"),
    "vision_model.encoder.layers.4.attn.qkv.weight": Place("vision", 4, "attention"),
    "vision_model.encoder.layers.4.attn.q_norm.weight": Place("vision", 4, "norm"),
    "vision_model.encoder.layers.4.ls1": Place("vision", 4, "other"),
    "vision_model.embeddings.class_embedding": Place("vision", None, "embedding"),
    "visual.patch_embed.proj.weight": Place("vision", None, "embedding"),
    "visual.blocks.9.norm2.weight": Place("vision", 9, "norm"),
    "visual.merger.ln_q.weight": Place("projector", None, "norm"),
    "visual.merger.mlp.0.weight": Place("projector", None, "projection"),
    "model.visual.deepstack_merger_list.0.linear_fc1.bias": Place("projector", None, "bias"),
    "mlp1.0.weight": Place("projector", None, "norm"),
    "mlp1.1.weight": Place("projector", None, "projection"),
    "mlp1.1.bias": Place("projector", None, "bias"),
    "model.mm_projector.2.weight": Place("projector", None, "projection"),
    "model.image_newline": Place("projector", None, "embedding"),
    "audio_tower.layers.1.self_attn_layer_norm.weight": Place("audio", 1, "norm"),
    "audio_tower.layers.1.fc2.weight": Place("audio", 1, "mlp"),
    "thinker.model.layers.1.self_attn.v_proj.weight": Place("language", 1, "attention"),
    "thinker.visual.blocks.1.attn.k.weight": Place("vision", 1, "attention"),
}  # fmt: skip

SAME = [
    [
        "model.layers.0.mlp.up_proj.weight",
        "language_model.model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "language_model.model.model.layers.0.mlp.up_proj.weight",
        "model.text_model.layers.0.mlp.up_proj.weight",
        "layers.0.mlp.up_proj.weight",
    ],
    [
        "model.embed_tokens.weight",
        "language_model.model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
        "embed_tokens.weight",
    ],
    ["model.norm.weight", "language_model.model.norm.weight", "model.language_model.norm.weight"],
    ["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"],
    ["visual.blocks.1.attn.qkv.weight", "model.visual.blocks.1.attn.qkv.weight"],
    ["visual.merger.mlp.0.weight", "model.visual.merger.mlp.0.weight"],
    [
        "vision_tower.encoder.layers.0.layer_norm1.weight",
        "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight",
        "model.vision_tower.encoder.layers.0.layer_norm1.weight",
        "model.vision_tower.vision_model.encoder.layers.0.layer_norm1.weight",
    ],
    [
        "multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_1.weight",
        "model.mm_projector.0.weight",
    ],
    ["audio_tower.conv1.weight", "model.audio_tower.conv1.weight"],
    ["image_newline", "model.image_newline"],
]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], list[str]]]:
    """Family -> (names that save_pretrained writes, names in memory)."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    found = {}
    for family, (prefix, kind, settings) in FAMILIES.items():
        with torch.device("cpu"):
            config = getattr(transformers, f"{prefix}Config")(**settings)
            model = getattr(transformers, prefix + kind)(config)
        path = tmp_path_factory.mktemp(family)
        model.save_pretrained(path)
        found[family] = (list(read_header(path / "model.safetensors")), list(model.state_dict()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_real_name_has_its_place(
    names: dict[str, tuple[list[str], list[str]]], family: str
) -> None:
    stored, _ = names[family]
    assert unknown(stored) == []
    for name, found in layout(stored).items():
        assert found.tower in TOWERS
        assert found.module in MODULES
        numbers = re.findall(r"\.(\d+)\.", name.split("merger")[0])
        assert found.block == (int(numbers[0]) if numbers else None), name
        seen = re.match(r"(model\.)?(visual|vision_tower)\.", name) and "merger" not in name
        assert (found.tower == "vision") == bool(seen), name
        assert (found.tower == "audio") == name.startswith("audio_tower."), name
        assert (found.tower == "projector") == bool(
            re.search(r"multi_modal_projector|merger|image_newline", name)
        ), name
        assert (found.tower == "embeddings") == name.endswith("embed_tokens.weight"), name
        assert (found.tower == "head") == name.endswith("lm_head.weight"), name


@pytest.mark.parametrize("family", FAMILIES)
def test_names_in_memory_and_on_disk_fall_together(
    names: dict[str, tuple[list[str], list[str]]], family: str
) -> None:
    stored, loaded = names[family]
    on_disk = {canonical(name) for name in stored}
    in_memory = {canonical(name) for name in loaded}
    assert len(on_disk) == len(stored)  # no two tensors fall together
    assert len(in_memory) == len(loaded)
    assert on_disk <= in_memory
    assert in_memory - on_disk <= {"lm_head.weight"}  # tied weights are stored once


def test_modules_of_a_language_block(names: dict[str, tuple[list[str], list[str]]]) -> None:
    stored, _ = names["qwen3"]
    modules = {
        name.removeprefix("model.layers.1."): place(name).module
        for name in stored
        if name.startswith("model.layers.1.")
    }
    assert modules == {
        **{f"self_attn.{each}_proj.weight": "attention" for each in "qkvo"},
        **{f"mlp.{each}_proj.weight": "mlp" for each in ("gate", "up", "down")},
        "self_attn.q_norm.weight": "norm",
        "self_attn.k_norm.weight": "norm",
        "input_layernorm.weight": "norm",
        "post_attention_layernorm.weight": "norm",
    }
    assert place("model.norm.weight") == Place("language", None, "norm")
    assert place("model.layers.0.self_attn.q_proj.bias") == Place("language", 0, "bias")


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names(name: str) -> None:
    assert place(name) == OLD_NAMES[name]


@pytest.mark.parametrize("spellings", SAME, ids=lambda each: each[0])
def test_spellings_of_one_weight(spellings: list[str]) -> None:
    assert len({canonical(each) for each in spellings}) == 1
    assert len({place(each) for each in spellings}) == 1
    others = [canonical(each[0]) for each in SAME if each is not spellings]
    assert canonical(spellings[0]) not in others


@pytest.mark.parametrize(
    "name",
    ["talker.model.layers.0.mlp.up_proj.weight", "mtp.layers.0.mlp.up_proj.weight",
     "blocks.0.attn.qkv.weight", "unet.down.0.conv.weight", "token2wav.x", "encoder.layer.0.x"],
)  # fmt: skip
def test_what_is_not_known_is_not_called_language(name: str) -> None:
    assert place(name).tower == "other"
    assert canonical(name) == name
    assert unknown(["model.norm.weight", name]) == [name]


PARTS = [
    "model", "visual", "vision_tower", "vision_model", "language_model", "thinker", "merger",
    "multi_modal_projector", "mm_projector", "mlp1", "connector", "image_newline", "audio_tower",
    "lm_head", "output", "weight", "bias", "layers", "blocks", "encoder", "decoder", "0", "2",
    "embed_tokens", "norm", "language", "vision", "audio", "projector", "transformer", "h",
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join))
def test_canonical_is_idempotent(name: str) -> None:
    once = canonical(name)
    assert canonical(once) == once
    assert place(once) == place(name)


@given(st.text(max_size=30))
def test_any_text_has_a_place(name: str) -> None:
    assert canonical(canonical(name)) == canonical(name)
    assert place(name).tower in TOWERS


def test_imports_no_torch() -> None:
    code = "import sys, evomerge.checkpoints.layout; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
