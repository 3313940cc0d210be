"""Small models of a few slices, with zeros of both signs and experts that share tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.write import TensorSpec, write_checkpoint
from evomerge.recipe import Group, Recipe, Source

UP, HEAD, NORM = "model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"


def model(out: Path, change: float, seed: int, dtype: torch.dtype = torch.bfloat16) -> Path:
    generator = torch.Generator().manual_seed(1)
    own = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (99, 32), UP: (64, 32), NORM: (32,), HEAD: (99, 32)}
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        tensor[torch.rand(shape, generator=generator) < 0.1] = -0.0
        if name != "model.embed_tokens.weight":
            noise = change * torch.randn(shape, generator=own)
            tensor = tensor + noise * (torch.rand(shape, generator=own) < 0.7)
        tensors[name] = tensor.to(dtype)
    config = b'{"model_type": "llama", "tie_word_embeddings": false}'
    specs = [TensorSpec(n, {torch.bfloat16: "BF16"}.get(t.dtype, "F32"), tuple(t.shape))
             for n, t in tensors.items()]  # fmt: skip
    write_checkpoint(out, specs, tensors.__getitem__, {"config.json": config})
    return out


def write_models(folder: Path) -> Path:
    """A base and experts: ``twin`` is a copy of ``a``, ``c`` has another dtype."""
    model(folder / "base", 0, 0)
    for seed, name in enumerate("ab", 1):
        model(folder / name, 0.2, seed)
    model(folder / "c", 0.1, 3, torch.float32)
    model(folder / "twin", 0.2, 1)
    model(folder / "far", 5.0, 9)
    return folder


def recipe(models: Path, method: str, values: dict[str, Any], **experts: str) -> Recipe:
    return Recipe(
        base=Source(path=str(models / "base")),
        experts={name: Source(path=str(models / at)) for name, at in experts.items()},
        method=method,
        parameters=(Group.model_validate({"tensors": "*/*/*", **values}),),
        seed=7,
    )
