"""What every registered method must do; a new one is tested here without a word about it."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError, ConfigError
from evomerge.methods import Context, Method, all_methods, get_method
from evomerge.methods.registry import FAMILIES, register
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, fill, run, sum_formula
from tests.methods.drawn import draw_statistics
from tests.methods.golden import draw_low_rank

SHAPES = [(1,), (7,), WIDE, TALL, (2, 3, 4)]
EXACT_SHARE = 1e-5  # of the largest change by an expert: the rounding that is allowed


def counts(method: Method) -> list[int]:
    return [n for n in (1, 2, 3, 5) if method.min_experts <= n <= (method.max_experts or n)]


def where(method: Method, shape: tuple[int, ...], count: int, bare: bool = False) -> Context:
    """A context in the middle of a tower, with the statistics that the method needs."""
    plain = replace(context(count), block=1, blocks=4)
    if bare or not (method.statistics or method.base_statistics):
        return plain
    drawn = draw_statistics(method.statistics, method.base_statistics, shape, plain.experts, 0)
    return replace(plain, lookup=lambda kind, source: drawn.get((kind, source)))


def merge(
    method: Method, base: torch.Tensor, experts: Sequence[torch.Tensor], **values: Any
) -> torch.Tensor:
    at = where(method, tuple(base.shape), len(experts))
    return run(method, base, experts, at, **values)


def size(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> float:
    """The largest change of an entry by an expert."""
    return max(float((e - base).abs().max()) for e in experts)


CASES = [pytest.param(m, n, id=f"{m.name}-{n}") for m in all_methods() for n in counts(m)]
UNORDERED = [case for case in CASES if not case.values[0].ordered]
SCALED = [case for case in CASES if any(p.name == "scale" for p in case.values[0].parameters)]
MATRICES = [case for case in CASES if case.values[0].matrices]
INFORMED = [case for case in CASES if case.values[0].needs != "data-free"]
SHORT = [case for case in CASES if not case.values[0].by_factors]
every_case = pytest.mark.parametrize(("method", "count"), CASES)
every_method = pytest.mark.parametrize("method", all_methods(), ids=lambda m: m.name)


@every_case
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_result_is_a_new_tensor_of_the_same_shape(
    method: Method, count: int, shape: tuple[int, ...]
) -> None:
    base, experts = draw(shape, count)
    before = [t.clone() for t in (base, *experts)]
    found = merge(method, base, experts)
    assert (found.shape, found.dtype, found.device) == (base.shape, torch.float32, base.device)
    assert found.isfinite().all()
    found.fill_(math.nan)  # would show through if it shared memory with an input
    assert all(torch.equal(a, b) for a, b in zip((base, *experts), before, strict=True))


@every_case
def test_the_same_inputs_give_the_same_bits(method: Method, count: int) -> None:
    base, experts = draw(WIDE, count)
    first, second = (merge(method, base, experts) for _ in range(2))
    assert torch.equal(first.view(torch.int32), second.view(torch.int32))


@every_case
def test_strides_do_not_matter(method: Method, count: int) -> None:
    base, experts = draw(WIDE, count)
    strided = [t.T.contiguous().T for t in (base, *experts)]
    assert not strided[0].is_contiguous()
    assert torch.equal(merge(method, strided[0], strided[1:]), merge(method, base, experts))


@every_case
def test_experts_that_are_the_base_give_the_base(method: Method, count: int) -> None:
    base, _ = draw(WIDE, count)
    close(merge(method, base, [base.clone() for _ in range(count)]), f64(base))


@every_case
def test_tensors_of_zeros(method: Method, count: int) -> None:
    zero = torch.zeros(3, 4)
    assert torch.equal(merge(method, zero, [zero.clone() for _ in range(count)]), zero)


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
        found = merge(method, base, experts, **values)
        expected = sum_formula(f64(base), deltas, weights_, 1.0)
        np.testing.assert_allclose(f64(found), expected, rtol=1e-5, atol=1e-5)


@every_case
def test_the_base_is_among_the_plain_points(method: Method, count: int) -> None:
    """A search is told of the base's scores, wherever a method can leave the model as it is."""
    able = any(p.name == "scale" and p.low <= 0 for p in method.parameters)
    assert method.plain((0.0,) * count) is not None or not able


@pytest.mark.parametrize(("method", "count"), SCALED)
@pytest.mark.parametrize("shape", [WIDE, TALL, (7,)], ids=str)
def test_scale_zero_is_the_base(method: Method, count: int, shape: tuple[int, ...]) -> None:
    base, experts = draw(shape, count)
    assert torch.equal(merge(method, base, experts, scale=0.0), base)


@every_case
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_the_declared_ranges(method: Method, count: int, end: str) -> None:
    base, experts = draw(WIDE, count)
    values = {p.name: getattr(p, end) for p in method.parameters if p.low > 0 or end == "high"}
    assert merge(method, base, experts, **values).isfinite().all()


@every_case
def test_each_end_by_itself(method: Method, count: int) -> None:
    """What a search may propose is either merged or refused with a reason."""
    base, experts = draw(TALL, count)
    for p in method.parameters:
        for value in (p.low, p.high):
            try:
                found = merge(method, base, experts, **{p.name: value})
            except CandidateError as error:
                assert str(error)  # noqa: PT017 - either is right
            else:
                assert found.isfinite().all()


@pytest.mark.parametrize(("method", "count"), UNORDERED)
def test_the_order_of_experts_changes_no_more_than_rounding(method: Method, count: int) -> None:
    base, experts = draw(WIDE, count)
    drawn = random.Random(count)
    values = {
        p.name: tuple(drawn.uniform(max(p.low, 0.1), p.high) for _ in range(count))
        for p in method.parameters
        if p.per_expert
    }
    at = where(method, WIDE, count)
    expected = f64(run(method, base, experts, at, **values))
    for _ in range(5):
        order = drawn.sample(range(count), count)
        found = run(
            method,
            base,
            [experts[i] for i in order],
            replace(at, experts=tuple(at.experts[i] for i in order)),
            **{name: tuple(value[i] for i in order) for name, value in values.items()},
        )
        close(found, expected)


DEGENERATE = ["zero", "one is zero", "identical", "rank one", "constant", "opposite"]


def degenerate(
    kind: str, shape: tuple[int, int], count: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    base, experts = draw(shape, count)
    if kind == "zero":
        return base, [base.clone() for _ in experts]
    if kind == "one is zero":
        return base, [*experts[:-1], base.clone()]
    if kind == "identical":
        return base, [experts[0].clone() for _ in experts]
    if kind == "rank one":
        left, right = torch.arange(shape[0]) / 8, torch.arange(shape[1]) / 8 - 1
        return base, [base + (i + 1) * torch.outer(left, right) / 16 for i in range(count)]
    if kind == "constant":
        return base, [base + 0.25 for _ in experts]
    return base, [base + (experts[0] - base) * (-1) ** i for i in range(count)]


@every_case
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)
def test_degenerate_experts_give_finite_weights(
    method: Method, count: int, kind: str, shape: tuple[int, int]
) -> None:
    base, experts = degenerate(kind, shape, count)
    found = merge(method, base, experts)
    assert found.isfinite().all()
    if kind == "zero":
        close(found, f64(base))


@every_case
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [WIDE, (7,)], ids=str)
def test_what_is_not_finite_is_refused(
    method: Method, count: int, value: float, shape: tuple[int, ...]
) -> None:
    base, experts = draw(shape, count)
    experts[-1].flatten()[3] = value
    with pytest.raises(CandidateError, match=r"up_proj\.weight"):
        merge(method, base, experts, **reach(method, count))


def reach(method: Method, count: int) -> dict[str, Any]:
    """Parameters under which every entry of every expert counts."""
    wanted = {"density": 1.0, "t": 0.5}
    return {p.name: wanted[p.name] for p in method.parameters if p.name in wanted}


@every_case
def test_threads_change_no_bit(method: Method, count: int) -> None:
    base, experts = draw((96, 160), count)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(merge(method, base, experts))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].view(torch.int32), found[1].view(torch.int32))


@pytest.mark.parametrize(("method", "count"), SHORT)
def test_factors_change_no_more_than_rounding(method: Method, count: int) -> None:
    """The short cut for LoRA experts is only a short cut."""
    base, experts, factors = draw_low_rank((24, 40), count)
    at = where(method, (24, 40), count)
    dense = run(method, base, experts, at)
    short = run(method, base, experts, replace(at, factors=factors))
    allowed = EXACT_SHARE * size(base, experts)
    np.testing.assert_allclose(f64(short), f64(dense), rtol=0, atol=allowed)


@pytest.mark.parametrize(("method", "count"), MATRICES)
@pytest.mark.parametrize("module", ["embedding", "head", "norm", "bias"])
def test_matrix_methods_average_what_is_no_map_between_states(
    method: Method, count: int, module: str
) -> None:
    base, experts = draw(WIDE, count)
    found = run(method, base, experts, replace(where(method, WIDE, count), module=module))
    values = fill(method, count)
    total = sum(values.get("weight", (1.0,) * count)) if method.shares else count
    weights = [w / total for w in values.get("weight", (1.0,) * count)]
    deltas = [f64(e) - f64(base) for e in experts]
    close(found, sum_formula(f64(base), deltas, weights, values.get("scale", 1.0)))


@pytest.mark.parametrize(("method", "count"), INFORMED)
def test_without_statistics_the_average_is_made(method: Method, count: int) -> None:
    base, experts = draw(WIDE, count)
    found = run(method, base, experts, where(method, WIDE, count, bare=True))
    values = fill(method, count)
    total = sum(values["weight"]) if method.shares else count
    deltas = [f64(e) - f64(base) for e in experts]
    shares = [w / total for w in values["weight"]]
    close(found, sum_formula(f64(base), deltas, shares, values.get("scale", 1.0)))


@every_method
def test_the_declaration_is_complete(method: Method) -> None:
    keywords = inspect.signature(method.function).parameters.values()
    declared = [p.name for p in method.parameters]
    assert [k.name for k in keywords if k.kind is k.KEYWORD_ONLY] == declared
    assert all((method.name, method.family, method.summary, method.formula, method.source))
    assert method.cost
    assert method.summary.endswith(".")
    needs_nothing = method.needs == "data-free"
    assert needs_nothing == (not method.statistics and not method.base_statistics)
    for p in method.parameters:
        assert p.low < p.high
        assert p.low <= p.default <= p.high
        assert p.help
        assert sum((p.switch, p.per_expert, p.integer)) <= 1


def test_methods_are_sorted_and_found_by_name() -> None:
    methods = all_methods()
    place = list(FAMILIES).index
    assert list(methods) == sorted(methods, key=lambda m: (place(m.family), m.name))
    assert all(get_method(m.name) is m for m in methods)


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'tise'; did you mean 'ties'\?"):
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
