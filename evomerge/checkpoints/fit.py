"""Whether an expert fits the base: every mismatch, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.headers import FLOATING, TensorInfo
from evomerge.checkpoints.layout import canonical, place
from evomerge.checkpoints.open import Checkpoint

HEAD: Final = "lm_head.weight"
"""The canonical name of the output projection."""

# buffers that the architecture computes; checkpoints of some releases carry them
_BUFFER: Final = re.compile(
    r"rotary_emb\.(?:inv_freq|original_inv_freq)$|position_ids$|masked_bias$"
)
# facts of a config that change what a weight means without changing its shape
_FACTS: Final = ("num_attention_heads", "num_key_value_heads")


def by_canonical(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Canonical name -> name on disk, of all tensors but the buffers that are computed anyway."""
    return {canonical(name): name for name in tensors if not _BUFFER.search(name)}


def duplicates(checkpoint: Checkpoint) -> Iterator[str]:
    """Pairs of names on disk that are spellings of one weight."""
    found = by_canonical(checkpoint.tensors)
    for name in checkpoint.tensors:
        other = found.get(canonical(name))
        if other is not None and other != name:
            yield f"tensors {other!r} and {name!r} are two spellings of one weight"


def embedding_of(names: Mapping[str, str]) -> str | None:
    """The canonical name of the token embedding among canonical names, if there is one."""
    found = [each for each in names if place(each).tower == "embeddings"]
    preferred = [
        each for each in found if re.search(r"\b(?:embed_tokens|wte|embed_in)\.weight$", each)
    ]
    return next(iter(preferred or found), None)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output projection is the embedding, by the config (where unsaid, it may be)."""
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings", True) if isinstance(text, Mapping) else True
    return bool(config.get("tie_word_embeddings", inner))


def same_values(base: Checkpoint, name: str, other: Checkpoint | Adapter, stored: str) -> bool:
    """Whether two stored tensors hold equal numbers, compared in float32 if their dtypes differ."""
    import torch

    one, two = base.read(name), other.read(stored)
    if one.dtype != two.dtype:
        one, two = one.float(), two.float()
    return torch.equal(one, two)


def full_mismatches(base: Checkpoint, expert: Checkpoint) -> Iterator[str]:
    """What keeps a full fine-tune from being merged with the base, one line each."""
    yield from duplicates(expert)
    yield from _config_mismatches(base.config, expert.config)
    wanted, offered = by_canonical(base.tensors), by_canonical(expert.tensors)
    for key, name in wanted.items():
        if key in offered:
            yield from _tensor_mismatches(base, name, expert, offered[key])
        elif not _is_own_embedding(base, wanted, expert, key):
            yield f"tensor {name!r} is missing"
    for key, name in offered.items():
        if key not in wanted and not _is_own_embedding(expert, offered, base, key):
            yield f"tensor {name!r} is not in the base"


def adapter_mismatches(base: Checkpoint, adapter: Adapter) -> Iterator[str]:
    """What keeps an adapter from being applied to the base, one line each."""
    wanted = by_canonical(base.tensors)
    for key in dict.fromkeys([*adapter.modules, *adapter.replaced]):
        stored = adapter.modules[key].b if key in adapter.modules else adapter.replaced[key]
        if key not in wanted:
            yield f"{stored!r} adapts {key!r}, which is not in the base"
            continue
        info = base.tensors[wanted[key]]
        for shape in adapter.shapes(key):
            if shape != info.shape:
                yield _shape_mismatch(key, stored, shape, info)
        if info.dtype not in FLOATING:
            yield _dtype_mismatch(wanted[key], f"{info.dtype} in the base")


def _config_mismatches(base: Mapping[str, Any], expert: Mapping[str, Any]) -> Iterator[str]:
    if base.get("model_type") != expert.get("model_type"):
        yield (
            f"architecture: model_type is {expert.get('model_type')!r}, "
            f"the base's is {base.get('model_type')!r}"
        )
    for fact in _FACTS:
        one, two = _fact(base, fact), _fact(expert, fact)
        if None not in (one, two) and one != two:
            yield f"architecture: {fact} is {two}, the base's is {one}"


def _fact(config: Mapping[str, Any], name: str) -> Any:
    text = config.get("text_config")
    return text.get(name) if isinstance(text, Mapping) and name in text else config.get(name)


def _tensor_mismatches(
    base: Checkpoint, name: str, expert: Checkpoint, stored: str
) -> Iterator[str]:
    one, two = base.tensors[name], expert.tensors[stored]
    if one.shape != two.shape:
        yield _shape_mismatch(canonical(name), stored, two.shape, one)
    elif (
        not {one.dtype, two.dtype} <= FLOATING
        # equal integers are harmless: no merge touches what no expert changes
        and (one.dtype != two.dtype or not same_values(base, name, expert, stored))
    ):
        yield _dtype_mismatch(stored, f"{two.dtype} (base: {one.dtype})")


def _shape_mismatch(key: str, stored: str, shape: tuple[int, ...], wanted: TensorInfo) -> str:
    table = place(key).tower in ("embeddings", "head")
    if table and shape[1:] == wanted.shape[1:]:
        return (
            f"vocabulary: {stored!r} has {shape[0]} rows, the base's has {wanted.shape[0]} "
            "(resize it to the base's vocabulary first)"
        )
    return f"tensor {stored!r} has shape {list(shape)}, the base's has {list(wanted.shape)}"


def _dtype_mismatch(name: str, dtype: str) -> str:
    return (
        f"tensor {name!r} has dtype {dtype}, expected one of "
        f"{', '.join(sorted(FLOATING))} (dequantise it first)"
    )


def _is_own_embedding(
    owner: Checkpoint, names: Mapping[str, str], other: Checkpoint, key: str
) -> bool:
    """Whether an output projection that only `owner` stores is its embedding, and `other` ties."""
    embedding = embedding_of(names)
    if key != HEAD or embedding is None or not is_tied(other.config):
        return False
    return same_values(owner, names[key], owner, names[embedding])
