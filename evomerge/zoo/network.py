"""The zoo's architecture: a Qwen2-VL of under a million parameters, and a fast forward pass to
train it.

The fast pass calls the modules of transformers' own model; it only drops what training on
equal-sized pictures does not need (lists of grids, masks, caches). A test holds it to equality with
the model's own forward.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from evomerge.zoo import draw, words

PATCH: Final = 7
MERGE: Final = 2
FRAMES: Final = 2  # an image is a video of two equal frames, as in every Qwen2-VL
GRID: Final = draw.SIZE // PATCH
IMAGE_TOKENS: Final = (GRID // MERGE) ** 2
IMAGE_START: Final = 3  # tokens before the first image token
HEAD: Final = 32


def config() -> Any:
    """The Qwen2VLConfig of every model of the zoo."""
    from transformers import Qwen2VLConfig

    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(words.VOCABULARY),
            "hidden_size": 128,
            "intermediate_size": 160,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": None,
            "eos_token_id": words.IDS[words.END],
            "pad_token_id": words.IDS[words.PAD],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 64,
            "hidden_size": 128,
            "mlp_ratio": 4,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
        },
        image_token_id=words.IDS[words.IMAGE],
        video_token_id=words.IDS[words.VIDEO],
        vision_start_token_id=words.IDS["<|vision_start|>"],
        vision_end_token_id=words.IDS["<|vision_end|>"],
        tie_word_embeddings=True,
        eos_token_id=words.IDS[words.END],
        pad_token_id=words.IDS[words.PAD],
    )


def new_model(seed: int) -> Any:
    """A model with fresh weights (float32), the same for the same seed."""
    from transformers import Qwen2VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config())
    for module in model.modules():
        if isinstance(module, nn.Linear):  # the default of 0.02 is meant for wide layers
            nn.init.normal_(module.weight, std=module.in_features**-0.5 * 0.7)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.06)
    return model


def patches(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the image processor makes of `images` (n, 28, 28, 3): (n, 16, 2 * 147) without the
    second frame.

    Shape (n, 16, 147): patches in merge order, each as channel, row, column; values -1..1.
    """
    count, half = len(images), GRID // MERGE
    scaled = images.astype(np.float32) * np.float32(1 / 255)
    scaled = (scaled - np.float32(0.5)) / np.float32(0.5)
    split = scaled.reshape(count, half, MERGE, PATCH, half, MERGE, PATCH, 3)
    return split.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(count, GRID * GRID, 3 * PATCH * PATCH)


@cache
def _places(length: int) -> Tensor:
    """M-RoPE positions (3, 1, length) of a sequence whose image begins at IMAGE_START."""
    half = GRID // MERGE
    places = torch.arange(length).repeat(3, 1)
    end = IMAGE_START + IMAGE_TOKENS
    inside = torch.arange(IMAGE_TOKENS)
    places[0, IMAGE_START:end] = IMAGE_START
    places[1, IMAGE_START:end] = IMAGE_START + inside // half
    places[2, IMAGE_START:end] = IMAGE_START + inside % half
    places[:, end:] -= IMAGE_TOKENS - half
    return places[:, None]


@cache
def _patch_places() -> Tensor:
    """Row and column (16, 2) of each patch in merge order."""
    half = GRID // MERGE
    index = torch.arange(GRID * GRID).view(GRID, GRID)
    index = index.view(half, MERGE, half, MERGE).permute(0, 2, 1, 3).flatten()
    return torch.stack([index // GRID, index % GRID], -1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def see(model: Any, pixels: Tensor) -> Tensor:
    """Image features (n, 4, hidden) of patches (n, 16, 147)."""
    tower = model.model.visual
    count, cells, _ = pixels.shape
    kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
    x = F.linear(pixels, kernel)
    cos, sin = tower.rotary_pos_emb(x, _patch_places())
    for block in tower.blocks:
        normed = block.norm1(x)
        qkv = block.attn.qkv(normed).view(count, cells, 3, block.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, cells, -1)
        x = x + block.attn.proj(mixed)
        x = x + block.mlp(block.norm2(x))
    return torch.as_tensor(tower.merger(x.reshape(count * cells, -1))).view(count, IMAGE_TOKENS, -1)


def think(model: Any, features: Tensor, tokens: Tensor) -> Tensor:
    """Last hidden states (n, length, hidden) of right-padded `tokens` (n, length)."""
    tower = model.model.language_model
    x = tower.embed_tokens(tokens)
    end = IMAGE_START + IMAGE_TOKENS
    x = torch.cat((x[:, :IMAGE_START], features.to(x.dtype), x[:, end:]), 1)
    count, length, _ = x.shape
    cos, sin = tower.rotary_emb(x, _places(length))
    cos, sin = cos[:, None], sin[:, None]
    for layer in tower.layers:
        attention = layer.self_attn
        normed = layer.input_layernorm(x)
        q = attention.q_proj(normed).view(count, length, -1, HEAD).transpose(1, 2)
        k = attention.k_proj(normed).view(count, length, -1, HEAD).transpose(1, 2)
        v = attention.v_proj(normed).view(count, length, -1, HEAD).transpose(1, 2)
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attention.o_proj(mixed.transpose(1, 2).reshape(count, length, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return torch.as_tensor(tower.norm(x))


def answer_loss(model: Any, features: Tensor, tokens: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that `answers` (n, length, bool) marks, each from those
    before it.
    """
    hidden = think(model, features, tokens[:, :-1])
    wanted = answers[:, 1:]
    logits = F.linear(hidden[wanted], model.get_input_embeddings().weight)
    return F.cross_entropy(logits.float(), tokens[:, 1:][wanted])


def parameter_count() -> int:
    """Parameters of one model, tied ones once."""
    from transformers import Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config())
    return sum(parameter.numel() for parameter in model.parameters())
