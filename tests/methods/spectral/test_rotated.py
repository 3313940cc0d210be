"""Selections that do not hang on the last bit."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.methods import masks
from evomerge.methods.spectral.rotated import disjoint_mean, trim, without_noise


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.35, 0.5, 0.9, 1.0])
def test_a_trim_is_the_common_one_where_nothing_is_equal(density: float) -> None:
    drawn = torch.randn(9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trim(drawn, density), masks.trim(drawn, density))


def test_a_trim_keeps_what_is_equal_up_to_rounding() -> None:
    third = 1 / 3
    equal = [third, -math.nextafter(third, 1), math.nextafter(third, 0)]
    found = trim(row(*equal, 0.33, 1.0), 2 / 5)
    assert found.tolist() == [[*equal, 0.0, 1.0]]


def test_a_trim_keeps_at_least_what_it_is_told_to() -> None:
    assert trim(row(1.0, -3.0, 2.0), 0.0, least=1).tolist() == [[0.0, -3.0, 0.0]]
    assert trim(row(1.0, -3.0, 2.0), 0.7, least=1).tolist() == [[0.0, -3.0, 2.0]]
    assert trim(row(), 0.5, least=1).tolist() == [[]]


def test_noise_is_what_float32_weights_cannot_hold() -> None:
    """Against the longest column, whose length is 10 here."""
    above, below = 10 * 2.0**-22, 10 * 2.0**-24
    columns = torch.tensor([[-8.0, above, below, 1e-17], [6.0, 0.0, -above, -below]]).double()
    expected = [[-8.0, above, 0.0, 0.0], [6.0, 0.0, -above, 0.0]]
    assert without_noise(columns).tolist() == expected
    assert not without_noise(torch.zeros(2, 3)).any()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([3.0, 1.0, -1.0], 2.0),
        ([3.0, -1.0, -1.0], 3.0),
        ([1.0, -2.0, -4.0], -3.0),
        ([3.0, 0.0, 1.0], 2.0),
        ([1.0, -1.0, 0.0], 0.0),  # no sign wins, up to rounding
        ([0.1 + 0.2, -0.3, 0.0], 0.0),
        ([0.0, 0.0, 0.0], 0.0),
    ],
)
def test_disjoint_mean_by_hand(entries: list[float], expected: float) -> None:
    assert disjoint_mean([row(x) for x in entries]).tolist() == [[expected]]
