"""Breadcrumbs: which entries of a row stay, and what follows at the ends of the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.methods import get_method
from evomerge.methods.elementwise.breadcrumbs import middle
from tests.methods.cases import WIDE, close, draw, f64, run

WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "breadcrumbs": ("task_arithmetic", {}),
    "breadcrumbs_ties": ("ties", {"density": 1.0, "normalise": False}),
}
BOTH = pytest.mark.parametrize("name", WHOLE)


def test_by_hand() -> None:
    row = torch.tensor([[5.0, -1.0, 3.0, -4.0, 0.0, 2.0, -7.0, 6.0, 8.0, -9.0]])
    # the 2 largest (-9, 8) go, then the 3 largest of the rest (-7, 6, 5) stay
    expected = torch.tensor([[5.0, 0, 0, 0, 0, 0, -7.0, 6.0, 0, 0]])
    assert torch.equal(middle(row, 0.3, 0.2), expected)


def test_density_counts_the_whole_row_but_no_more_than_is_left() -> None:
    row = torch.arange(1.0, 11.0).reshape(1, 10)
    assert torch.equal(middle(row, 0.9, 0.3)[0], torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 0, 0, 0]))


def test_each_row_by_itself() -> None:
    delta = torch.tensor([[100.0, 200.0, 300.0, 400.0], [1.0, 2.0, 3.0, 4.0]])
    expected = torch.tensor([[0.0, 200.0, 300.0, 0.0], [0.0, 2.0, 3.0, 0.0]])
    assert torch.equal(middle(delta, 0.5, 0.25), expected)


def test_of_equal_entries_the_number_is_exact() -> None:
    found = middle(torch.ones(3, 20), 0.5, 0.1)
    assert torch.equal(found, torch.tensor([[0.0] * 8 + [1.0] * 10 + [0.0] * 2] * 3))


def test_half_an_entry_is_rounded_up() -> None:
    row = torch.arange(1.0, 11.0).reshape(1, 10)
    assert int((middle(row, 0.25, 0.0) != 0).sum()) == 3
    assert int((middle(row, 0.24, 0.0) != 0).sum()) == 2
    assert int((middle(row, 1.0, 0.05) != 0).sum()) == 9


def test_without_outliers_entries_are_nested() -> None:
    delta = torch.randn(10, 40, generator=torch.Generator().manual_seed(0))
    found = [middle(delta, d, 0.05) != 0 for d in (0.1, 0.3, 0.7, 0.95, 1.0)]
    for i, larger in enumerate(found):
        assert not any((smaller & ~larger).any() for smaller in found[:i])


@BOTH
@pytest.mark.parametrize("shape", [WIDE, (40,), (4, 3, 5)], ids=str)
def test_density_1_and_gamma_0_leave_everything(name: str, shape: tuple[int, ...]) -> None:
    base, experts = draw(shape, 3)
    found = run(get_method(name), base, experts, density=1.0, gamma=0.0, scale=0.5)
    other, more = WHOLE[name]
    same = run(get_method(other), base, experts, weight=1.0, scale=0.5, **more)
    assert torch.equal(found, same)


def test_where_rows_agree_in_sign_the_election_changes_nothing() -> None:
    base, experts = draw(WIDE, 3)
    upwards = [base + (e - base).abs() for e in experts]
    values: dict[str, Any] = {"density": 0.5, "gamma": 0.1, "scale": 1.0}
    expected = f64(run(get_method("breadcrumbs"), base, upwards, **values))
    close(run(get_method("breadcrumbs_ties"), base, upwards, **values), expected)


def test_election_by_hand() -> None:
    base = torch.zeros(1, 2)
    experts = [torch.tensor([[3.0, 1.0]]), torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 0]])]
    values: dict[str, Any] = {"density": 1.0, "gamma": 0.0, "scale": 1.0, "weight": (1.0, 0.5, 2.0)}
    method = get_method("breadcrumbs_ties")
    assert run(method, base, experts, **values).tolist() == [[5.0, 1.0]]  # votes 3 -0.5 2; 1 -1 0
    mean = run(method, base, experts, normalise=True, **values)
    torch.testing.assert_close(mean, torch.tensor([[5 / 3, 1.0]]))
