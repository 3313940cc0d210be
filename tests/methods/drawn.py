"""Statistics drawn at random, of every kind that methods read.

What is drawn for a source depends on its name, not on its place in the list, so that experts may be
given in another order.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from evomerge.methods.context import BASE, Context
from tests.methods.cases import Array, context, names

Statistics = dict[tuple[str, str], torch.Tensor]
_TOKENS = 200


def draw_statistics(
    kinds: Sequence[str],
    base_kinds: Sequence[str],
    shape: Sequence[int],
    names: Sequence[str],
    seed: int = 0,
    rank: int | None = None,
) -> Statistics:
    """(kind, source) -> float32: ``kinds`` of the experts ``names``, ``base_kinds`` of the base.

    Kinds about a linear map's inputs are left out for tensors that are no matrix. ``rank`` limits
    the rank of the Grams (each expert's inputs then fill a subspace of their own).
    """
    wanted = [(kind, name) for kind in kinds for name in names]
    wanted += [(kind, BASE) for kind in base_kinds]
    drawn = {(kind, name): _draw(kind, name, tuple(shape), seed, rank) for kind, name in wanted}
    return {key: torch.tensor(value).float() for key, value in drawn.items() if value is not None}


def informed(statistics: Mapping[tuple[str, str], torch.Tensor], count: int) -> Context:
    """The context of the tests, with these statistics to be found in it."""
    return replace(context(count), lookup=lambda kind, source: statistics.get((kind, source)))


def each(kind: str, *values: torch.Tensor) -> Statistics:
    """The statistic ``kind`` of each expert, in their order."""
    return {(kind, name): v for name, v in zip(names(len(values)), values, strict=True)}


def _draw(
    kind: str, name: str, shape: tuple[int, ...], seed: int, rank: int | None
) -> Array | None:
    generator = np.random.default_rng([seed, zlib.crc32(f"{kind} {name}".encode()), *shape])
    if kind == "sensitivity":
        return generator.uniform(0.05, 1.0, 2)
    if kind in ("fisher", "second_moment"):
        squared: Array = generator.standard_normal(shape) ** 2
        squared *= generator.random(shape) < 0.9  # some entries never saw a gradient
        return squared * (1.0 if kind == "fisher" else 1e-8)
    if kind not in ("gram", "merged_gram", "magnitude"):
        raise ValueError(f"no statistic {kind!r} to draw")
    if len(shape) != 2:
        return None
    inputs = _inputs(generator, shape[1], rank)
    if kind == "magnitude":
        magnitude: Array = np.abs(inputs).mean(axis=0)
        return magnitude
    gram: Array = inputs.T @ inputs / _TOKENS
    return (gram + gram.T) / 2


def _inputs(generator: np.random.Generator, width: int, rank: int | None) -> Array:
    """Tokens by channels, some channels an order of magnitude larger than others."""
    mixing = generator.standard_normal((min(rank or width, width), width))
    mixing *= generator.uniform(0.1, 1.0, width)
    inputs: Array = generator.standard_normal((_TOKENS, len(mixing))) @ mixing
    inputs /= np.sqrt(len(mixing))
    return inputs
