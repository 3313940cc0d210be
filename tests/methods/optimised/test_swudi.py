"""SWUDI and ASWUDI: the filter's ends, its cut, and the effective rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.methods import get_method
from evomerge.methods.optimised.descent import flow, minimum, of_largest
from evomerge.methods.optimised.swudi import participating
from tests.methods.cases import TALL, WIDE, close, draw, f64, run

both_shapes = pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)
SWUDI = get_method("swudi")


@both_shapes
@pytest.mark.parametrize("start", [0.0, 1 / 3, 1.0])
def test_at_time_zero_it_is_the_starting_point(shape: tuple[int, int], start: float) -> None:
    base, experts = draw(shape, 3)
    expected = f64(base) + start * sum(f64(e) - f64(base) for e in experts)
    close(run(SWUDI, base, experts, t=0.0, start=start), expected)


@both_shapes
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_in_the_end_it_is_the_minimum_of_wudi(shape: tuple[int, int], start: float) -> None:
    base, experts = draw(shape, 3)
    found = run(SWUDI, base, experts, t=1e9, share=1.0, start=start)
    close(found, f64(run(get_method("wudi_closed"), base, experts)))


def test_time_brings_it_nearer() -> None:
    base, experts = draw(TALL, 3)
    end = run(get_method("wudi_closed"), base, experts)
    far = [
        float((run(SWUDI, base, experts, t=t, share=1.0) - end).norm())
        for t in (0.0, 0.5, 2.0, 8.0, 32.0)
    ]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.1 * far[0]


def test_beyond_the_cut_the_starting_point_is_kept() -> None:
    base, experts = draw(WIDE, 2)
    deltas = [f64(e) - f64(base) for e in experts]
    rows = np.concatenate([d / np.linalg.norm(d) for d in deltas])
    _, _, vh = np.linalg.svd(rows)
    moved = f64(run(SWUDI, base, experts, share=0.1)) - f64(base) - sum(deltas)
    assert np.abs(moved @ vh[4:].T).max() < 1e-6  # K = ⌈0.1 · 40⌉
    assert np.abs(moved @ vh[3]).max() > 1e-3


def test_equal_eigenvalues_at_the_cut_move_alike() -> None:
    """Two experts of one direction each, and N equals of both: λ is 2 twice, K = 1."""
    base = torch.zeros(3, 4)
    one, other = base.clone(), base.clone()
    one[0, 0], other[1, 1] = 3.0, 5.0
    found = run(SWUDI, base, [one, other, one, other], share=0.01, t=1e9)
    close(found, f64(one + other))


def test_the_filter_of_an_eigenvalue_of_zero_is_its_limit() -> None:
    values = torch.tensor([0.0, 1e-12, 0.5], dtype=torch.float64)
    expected = [3.0, 3.0, (1 - np.exp(-1.5)) / 0.5]
    np.testing.assert_allclose(flow(3.0)(values), expected, rtol=1e-10)


def test_the_cut_counts_from_the_largest() -> None:
    values = torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=torch.float64)
    assert of_largest(2, minimum((4, 4)))(values).tolist() == [0, 0, 1, 0.5]
    assert of_largest(0, minimum((4, 4)))(values).tolist() == [0, 0, 0, 0.5]
    assert of_largest(9, minimum((4, 4)))(values).tolist() == [4, 2, 1, 0.5]


@pytest.mark.parametrize(
    ("roots", "kept"),
    [
        ([0.0, 0.01, 0.1, 1.0], 2),  # 1.11² / 1.0101 = 1.2198
        ([1.0, 1.0, 1.0, 1.0], 4),
        ([0.0, 0.0, 0.0, 1.0], 1),
        ([1e-9, 0.5, 0.5, 1.0], 3),  # 4 / 1.5; the first is rounding
    ],
)
def test_the_effective_rank(roots: list[float], kept: int) -> None:
    values = torch.tensor(roots, dtype=torch.float64) ** 2
    found = participating((4, 4))(values)
    assert int((found > 0).sum()) == kept
    np.testing.assert_allclose(found[-kept:], 1 / values[-kept:])


def test_rounding_noise_is_no_direction() -> None:
    """LoRA products added to float32 weights are of full rank, by rounding alone."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(48, 32, generator=generator)
    deltas = [
        0.05 * torch.randn(48, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
        for _ in range(3)
    ]
    exact = run(get_method("aswudi"), torch.zeros(48, 32), deltas)
    found = run(get_method("aswudi"), base, [base + d for d in deltas]) - base
    np.testing.assert_allclose(f64(found), f64(exact), atol=2e-6)
