"""Golden values: every method's formula again, in float64 NumPy, written from the publication.

A module in ``tests/methods/formulas`` decorates one function a method::

    @golden("ties", values=lambda count: {"density": 0.4, "weight": WEIGHTS[count]})
    def ties(base, experts, context, values): ...  # float64 arrays in, the merged array out

``test_golden.py`` runs the method beside it on each shape and number of experts, on LoRA pairs
where ``low_rank`` says that it has a shortcut for them, and holds the largest relative error to
``tolerance``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.methods import Context, Factors, Method, get_method
from tests.methods.cases import TALL, WIDE, Array, context, draw, f64, fill, names

Formula = Callable[[Array, list[Array], Context, Mapping[str, Any]], Array]
Statistics = Callable[[tuple[int, ...], int], Mapping[tuple[str, str], torch.Tensor]]
SHAPES = (WIDE, TALL)
COUNTS = (2, 5)


@dataclass(frozen=True)
class Golden:
    """A formula, what to call it with for N experts, and how near the method must come.

    ``statistics(shape, count)`` draws what the method needs: (kind, source) -> float32 tensor.
    """

    method: str
    formula: Formula
    values: Callable[[int], Mapping[str, Any]]
    tolerance: float
    low_rank: bool
    statistics: Statistics | None


_GOLDEN: list[Golden] = []


def golden(
    method: str,
    *,
    values: Callable[[int], Mapping[str, Any]] = lambda count: {},
    tolerance: float = 1e-5,
    low_rank: bool = False,
    statistics: Statistics | None = None,
) -> Callable[[Formula], Formula]:
    """Registers a formula; a method may have several, each with other values."""

    def add(formula: Formula) -> Formula:
        _GOLDEN.append(Golden(method, formula, values, tolerance, low_rank, statistics))
        return formula

    return add


@cache
def all_golden() -> tuple[Golden, ...]:
    """Every formula of ``tests/methods/formulas``."""
    folder = Path(__file__).parent / "formulas"
    for module in sorted(m.name for m in pkgutil.iter_modules([str(folder)])):
        importlib.import_module(f"tests.methods.formulas.{module}")
    return tuple(_GOLDEN)


def draw_low_rank(
    shape: tuple[int, int], count: int, rank: int = 2, seed: int = 0
) -> tuple[torch.Tensor, list[torch.Tensor], tuple[Factors, ...]]:
    """A base, experts that differ from it by products of ``rank``, and their factors.

    Entries of the factors are multiples of 1/32, so that the products are exact in float32.
    """
    generator = np.random.default_rng([seed, count, rank, *shape])
    base = torch.tensor(np.round(generator.standard_normal(shape) * 1024) / 1024).float()

    def grid(*size: int) -> torch.Tensor:
        return torch.tensor(np.round(generator.standard_normal(size) * 8) / 32).float()

    factors = tuple(Factors(grid(shape[0], rank), grid(rank, shape[1])) for _ in range(count))
    return base, [base + f.b @ f.a for f in factors], factors


def counts(method: Method) -> tuple[int, ...]:
    """2 and 5 experts, or what the method takes instead."""
    return tuple({min(c, method.max_experts or c): None for c in COUNTS})


def error(case: Golden, shape: tuple[int, int], count: int, low_rank: bool = False) -> float:
    """Largest difference from the formula over the largest change of an entry by the merge."""
    method = get_method(case.method)
    where = context(count, seed=3)
    if case.statistics is not None:
        drawn = case.statistics(shape, count)
        where = replace(where, lookup=lambda kind, source: drawn.get((kind, source)))
    if low_rank:
        base, experts, factors = draw_low_rank(shape, count, rank=1)
        where = replace(where, factors=factors)
    else:
        base, experts = draw(shape, count)
    values = fill(method, count, **case.values(count))
    found = f64(method.merge(base, Unread(experts) if low_rank else experts, where, values))
    expected = case.formula(f64(base), [f64(e) for e in experts], where, values)
    assert names(count) == where.experts
    return float(np.abs(found - expected).max() / np.abs(expected - f64(base)).max())


class Unread(list[torch.Tensor]):
    """Experts that must not be read: the method is to work on the factors."""

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("the method read an expert, although it has the factors")

    def __iter__(self) -> Any:
        raise AssertionError("the method read an expert, although it has the factors")
