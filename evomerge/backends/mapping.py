"""Which memory of a live transformers model holds which tensor of the checkpoint's files.

transformers renames tensors when it loads them (`visual.` becomes `model.visual.`, ...) and fuses
some (the experts of a mixture into one tensor). The same rules, applied to the names on disk, say
where each tensor went; comparing every value once proves it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import CheckpointError, ConfigError

_EXACT = {
    torch.float64: {torch.float64, torch.float32, torch.bfloat16, torch.float16},
    torch.float32: {torch.float32, torch.bfloat16, torch.float16},
    torch.bfloat16: {torch.bfloat16},
    torch.float16: {torch.float16},
}


def holds(compute: torch.dtype, stored: torch.dtype) -> bool:
    """Whether every value of dtype `stored` is a value of dtype `compute`."""
    return compute == stored or stored in _EXACT.get(compute, ())


def live_tensors(model: Any, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Views into the model's parameters and buffers by the names of the checkpoint's files.

    Tensors on disk that the model does not use are left out.

    Raises:
        CheckpointError: a parameter has no tensor, or one of another shape or value.
        ConfigError: the model's dtype rounds a tensor.
    """
    live: dict[str, torch.Tensor] = dict(model.state_dict())
    names, fused = live_names(model, checkpoint.tensors)
    views = {name: live[names[name]] for name in checkpoint.tensors if names.get(name) in live}
    for target, parts in fused.items():
        views.update(_fused_views(target, live[target], parts, checkpoint))
    covered = {view.data_ptr() for view in views.values()}
    for name, tensor in live.items():
        if tensor.numel() and tensor.data_ptr() not in covered:
            raise CheckpointError(
                f"{checkpoint.path}: parameter {name!r} of {type(model).__name__} is in no file; "
                "the checkpoint is incomplete or its architecture in config.json is another"
            )
    for name, view in views.items():
        _compare(name, checkpoint, view)
    return views


Fused = Sequence[tuple[Any, Sequence[str]]]
"""The conversion of a fused tensor with its names on disk, once for each source pattern."""


def live_names(model: Any, names: Iterable[str]) -> tuple[dict[str, str], dict[str, Fused]]:
    """Name on disk -> name in the model, and name in the model -> what is fused into it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    live = model.state_dict()
    renamed: dict[str, str] = {}
    sources: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        target, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, live
        )
        if pattern is None:
            renamed[name] = target
        elif target in live:
            sources[target][pattern].append(name)
    fused: dict[str, Fused] = {}
    for target, by_pattern in sources.items():
        converter = next(c for c in converters if set(by_pattern) <= set(c.source_patterns))
        fused[target] = [
            (converter, sorted(by_pattern[pattern], key=dot_natural_key))
            for pattern in converter.source_patterns
        ]
    return renamed, fused


def _fused_views(
    target: str, live: torch.Tensor, parts: Fused, checkpoint: Checkpoint
) -> dict[str, torch.Tensor]:
    """Views of a tensor that stacks its sources (experts), or joins them, or joins the stacks."""
    operations = {type(op).__name__: op for op in parts[0][0].operations}
    stacked = operations.pop("MergeModulelist", None)
    joined = operations.pop("Concatenate", None)
    if operations or (stacked is not None and stacked.dim != 0):
        raise CheckpointError(
            f"{checkpoint.path}: transformers computes {target!r} from several tensors by "
            f"{', '.join(operations) or 'stacking'}; this backend cannot score such models"
        )
    views: dict[str, torch.Tensor] = {}
    offset = 0
    for _, names in parts:
        size = 0
        for index, name in enumerate(names):
            view = live if stacked is None else live[index]
            if joined is not None:
                axis = joined.dim if stacked is None else joined.dim - 1
                size = checkpoint.tensors[name].shape[axis]
                view = view.narrow(axis, offset, size)
            views[name] = view
        offset += size
    if sum(view.numel() for view in views.values()) != live.numel():
        raise CheckpointError(
            f"{checkpoint.path}: the files hold only part of {target!r} of the model; "
            "the checkpoint is incomplete or its architecture in config.json is another"
        )
    return views


def _compare(name: str, checkpoint: Checkpoint, live: torch.Tensor) -> None:
    stored = checkpoint.read(name)
    if stored.shape != live.shape:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} has shape {tuple(stored.shape)}, but the model "
            f"that config.json describes expects {tuple(live.shape)}"
        )
    if not holds(live.dtype, stored.dtype):
        raise ConfigError(
            f"{checkpoint.path}: tensor {name!r} is {_name(stored.dtype)}, which compute dtype "
            f"{_name(live.dtype)} rounds; set the backend's dtype to {_name(stored.dtype)}"
        )
    if not torch.equal(live, stored.to(live)):
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} is not what the loaded model holds under that "
            "name (or it is not finite); this architecture cannot be scored by this backend"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
