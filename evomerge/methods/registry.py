"""The registry of merge methods: a decorated pure function is a method that recipes can name.

A method is ``function(base, experts, context, **values) -> merged``:

- ``base``: float32 tensor, the base model's weights of one tensor;
- ``experts``: one float32 tensor of the same shape an expert, the experts' full weights;
- ``context``: which tensor this is, the seed and the experts' names (for random masks);
- ``values``: the declared parameters. One declared ``per_expert`` arrives as a tuple of floats in
  the order of ``experts``; the others arrive as one number (a ``switch`` as a bool).

It returns a float32 tensor of the same shape and changes none of its inputs. The caller rounds once
to the output dtype. Nothing here imports torch, so that methods can be listed and checked quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: its default, the range a search takes if none is given, its help.

    ``switch`` marks a yes/no choice that is declared, never searched.
    """

    name: str
    help: str
    default: float
    low: float
    high: float
    per_expert: bool = False
    switch: bool = False


@dataclass(frozen=True)
class Context:
    """What a method may know beyond the numbers: names (in the order of the experts) and a seed."""

    tensor: str
    experts: tuple[str, ...]
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """A registered method.

    ``ordered`` says that the order of experts has a meaning (SLERP goes from the first to the
    second); for all others the caller passes the experts sorted by name, so that the order in
    which a user lists them cannot change a single bit.

    ``plain(weights)`` gives the parameters with which the method is the plain sum
    ``θ₀ + Σ wᵢ τᵢ``, or None where it cannot be. It tells a search where in its space the base,
    the experts, their average and task arithmetic lie.
    """

    name: str
    family: str
    summary: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    function: Callable[..., torch.Tensor]
    plain: Callable[[tuple[float, ...]], Mapping[str, float | tuple[float, ...]] | None]
    needs: str = "data-free"
    min_experts: int = 1
    max_experts: int | None = None
    ordered: bool = False

    def parameter(self, name: str) -> Parameter:
        """The declared parameter of that name; ConfigError with the nearest name otherwise."""
        known = {p.name: p for p in self.parameters}
        if name not in known:
            raise ConfigError(
                f"method {self.name!r} has no parameter {name!r}; {did_you_mean(name, list(known))}"
            )
        return known[name]


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    family: str,
    formula: str,
    source: str,
    parameters: Sequence[Parameter],
    plain: Callable[[tuple[float, ...]], Mapping[str, float | tuple[float, ...]] | None],
    min_experts: int = 1,
    max_experts: int | None = None,
    ordered: bool = False,
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Registers the decorated function under ``name``; a name is given once."""

    def add(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        if name in _METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        summary = (function.__doc__ or "").strip().splitlines()[0]
        _METHODS[name] = Method(
            name=name,
            family=family,
            summary=summary,
            formula=formula,
            source=source,
            parameters=tuple(parameters),
            function=function,
            plain=plain,
            min_experts=min_experts,
            max_experts=max_experts,
            ordered=ordered,
        )
        return function

    return add


def get_method(name: str) -> Method:
    """The method registered as ``name``; ConfigError with the nearest name otherwise."""
    if name not in _METHODS:
        raise ConfigError(f"unknown merge method {name!r}; {did_you_mean(name, sorted(_METHODS))}")
    return _METHODS[name]


def all_methods() -> tuple[Method, ...]:
    """All registered methods, sorted by family and name."""
    return tuple(sorted(_METHODS.values(), key=lambda m: (m.family, m.name)))


def single_expert(weights: Sequence[float]) -> bool:
    """Whether ``Σ wᵢ τᵢ`` is nothing, or exactly one whole task vector."""
    return sorted(set(weights)) in ([0.0], [0.0, 1.0], [1.0]) and sum(weights) <= 1
