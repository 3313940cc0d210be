"""Experts of tiny checkpoints: full fine-tunes and LoRA adapters made by noise, not by training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
BLOCKS = r"layers\.\d+\.(self_attn|mlp)\..*weight$"


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint directory, as stored."""
    return {k: v for file in sorted(path.glob("*.safetensors")) for k, v in load_file(file).items()}


def with_tensors(source: Path, out: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A copy of a checkpoint directory with other tensors."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    return out


def full_expert(base: Path, out: Path, seed: int, pattern: str = BLOCKS) -> Path:
    """The base with noise on the tensors whose names the pattern finds."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (t.float() + 0.1 * torch.randn(t.shape, generator=generator)).to(t.dtype)
        if re.search(pattern, name)
        else t
        for name, t in tensors_of(base).items()
    }
    return with_tensors(base, out, tensors)


def lora_expert(base: Path, out: Path, seed: int, pattern: str = BLOCKS, rank: int = 2) -> Path:
    """An adapter directory as PEFT writes it, with factors for all matrices the pattern finds."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, t in tensors_of(base).items():
        if t.ndim == 2 and re.search(pattern, name):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            for side, shape in (("A", (rank, t.shape[1])), ("B", (t.shape[0], rank))):
                factors[f"{at}.lora_{side}.weight"] = 0.3 * torch.randn(shape, generator=generator)
    out.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "bias": "none"}
    (out / "adapter_config.json").write_text(json.dumps(config))
    save_file(factors, out / "adapter_model.safetensors")
    return out


def lora_delta(adapter: Path, name: str) -> torch.Tensor:
    """What an adapter of ``lora_expert`` adds to a weight, in float64."""
    factors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    at = f"base_model.model.{name.removesuffix('.weight')}"
    a, b = (factors[f"{at}.lora_{side}.weight"].double() for side in "AB")
    return config["lora_alpha"] / config["r"] * (b @ a)
