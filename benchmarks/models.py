"""Llama checkpoints of random bfloat16 weights, for timings: their content is noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Layout:
    """The sizes of a Llama with output projection of its own."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int = 32_000

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape."""
        h, i, v = self.hidden, self.intermediate, self.vocabulary
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
        for n in range(self.layers):
            at = f"model.layers.{n}"
            found |= {f"{at}.self_attn.{p}_proj.weight": (h, h) for p in "qkvo"}
            found |= {f"{at}.mlp.{p}_proj.weight": (i, h) for p in ("gate", "up")}
            found |= {f"{at}.mlp.down_proj.weight": (h, i)}
            found |= {f"{at}.{p}_layernorm.weight": (h,) for p in ("input", "post_attention")}
        return found | {"model.norm.weight": (h,), "lm_head.weight": (v, h)}

    def config(self) -> dict[str, object]:
        """The config.json that transformers expects."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 64,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


LAYOUTS = {
    "40M": Layout(384, 6, 1536),
    "160M": Layout(768, 12, 3072),
    "640M": Layout(1536, 14, 6144),
}


def write_model(out: Path, layout: Layout, base: Path | None, seed: int, shared: float) -> Path:
    """A base of random weights, or a fine-tune of one; ``shared`` of its tensors equal the base's.

    Which tensors are shared is the same in all fine-tunes: every fifth, fourth, ... of the list.
    """
    from safetensors import safe_open

    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(layout.config()))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    start = safe_open(base / "model.safetensors", framework="pt") if base else None
    for index, (name, shape) in enumerate(layout.shapes().items()):
        if start is None:
            tensors[name] = 0.02 * torch.randn(shape, generator=generator)
        else:
            tensors[name] = start.get_tensor(name).float()
            if (index % 10) >= 10 * shared:
                tensors[name] += 0.002 * torch.randn(shape, generator=generator)
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
