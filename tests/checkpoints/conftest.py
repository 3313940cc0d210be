"""Small checkpoints, written by the reference implementation of safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue cache of the test's own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EVOMERGE_CACHE", str(path))
    return path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(name, tensors, config=..., shards=...) writes a model directory and returns it."""

    def build(
        name: str,
        tensors: Mapping[str, torch.Tensor],
        config: Mapping[str, Any] | None = None,
        shards: int = 1,
    ) -> Path:
        path = tmp_path / name
        path.mkdir()
        merged = {"model_type": "llama", "tie_word_embeddings": False} | dict(config or {})
        (path / "config.json").write_text(json.dumps(merged))
        if shards == 1:
            save_file(dict(tensors), path / "model.safetensors", metadata={"format": "pt"})
            return path
        placed = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = dict(list(tensors.items())[number::shards])
            save_file(part, path / file, metadata={"format": "pt"})
            placed |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": placed}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return build


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """make_adapter(name, tensors, **config) writes an adapter directory and returns it."""

    def build(name: str, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
        path = tmp_path / name
        path.mkdir()
        merged = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
        (path / "adapter_config.json").write_text(json.dumps(merged))
        save_file(dict(tensors), path / "adapter_model.safetensors")
        return path

    return build


@pytest.fixture
def weights() -> Tensors:
    """A language model of one block: vocabulary 6, width 4."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "model.embed_tokens.weight": draw(6, 4),
        "model.layers.0.self_attn.q_proj.weight": draw(4, 4),
        "model.layers.0.self_attn.q_proj.bias": draw(4),
        "model.layers.0.mlp.down_proj.weight": draw(4, 8),
        "model.layers.0.input_layernorm.weight": draw(4),
        "model.norm.weight": draw(4),
        "lm_head.weight": draw(6, 4),
    }
