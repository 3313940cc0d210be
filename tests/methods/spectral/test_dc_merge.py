"""DC-Merge: truncation, smoothing, joint directions and blocks, by hand and by their rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.methods import Factors, get_method
from evomerge.methods.spectral.dc_merge import smoothed
from tests.methods.cases import TALL, WIDE, Array, close, context, draw, f64, run
from tests.methods.golden import Unread, draw_low_rank

NAMES = ["dc_merge", "dc_merge_lora"]
both_shapes = pytest.mark.parametrize("shape", [WIDE, TALL])
every_name = pytest.mark.parametrize("name", NAMES)


def merge(name: str, *deltas: Array, **values: Any) -> Array:
    """The merged task vector, over a base of zeros."""
    base = torch.zeros(deltas[0].shape)
    experts = [torch.tensor(d).float() for d in deltas]
    return f64(run(get_method(name), base, experts, **values))


def truncated(delta: Array, rank: int) -> Array:
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    result: Array = u[:, :rank] * s[:rank] @ vh[:rank]
    return result


def orthogonal(size: int, seed: int) -> Array:
    drawn = np.random.default_rng(seed).standard_normal((size, size))
    result: Array = np.linalg.qr(drawn)[0]
    return result


@pytest.mark.parametrize(
    ("values", "rho", "expected"),
    [
        ([6.0, 3.0, 3.0], 1.0, [4.0, 4.0, 4.0]),
        ([6.0, 3.0, 3.0], 1.5, [4.8, 4.0, 3.2]),
        ([6.0, 3.0, 3.0], 5.0, [16 / 3, 4.0, 8 / 3]),  # no steeper than it was
        ([10.0, 1.0, 1.0], 3.0, [6.0, 4.0, 2.0]),
        ([2.0], 5.0, [2.0]),
        ([], 5.0, []),
    ],
)
def test_smoothing_by_hand(values: list[float], rho: float, expected: list[float]) -> None:
    found = smoothed(torch.tensor(values, dtype=torch.float64), rho)
    np.testing.assert_allclose(found.numpy(), expected)


@both_shapes
@pytest.mark.parametrize("name", NAMES)
def test_one_expert_is_that_expert(shape: tuple[int, int], name: str) -> None:
    base, experts = draw(shape, 1)
    found = run(get_method(name), base, experts, density=1.0, smooth=0.0)
    close(found, f64(experts[0]))


@both_shapes
@pytest.mark.parametrize("rho", [1.0, 4.0])
def test_smoothing_of_one_expert(shape: tuple[int, int], rho: float) -> None:
    """The directions stay, the singular values are smoothed."""
    _, (expert,) = draw(shape, 1)
    u, s, vh = np.linalg.svd(f64(expert), full_matrices=False)
    line = np.linspace(min(rho, s[0] / s[-1]), 1, 6)
    expected = u * (line * s.sum() / line.sum()) @ vh
    for name in NAMES:
        found = merge(name, f64(expert), density=1.0, smooth=1.0, rho=rho)
        np.testing.assert_allclose(found, expected, atol=2e-6)


@both_shapes
@every_name
def test_experts_in_other_directions_are_added(shape: tuple[int, int], name: str) -> None:
    left, right = orthogonal(shape[0], 1), orthogonal(shape[1], 2)
    deltas = []
    for i, values in enumerate([[3.0, 1.0], [2.0, 1.5], [0.5, 0.25]]):
        at = slice(2 * i, 2 * i + 2)
        deltas.append(left[:, at] * values @ right[:, at].T)
    found = merge(name, *deltas, density=1.0, smooth=0.0)
    np.testing.assert_allclose(found, sum(deltas), atol=2e-6)
    weights = (0.5, 1.0, 0.25)
    found = merge(name, *deltas, density=1.0, smooth=0.0, weight=weights, scale=0.8)
    total = sum(w * d for w, d in zip(weights, deltas, strict=True))
    np.testing.assert_allclose(found, 0.8 * total, atol=2e-6)


@both_shapes
@pytest.mark.parametrize("count", [2, 3])
def test_equal_experts_give_their_truncated_share(shape: tuple[int, int], count: int) -> None:
    """As documented: of N equal blocks, each holds 1 / N of what the others hold too."""
    _, (expert,) = draw(shape, 1)
    found = merge("dc_merge", *[f64(expert)] * count, density=1.0)
    np.testing.assert_allclose(found, truncated(f64(expert), 6 // count) / count, atol=2e-6)


@every_name
def test_opposite_experts_cancel(name: str) -> None:
    _, (expert,) = draw(WIDE, 1)
    assert np.abs(merge(name, f64(expert), -f64(expert), density=1.0)).max() < 1e-12


@both_shapes
def test_each_expert_brings_its_share_of_the_directions(shape: tuple[int, int]) -> None:
    left, right = orthogonal(shape[0], 3), orthogonal(shape[1], 4)

    def expert(columns: list[int], values: list[float]) -> Array:
        result: Array = left[:, columns] * values @ right[:, columns].T
        return result

    one, two = expert([0, 1, 2], [4.0, 2.0, 1.0]), expert([3, 4, 5], [5.0, 3.0, 2.0])
    for share, kept in [(1.0, 3), (0.7, 2), (0.4, 1), (0.05, 1)]:
        expected = truncated(one, kept) + truncated(two, kept)
        found = merge("dc_merge", one, two, density=1.0, rank_share=share)
        np.testing.assert_allclose(found, expected, atol=3e-6)
        found = merge("dc_merge_lora", one, two, density=1.0, rank=kept, smooth=0.0)
        np.testing.assert_allclose(found, expected, atol=3e-6)


@both_shapes
def test_the_density_keeps_the_largest_entries(shape: tuple[int, int]) -> None:
    """One expert's projection holds its singular values on the diagonal, 36 entries in all."""
    left, right = orthogonal(shape[0], 5), orthogonal(shape[1], 6)
    values = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    delta = left[:, :6] * values @ right[:, :6].T
    for density, kept in [(0.001, 1), (1.4 / 36, 1), (2 / 36, 2), (4.6 / 36, 5), (0.5, 6)]:
        found = merge("dc_merge", delta, density=density)
        np.testing.assert_allclose(found, truncated(delta, kept), atol=3e-6)


def test_entries_that_smoothing_made_equal_stay_together() -> None:
    """All six singular values are equal: keeping one of them would be an accident of rounding."""
    _, (expert,) = draw(WIDE, 1)
    u, s, vh = np.linalg.svd(f64(expert), full_matrices=False)
    found = merge("dc_merge_lora", f64(expert), density=0.001, rho=1.0)
    np.testing.assert_allclose(found, s.mean() * u @ vh, atol=2e-6)


def test_two_directions_by_hand() -> None:
    """Left directions at 60 degrees, right ones at right angles; joint left ones at ±15 degrees."""
    sixty, fifteen = np.radians(60), np.radians(15)
    left = np.array([[1.0, 0.0], [np.cos(sixty), np.sin(sixty)]])
    joint = np.array([[np.cos(-fifteen), np.sin(-fifteen)], [-np.sin(-fifteen), np.cos(fifteen)]])
    one, two = np.outer(left[0], [2.0, 0.0]), np.outer(left[1], [0.0, 3.0])
    # projections: 2 (cos 15, sin 15) in column 0; 3 (sin 15, cos 15) in column 1; own blocks: cos
    own = np.cos(fifteen)
    expected = np.outer(joint[0], [2 * own, 0.0]) + np.outer(joint[1], [0.0, 3 * own])
    for name in NAMES:
        found = merge(name, one, two, density=1.0)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@both_shapes
@every_name
def test_the_result_turns_with_the_coordinates_of_both_sides(
    shape: tuple[int, int], name: str
) -> None:
    _, experts = draw(shape, 3)
    deltas = [f64(e) for e in experts]
    left, right = orthogonal(shape[0], 7), orthogonal(shape[1], 8)
    turned = merge(name, *[left @ d @ right for d in deltas], density=0.5)
    np.testing.assert_allclose(turned, left @ merge(name, *deltas, density=0.5) @ right, atol=5e-6)


@both_shapes
@every_name
@pytest.mark.parametrize("rank", [1, 4])
def test_experts_that_do_not_change_the_matrix(
    name: str, shape: tuple[int, int], rank: int
) -> None:
    """They bring no direction, whether they come as factors or as weights."""
    base, experts, factors = draw_low_rank(shape, 2, rank=rank)
    nothing = Factors(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
    experts, factors = [*experts, base], (*factors, nothing)
    dense = run(get_method(name), base, experts, density=0.7)
    at = replace(context(3), factors=factors)
    given = Unread(experts) if rank * 2 < 6 else experts
    found = run(get_method(name), base, given, at, density=0.7)
    np.testing.assert_allclose(f64(found), f64(dense), rtol=0, atol=2e-6)
    assert np.abs(f64(found) - f64(base)).max() > 0.01


@every_name
def test_more_experts_than_directions(name: str) -> None:
    base, experts = draw((3, 20), 5)
    assert run(get_method(name), base, experts, density=1.0).isfinite().all()
