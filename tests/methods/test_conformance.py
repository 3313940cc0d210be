"""What every registered method must do; a new one is tested here without a word about it."""

from __future__ import annotations

import inspect
import math
import random

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import Context, Method, all_methods, get_method
from evomerge.methods.registry import register
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run, sum_formula

SHAPES = [(1,), (7,), WIDE, TALL, (2, 3, 4)]


def counts(method: Method) -> list[int]:
    return [n for n in (1, 2, 3, 5) if method.min_experts <= n <= (method.max_experts or n)]


CASES = [pytest.param(m, n, id=f"{m.name}-{n}") for m in all_methods() for n in counts(m)]
UNORDERED = [case for case in CASES if not case.values[0].ordered]
every_case = pytest.mark.parametrize(("method", "count"), CASES)
every_method = pytest.mark.parametrize("method", all_methods(), ids=lambda m: m.name)


@every_case
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_result_is_a_new_tensor_of_the_same_shape(
    method: Method, count: int, shape: tuple[int, ...]
) -> None:
    base, experts = draw(shape, count)
    before = [t.clone() for t in (base, *experts)]
    found = run(method, base, experts)
    assert (found.shape, found.dtype, found.device) == (base.shape, torch.float32, base.device)
    assert found.isfinite().all()
    found.fill_(math.nan)  # would show through if it shared memory with an input
    assert all(torch.equal(a, b) for a, b in zip((base, *experts), before, strict=True))


@every_case
def test_the_same_inputs_give_the_same_bits(method: Method, count: int) -> None:
    base, experts = draw(WIDE, count)
    first, second = (run(method, base, experts) for _ in range(2))
    assert torch.equal(first.view(torch.int32), second.view(torch.int32))


@every_case
def test_strides_do_not_matter(method: Method, count: int) -> None:
    base, experts = draw(WIDE, count)
    strided = [t.T.contiguous().T for t in (base, *experts)]
    assert not strided[0].is_contiguous()
    assert torch.equal(run(method, strided[0], strided[1:]), run(method, base, experts))


@every_case
def test_experts_that_are_the_base_give_the_base(method: Method, count: int) -> None:
    base, _ = draw(WIDE, count)
    close(run(method, base, [base.clone() for _ in range(count)]), f64(base))


@every_case
def test_tensors_of_zeros(method: Method, count: int) -> None:
    zero = torch.zeros(3, 4)
    assert torch.equal(run(method, zero, [zero.clone() for _ in range(count)]), zero)


@every_case
def test_plain_parameters_give_the_plain_sum(method: Method, count: int) -> None:
    """``plain`` claims that the method is then θ₀ + Σ wᵢ τᵢ; None claims nothing."""
    base, experts = draw(WIDE, count)
    drawn = random.Random(f"{method.name} {count}")
    wanted = [tuple(float(i == j) for i in range(count)) for j in range(count)]
    wanted += [(0.0,) * count, (1.0,) * count, (0.3,) * count, (1 / count,) * count]
    for _ in range(20):
        weights = [drawn.uniform(-0.5, 1.5) for _ in range(count)]
        wanted += [tuple(weights), tuple(abs(w) for w in weights)]
        wanted.append(tuple(w / math.fsum(weights) for w in weights))
        wanted.append(tuple(drawn.choice((0.0, 1.0)) for _ in range(count)))
    deltas = [f64(e) - f64(base) for e in experts]
    for weights_ in wanted:
        values = method.plain(weights_)
        if values is None:
            continue
        found = run(method, base, experts, **values)
        expected = sum_formula(f64(base), deltas, weights_, 1.0)
        np.testing.assert_allclose(f64(found), expected, rtol=1e-5, atol=1e-5)


@every_case
def test_each_expert_alone_is_among_the_plain_points(method: Method, count: int) -> None:
    """A search is told of the experts' scores, so every space must know where the experts lie."""
    for j in range(count):
        assert method.plain(tuple(float(i == j) for i in range(count))) is not None


@every_case
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_the_declared_ranges(method: Method, count: int, end: str) -> None:
    base, experts = draw(WIDE, count)
    values = {p.name: getattr(p, end) for p in method.parameters if p.low > 0 or end == "high"}
    assert run(method, base, experts, **values).isfinite().all()


@pytest.mark.parametrize(("method", "count"), UNORDERED)
def test_the_order_of_experts_changes_no_more_than_rounding(method: Method, count: int) -> None:
    base, experts = draw(WIDE, count)
    drawn = random.Random(count)
    values = {
        p.name: tuple(drawn.uniform(max(p.low, 0.1), p.high) for _ in range(count))
        for p in method.parameters
        if p.per_expert
    }
    where = context(count)
    expected = f64(run(method, base, experts, where, **values))
    for _ in range(5):
        order = drawn.sample(range(count), count)
        found = run(
            method,
            base,
            [experts[i] for i in order],
            Context(where.tensor, tuple(where.experts[i] for i in order), where.seed),
            **{name: tuple(value[i] for i in order) for name, value in values.items()},
        )
        close(found, expected)


@every_method
def test_the_declaration_is_complete(method: Method) -> None:
    keywords = inspect.signature(method.function).parameters.values()
    declared = [p.name for p in method.parameters]
    assert [k.name for k in keywords if k.kind is k.KEYWORD_ONLY] == declared
    assert all((method.name, method.family, method.summary, method.formula, method.source))
    for p in method.parameters:
        assert p.low < p.high
        assert p.low <= p.default <= p.high
        assert p.help
        assert not (p.switch and p.per_expert)


def test_methods_are_sorted_and_found_by_name() -> None:
    methods = all_methods()
    assert list(methods) == sorted(methods, key=lambda m: (m.family, m.name))
    assert all(get_method(m.name) is m for m in methods)


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'tise'; did you mean 'ties'\? known: dare_linear, "):
        get_method("tise")


def test_a_misspelt_parameter_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'ties' has no parameter 'densty'; did you mean 'dens"):
        get_method("ties").parameter("densty")


def test_a_name_is_given_once() -> None:
    taken = all_methods()[0]
    decorate = register(
        taken.name, family="elementwise", formula="x", source="x", cost="x", parameters=[]
    )
    with pytest.raises(ValueError, match="registered twice"):
        decorate(taken.function)
    assert get_method(taken.name) is taken
