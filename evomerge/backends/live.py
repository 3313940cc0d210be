"""Weights of a checkpoint's files inside a live transformers model.

transformers renames tensors when it loads them (`visual.` becomes `model.visual.`, ...). The same
renaming, applied to the names on disk, says which parameter each one became; comparing every value
once proves it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
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


class LiveWeights:
    """The parameters of a live model under the names that the checkpoint's files give them."""

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        """Maps and compares every tensor.

        Raises:
            CheckpointError: a parameter has no tensor, or one of another shape or value.
        """
        self._checkpoint = checkpoint
        self._tensors = _match(model, checkpoint)
        self._aliases = _aliases(self._tensors)
        self._moved: set[str] = set()

    def load(
        self, weights: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]
    ) -> None:
        """Base plus `weights`, in place; see `Backend.load`."""
        given: set[str] = set()
        for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
            self._check(name, tensor)
            tied = self._aliases[name] & given
            given.add(name)
            if tied:
                self._check_tied(name, min(tied), tensor)
            else:
                self._moved.add(name)
                self._copy(name, tensor)
        self._check_complete(given)
        for name in self._moved - given:
            if not self._aliases[name] & given:
                self._copy(name, self._checkpoint.read(name))
        self._moved = given

    def _copy(self, name: str, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            self._tensors[name].copy_(tensor)

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        live = self._tensors.get(name)
        if live is None:
            raise ConfigError(
                f"tensor {name!r} is no part of the running model, so it cannot be scored; "
                "leave it at base"
            )
        if live.shape != tensor.shape:
            raise ConfigError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, expected {tuple(live.shape)}"
            )
        if not holds(live.dtype, tensor.dtype):
            raise ConfigError(
                f"tensor {name!r} is {_name(tensor.dtype)}, but the model computes in "
                f"{_name(live.dtype)}, which rounds it: the scored model would not be the exported "
                f"one; set the backend's dtype to {_name(tensor.dtype)}, or the recipe's to "
                f"{_name(live.dtype)}"
            )

    def _check_tied(self, name: str, other: str, tensor: torch.Tensor) -> None:
        live = self._tensors[name]
        if not torch.equal(live, tensor.to(live)):
            raise ConfigError(
                f"tensors {name!r} and {other!r} are tied in the model but were given different "
                "values; merge both alike or leave both at base"
            )

    def _check_complete(self, given: set[str]) -> None:
        for name in given:
            missing = self._aliases[name] - given
            if missing:
                raise ConfigError(
                    f"tensors {name!r} and {min(missing)!r} are tied in the model but only the "
                    "first was given; merge both alike or leave both at base"
                )


def _match(model: Any, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    live: dict[str, torch.Tensor] = dict(model.state_dict())
    names = _live_names(model, checkpoint.tensors)
    tensors = {name: live[names[name]] for name in checkpoint.tensors if names[name] in live}
    covered = {t.data_ptr() for t in tensors.values()}
    for name, tensor in live.items():
        if tensor.numel() and tensor.data_ptr() not in covered:
            raise CheckpointError(
                f"{checkpoint.path}: parameter {name!r} of {type(model).__name__} is in no file; "
                "the checkpoint is incomplete or its architecture in config.json is another"
            )
    for name, tensor in tensors.items():
        _compare(name, checkpoint, tensor)
    return tensors


def _live_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Name on disk -> name in the live model, by the renamings that transformers loads with."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    live = model.state_dict()
    found: dict[str, str] = {}
    for name in names:
        target, converted = rename_source_key(
            name, renamings, converters, model.base_model_prefix, live
        )
        if converted is not None and target in live:
            raise CheckpointError(
                f"tensor {name!r} of {type(model).__name__} is fused with others when transformers "
                f"loads it (into {target!r}); such architectures cannot be scored by this backend"
            )
        found[name] = target
    return found


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


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, set[str]]:
    """For each name, the other names whose tensor is the same memory (tied weights)."""
    sharing: dict[int, set[str]] = defaultdict(set)
    for name, tensor in tensors.items():
        sharing[tensor.data_ptr()].add(name)
    return {name: sharing[tensor.data_ptr()] - {name} for name, tensor in tensors.items()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
