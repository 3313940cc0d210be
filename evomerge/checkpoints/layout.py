"""What a tensor is, told from its name: the tower it belongs to, its block, its kind of module.

The same weight has several names: transformers has renamed towers between releases, and uses other
names in memory than on disk ("model.layers.0", "language_model.model.layers.0",
"model.language_model.layers.0"). `canonical` gives all of them one name, by which experts are
matched with the base. Everything here is a table of patterns; a new architecture is a new row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

TOWERS: Final = ("language", "vision", "audio", "projector", "embeddings", "head", "other")
MODULES: Final = ("attention", "mlp", "norm", "bias", "embedding", "head", "projection", "other")


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs: one of TOWERS, its block's number there or None, one of MODULES."""

    tower: str
    block: int | None
    module: str


_ROOT = r"(?:(?:base_model|model|thinker)\.)*"
_LANGUAGE = (
    r"(?:(?:model|thinker|language_model|text_model|language|transformer|gpt_neox|decoder"
    r"|backbone)\.)"
)
_LANGUAGE_PART = (
    r"(?:layers|h|blocks?|embed_tokens\w*|tok_embeddings|word_embeddings|embeddings|embed_in"
    r"|embed_positions|wte|wpe|norm|ln_f|norm_f|final_layernorm|final_layer_norm|project_in"
    r"|project_out|rotary_emb|encoder\.(?:layers|blocks?|embed_tokens|final_layer_norm))\."
)
_BARE_LANGUAGE_PART = r"(?:layers|h|embed_tokens|wte|wpe|norm|ln_f)\."  # saved without its head
_VISION = r"(?:(?:visual|vision|vision_tower|vision_model|vision_encoder|vision_backbone|vpm)\.)+"
_AUDIO = r"(?:(?:audio|audio_tower|audio_model|audio_encoder|apm)\.)+"
_PROJECTOR_PART = (
    r"(?:mlp1|connector|mm_projector|resampler|aligner|embed_vision|embed_audio)\.|"
    r"(?:image_newline|view_separator|view_seperator)$"
)
# prefix -> canonical prefix; the first row that matches is used, once
_PREFIXES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"{_LANGUAGE}*(?:lm_head|embed_out|output)\.(?=weight$|bias$)", "lm_head."),
        # what joins the towers
        (rf"{_ROOT}{_VISION}(?=merger\.|deepstack_merger_list\.)", "projector."),
        (rf"{_ROOT}mm_projector\.0\.", "projector.linear_1."),
        (rf"{_ROOT}mm_projector\.2\.", "projector.linear_2."),
        (rf"{_ROOT}(?:multi_modal_projector|projector)\.", "projector."),
        (rf"{_ROOT}(?={_PROJECTOR_PART})", "projector."),
        # towers
        (rf"{_ROOT}{_VISION}", "vision."),
        (rf"{_ROOT}{_AUDIO}", "audio."),
        (rf"{_LANGUAGE}+(?={_LANGUAGE_PART})|(?={_BARE_LANGUAGE_PART})", "language."),
    )
)

_BLOCK: Final = re.compile(r"\.(?:layers|layer|blocks|block|h)\.(\d+)\.")

_TEXT_EMBEDDING: Final = re.compile(
    r"language\.(?:encoder\.)?"
    r"(?:embed_tokens\w*|tok_embeddings|word_embeddings|embeddings|embed_in|embed_positions|wte|wpe)\."
)
_EMBEDDING = (
    r"embed_tokens\w*|tok_embeddings|word_embeddings|embed_in|embed_positions|wte|wpe|patch_embed\w*"
    r"|pos_embed|position_embedding\w*|class_embedding|cls_token|patch_conv|embeddings\.\w+"
    r"|image_newline|view_separator|view_seperator"
)
# pattern over the canonical name -> module; the first row that is found wins
_MODULE_ROWS: Final = tuple(
    (re.compile(pattern), module)
    for pattern, module in (
        # of whatever spelling: input_layernorm, ln_q, norm1, q_norm, pre_layrnorm, ffn_norm
        (r"\.(?:\w*norm\w*|\w*layrnorm|ln_\w+|\w+_ln|ln\d?)\.(?:weight|bias|gamma|beta)$", "norm"),
        (r"^projector\.mlp1\.0\.", "norm"),  # InternVL: Sequential(LayerNorm, Linear, GELU, Linear)
        (r"[._]bias$", "bias"),
        (r"^lm_head\.", "head"),
        (rf"(?:^|\.)(?:{_EMBEDDING})(?:\.|$)", "embedding"),
        (r"^projector\.", "projection"),
        (r"\.\w*(?:attn|attention)\w*\.", "attention"),
        (r"\.(?:mlp|feed_forward|ffn|experts|block_sparse_moe|fc1|fc2|linear_fc[12])\.", "mlp"),
        (r"\.(?:proj|\w*projection|project_in|project_out)\.", "projection"),
    )
)


@lru_cache(maxsize=65536)
def canonical(name: str) -> str:
    """One name for all spellings of a tensor's name; idempotent; an unknown name stays as it is.

    "model.language_model.layers.0.mlp.up_proj.weight" -> "language.layers.0.mlp.up_proj.weight"
    "model.visual.blocks.3.norm1.weight"               -> "vision.blocks.3.norm1.weight"
    "language_model.lm_head.weight"                    -> "lm_head.weight"
    """
    for pattern, replacement in _PREFIXES:
        if found := pattern.match(name):
            return replacement + name[found.end() :]
    return name


@lru_cache(maxsize=65536)
def place(name: str) -> Place:
    """Where the tensor of this name, in any spelling, belongs; tower "other" if no row fits."""
    full = canonical(name)
    block = _BLOCK.search(full)
    return Place(_tower(full), int(block[1]) if block else None, _module(full))


def layout(names: Iterable[str]) -> dict[str, Place]:
    """The place of every name, in the given order."""
    return {name: place(name) for name in names}


def unknown(names: Iterable[str]) -> list[str]:
    """The names that no row of the tables fits, in the given order, for a warning."""
    return [name for name in names if place(name).tower == "other"]


def _tower(full: str) -> str:
    if full.startswith("lm_head."):
        return "head"
    if _TEXT_EMBEDDING.match(full):
        return "embeddings"
    first = full.split(".", 1)[0]
    return first if first in ("language", "vision", "audio", "projector") else "other"


def _module(full: str) -> str:
    for pattern, module in _MODULE_ROWS:
        if pattern.search(full):
            return module
    return "other"
