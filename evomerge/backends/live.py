"""Weights of a candidate inside a live transformers model, under the names of the base's files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch

from evomerge.backends.mapping import holds, live_tensors
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigError


class LiveWeights:
    """The parameters of a live model under the names that the checkpoint's files give them."""

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        """Maps and compares every tensor; raises what `live_tensors` does."""
        self._checkpoint = checkpoint
        self._tensors = live_tensors(model, checkpoint)
        self._aliases = _aliases(self._tensors)
        self._moved: set[str] = set()

    @property
    def names(self) -> Set[str]:
        """The tensors that the model uses."""
        return self._tensors.keys()

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Views into the model's parameters and buffers."""
        return self._tensors

    def load(
        self,
        weights: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
        kept: Set[str] = frozenset(),
    ) -> None:
        """Base plus `weights`, in place; see `Backend.load`."""
        given: set[str] = set(kept)
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

    def destination(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """See `Backend.destination`. Tied tensors have to be compared, so they have none."""
        live = self._tensors.get(name)
        if live is None or self._aliases[name]:
            return None
        if live.dtype not in (dtype, torch.float32) or not live.is_contiguous():
            return None
        if not holds(live.dtype, dtype):
            return None
        self._moved.add(name)
        return live.detach()

    def _copy(self, name: str, tensor: torch.Tensor) -> None:
        live = self._tensors[name]
        if live.data_ptr() == tensor.data_ptr() and live.dtype == tensor.dtype:
            return  # written there already
        with torch.no_grad():
            live.copy_(tensor)

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


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, set[str]]:
    """For each name, the other names whose tensor is the same memory (tied weights)."""
    sharing: dict[int, set[str]] = defaultdict(set)
    for name, tensor in tensors.items():
        sharing[tensor.data_ptr()].add(name)
    return {name: sharing[tensor.data_ptr()] - {name} for name, tensor in tensors.items()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
