"""NuSLERP: arcs by hand, by row, of task vectors; where there is no arc."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import get_method
from tests.methods.cases import TALL, WIDE, close, draw, f64, run


def merged(first: list[Any], second: list[Any], **values: Any) -> torch.Tensor:
    experts = [torch.tensor(first), torch.tensor(second)]
    return run(get_method("nuslerp"), torch.zeros_like(experts[0]), experts, **values)


def test_by_hand() -> None:
    found = merged([1.0, 0.0], [0.0, 1.0], weight=(1.0, 1.0))
    assert found.tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    found = merged([2.0, 0.0], [0.0, 4.0], weight=(1.0, 0.5))
    assert found.tolist() == pytest.approx([math.sqrt(3), 2])


def test_by_row() -> None:
    first, second = [[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [4.0, 0.0], [0.0, 3.0]]
    found = merged(first, second, weight=(0.5, 1.0), row_wise=True)
    expected = [[0.5, math.sqrt(3) / 2], [10 / 3, 0], [0, 2]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_it_is_slerp_by_weights(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 2)
    found = run(get_method("nuslerp"), base, experts, weight=(0.3, 0.9))
    close(found, f64(run(get_method("slerp"), base, experts, t=0.75)))
    again = run(get_method("nuslerp"), base, experts, weight=(0.1, 0.3))
    close(again, f64(found))


@pytest.mark.parametrize("row_wise", [False, True])
def test_a_base_of_zeros_makes_weights_task_vectors(row_wise: bool) -> None:
    base, experts = draw(WIDE, 2)
    method = get_method("nuslerp")
    values: dict[str, Any] = {"weight": (0.4, 0.8), "row_wise": row_wise}
    moved = run(method, torch.zeros(WIDE), [e - base for e in experts], **values)
    found = run(method, base, experts, task_vectors=True, **values)
    close(found, f64(base) + f64(moved))


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("shape", [WIDE, (7,), (2, 3, 4)], ids=str)
def test_a_single_weight_gives_that_expert(shape: tuple[int, ...], row_wise: bool) -> None:
    base, experts = draw(shape, 2)
    method = get_method("nuslerp")
    for weight, expert in [((0.3, 0.0), experts[0]), ((0.0, 1.0), experts[1])]:
        found = run(method, base, experts, weight=weight, row_wise=row_wise)
        assert torch.equal(found, expert)
        found = run(method, base, experts, weight=weight, row_wise=row_wise, task_vectors=True)
        close(found, f64(expert))


@pytest.mark.parametrize("row_wise", [False, True])
def test_scale(row_wise: bool) -> None:
    base, experts = draw(WIDE, 2)
    method = get_method("nuslerp")
    whole = f64(run(method, base, experts, row_wise=row_wise)) - f64(base)
    close(run(method, base, experts, row_wise=row_wise, scale=1.5), f64(base) + 1.5 * whole)


@pytest.mark.parametrize(
    "second",
    [[-3.0, 0.0], [-1.0, 0.0], [-1.0, 0.01], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]],
    ids=str,
)
def test_where_there_is_no_arc_it_is_linear(second: list[float]) -> None:
    found = merged([1.0, 0.0], second, weight=(1.0, 3.0))
    assert found.tolist() == pytest.approx([0.25 + 0.75 * second[0], 0.75 * second[1]])


def test_arcs_shorter_than_float32_can_tell() -> None:
    found = merged([1.0, 0.0], [1.0, 1e-5], weight=(1.0, 3.0))
    assert found.tolist() == pytest.approx([1.0, 7.5e-6])


def test_weights_that_sum_to_zero_are_refused() -> None:
    base, experts = draw(WIDE, 2)
    with pytest.raises(CandidateError, match=r"nuslerp: the weights of .* sum to 0; at least one"):
        run(get_method("nuslerp"), base, experts, weight=0.0)
    assert torch.equal(run(get_method("nuslerp"), base, experts, weight=0.0, scale=0.0), base)
