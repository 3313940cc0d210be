"""A model of five blocks for tests of mergekit configurations, and short ways to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from evomerge.checkpoints.layout import layout
from evomerge.mergekit.read import load_any
from evomerge.methods import get_method
from evomerge.recipe import Recipe, group_values, select
from tests.merging import lora_expert, tensors_of

BLOCKS = 5
INNER = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm", "ffn_norm")
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{b}.{inner}.weight" for b in range(BLOCKS) for inner in INNER),
    "model.norm.weight",
    "lm_head.weight",
]
Q, UP, NORM = (f"model.layers.{{}}.{INNER[i]}.weight" for i in (0, 2, 3))


SLERP: list[dict[str, Any]] = [  # as in the published example
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]


def checkpoint(out: Path, seed: int, extra: tuple[str, ...] = ()) -> Path:
    """A model of five blocks with the names of a Llama and matrices of 4 x 6."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: (4,) if "norm" in n else (4, 6) for n in (*NAMES, *extra)}
    out.mkdir()
    config = {"model_type": "llama", "tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(config))
    tensors = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def workspace(folder: Path) -> Path:
    """A base, three fine-tunes and an adapter."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        checkpoint(folder / name, seed)
    lora_expert(folder / "base", folder / "lora", 7)
    return folder


def read(folder: Path, **config: Any) -> tuple[Recipe, list[str]]:
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config))
    return load_any(path)


def models(*weights: Any, **more: Any) -> list[dict[str, Any]]:
    return [
        {"model": m, "parameters": {"weight": w, **more}}
        for m, w in zip("abc", weights, strict=False)
    ]


def values(folder: Path, recipe: Recipe, name: str, parameter: str) -> Any:
    """A parameter as the method gets it for one tensor, by expert if it is per expert."""
    group = select(recipe, layout(tensors_of(folder / "base")))[name]
    value = group_values(get_method(recipe.method), group, recipe.order())[parameter]
    return dict(zip(recipe.order(), value, strict=True)) if isinstance(value, tuple) else value
