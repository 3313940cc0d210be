"""OrthoMerge: rotations known by hand, and what is left over of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.methods import Factors, get_method
from evomerge.methods.spherical.orthomerge import orthomerge_skew
from tests.methods.cases import TALL, WIDE, Array, close, context, draw, f64, run
from tests.methods.golden import Unread, draw_low_rank

BOTH = ["orthomerge", "orthomerge_conflict"]
SQUARE = (6, 6)


def turn(size: int, i: int, j: int, angle: float) -> Array:
    """Rotation of one plane."""
    r = np.eye(size)
    r[[i, j], [i, j]] = math.cos(angle)
    r[i, j], r[j, i] = math.sin(angle), -math.sin(angle)
    return r


def half(angle: float) -> float:
    """What the Cayley transform makes of an angle."""
    return math.tan(angle / 2)


def tensor(array: Array) -> torch.Tensor:
    return torch.tensor(array).float()


def merge(base: Array, rotations: list[Array], **values: Any) -> torch.Tensor:
    """Merges experts that are turned bases."""
    experts = [tensor(base @ r) for r in rotations]
    return run(get_method("orthomerge"), tensor(base), experts, **values)


def base_of(shape: tuple[int, int]) -> Array:
    return f64(draw(shape, 1)[0])


def near(found: torch.Tensor, expected: Array) -> None:
    np.testing.assert_allclose(f64(found), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [TALL, SQUARE])
@pytest.mark.parametrize("residual", [0.0, 0.2, 1.0])
def test_one_turned_base_is_found_again(shape: tuple[int, int], residual: float) -> None:
    base = base_of(shape)
    rotation = turn(6, 0, 2, 0.7) @ turn(6, 1, 4, -0.4) @ turn(6, 2, 3, 2.5)
    near(merge(base, [rotation], residual=residual), base @ rotation)


@pytest.mark.parametrize("shape", [TALL, SQUARE])
def test_turns_of_one_plane_average_in_the_lie_algebra(shape: tuple[int, int]) -> None:
    base = base_of(shape)
    found = merge(base, [turn(6, 1, 2, 0.4), turn(6, 1, 2, 1.0)])
    angle = 2 * math.atan((half(0.4) + half(1.0)) / 2)
    near(found, base @ turn(6, 1, 2, angle))


def test_weights_and_scale_multiply_the_generators() -> None:
    base = base_of(TALL)
    rotations = [turn(6, 1, 2, 0.4), turn(6, 1, 2, 1.0)]
    found = merge(base, rotations, weight=(0.5, 1.5), scale=0.8)
    angle = 2 * math.atan(0.8 * (0.5 * half(0.4) + 1.5 * half(1.0)) / 2)
    near(found, base @ turn(6, 1, 2, angle))


def test_turns_of_two_planes_keep_the_mean_norm() -> None:
    """The plain mean of two generators at right angles would be shorter by the root of two."""
    base = base_of(TALL)
    found = merge(base, [turn(6, 0, 1, 0.6), turn(6, 3, 4, 0.6)])
    angle = 2 * math.atan(half(0.6) / math.sqrt(2))
    near(found, base @ turn(6, 0, 1, angle) @ turn(6, 3, 4, angle))


def test_opposite_turns_cancel() -> None:
    base = base_of(TALL)
    near(merge(base, [turn(6, 0, 1, 0.6), turn(6, 0, 1, -0.6)]), base)


@pytest.mark.parametrize("shape", [TALL, SQUARE])
@pytest.mark.parametrize("residual", [0.0, 0.2, 1.0])
def test_a_reflected_direction_is_left_to_the_residual(
    shape: tuple[int, int], residual: float
) -> None:
    base = base_of(shape)
    mirror = np.diag([1.0, 1.0, 1.0, -1.0, 1.0, 1.0])
    rotation = turn(6, 0, 1, 0.6)
    found = merge(base, [mirror @ rotation], residual=residual)
    near(found, base @ rotation + residual * base @ (mirror - np.eye(6)) @ rotation)


@pytest.mark.parametrize("shape", [TALL, SQUARE])
def test_a_half_turn_is_left_to_the_residual(shape: tuple[int, int]) -> None:
    base = base_of(shape)
    found = merge(base, [np.diag([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])], residual=0.25)
    near(found, base @ np.diag([1.0, 0.5, 1.0, 1.0, 0.5, 1.0]))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
def test_one_expert_and_its_whole_residual_is_that_expert(
    name: str, shape: tuple[int, int]
) -> None:
    base, experts = draw(shape, 1)
    close(run(get_method(name), base, experts, residual=1.0), f64(experts[0]))


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
@pytest.mark.parametrize("count", [2, 5])
def test_equal_experts_turn_like_one(shape: tuple[int, int], count: int) -> None:
    base, (expert,) = draw(shape, 1)
    one = run(get_method("orthomerge"), base, [expert], residual=0.3)
    several = run(get_method("orthomerge"), base, [expert] * count, residual=0.3 / count)
    np.testing.assert_allclose(f64(several), f64(one), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "values"), [("orthomerge", {}), ("orthomerge_conflict", {"threshold": 0.6})]
)
@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_without_residual_the_singular_values_stay(
    name: str, values: dict[str, float], shape: tuple[int, int]
) -> None:
    base, experts = draw(shape, 3)
    found = run(get_method(name), base, experts, residual=0.0, **values)
    before, after = (np.linalg.svd(f64(t), compute_uv=False) for t in (base, found))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert np.abs(f64(found) - f64(base)).max() > 0.01


@pytest.mark.parametrize("name", BOTH)
def test_rotations_of_a_wide_base_stay_where_its_rows_are(name: str) -> None:
    """Columns that are zero in all models stay zero: no rotation is made up for them."""
    base, experts = draw((6, 8), 3)
    wider = [torch.nn.functional.pad(t, (0, 40)) for t in (base, *experts)]
    found = run(get_method(name), wider[0], wider[1:])
    expected = run(get_method(name), base, experts)
    np.testing.assert_allclose(f64(found[:, :8]), f64(expected), rtol=0, atol=1e-6)
    assert found[:, 8:].abs().max() < 1e-6


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", [WIDE, TALL])
@pytest.mark.parametrize("rank", [1, 4])
def test_experts_are_not_read_beside_their_factors(
    name: str, shape: tuple[int, int], rank: int
) -> None:
    base, experts, factors = draw_low_rank(shape, 3, rank=rank)
    nothing = Factors(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
    experts, factors = [*experts, base], (*factors, nothing)
    dense = run(get_method(name), base, experts)
    at = replace(context(4), factors=factors)
    found = run(get_method(name), base, Unread(experts), at)
    np.testing.assert_allclose(f64(found), f64(dense), rtol=0, atol=2e-6)


def test_rows_that_agree_with_the_mean_do_not_turn() -> None:
    """All experts move the rows the same way: nothing conflicts, so only residuals are added."""
    base, (expert,) = draw(TALL, 1)
    delta = f64(expert) - f64(base)
    experts = [tensor(f64(base) + factor * delta) for factor in (0.5, 1.0)]
    found = run(get_method("orthomerge_conflict"), base, experts, residual=0.4)
    close(found, f64(base) + 0.4 * 1.5 * delta)


def test_only_rows_that_conflict_turn() -> None:
    """Row 0: three experts agree and one does not; only that one's row enters its rotation."""
    base = np.array([[2.0, 0.0], [0.0, 1.0]])
    deltas = [np.array([[0.0, x], [0.0, 0.0]]) for x in (1.0, 1.0, 1.0, -1.0)]
    experts = [tensor(base + d) for d in deltas]
    found = run(get_method("orthomerge_conflict"), tensor(base), experts, residual=0.0)
    # W0ᵀ W4 = [[4, −2], [0, 1]], whose polar factor is a rotation by atan(2 / 5)
    turned = 2 * math.atan(half(-math.atan(2 / 5)) / 4)
    near(found, base @ turn(2, 0, 1, turned))


def test_the_threshold_decides_what_conflicts() -> None:
    """Cosine of each row with the mean: the root of a half, for both experts."""
    base, _ = draw(SQUARE, 1)
    deltas = [np.zeros(SQUARE), np.zeros(SQUARE)]
    deltas[0][:, 0] = deltas[1][:, 1] = 0.5
    experts = [tensor(f64(base) + d) for d in deltas]
    method = get_method("orthomerge_conflict")
    unturned = f64(base) + 0.2 * sum(deltas)
    close(run(method, base, experts, threshold=0.7), unturned)
    found = run(method, base, experts, threshold=0.71)
    close(found, f64(run(get_method("orthomerge"), base, experts)))
    assert np.abs(f64(found) - unturned).max() > 0.01


def test_a_base_of_zeros_has_nothing_to_turn() -> None:
    base = torch.zeros(4, 5)
    found = run(get_method("orthomerge"), base, [base + 1.0, base - 0.5], residual=0.5)
    close(found, np.full((4, 5), 0.25))


def test_skew_matrices_of_adapters() -> None:
    """Two blocks of 2 x 2, as OFT stores them: norms are taken over both blocks together."""
    one = torch.tensor([[[0.0, 3.0], [-3.0, 0.0]], [[0.0, 4.0], [-4.0, 0.0]]]).double()
    two = torch.tensor([[[0.0, 4.0], [-4.0, 0.0]], [[0.0, -3.0], [3.0, 0.0]]]).double()
    found = orthomerge_skew([one, two], (1.0, 1.0))
    # norms 5√2 and 5√2, their sum has 10: so it is halved and stretched by √2
    np.testing.assert_allclose(found.numpy(), (one + two).numpy() / math.sqrt(2))
    assert not orthomerge_skew([one, -one], (1.0, 1.0)).any()
    assert not orthomerge_skew([one, two], (0.0, 0.0)).any()
    assert torch.equal(orthomerge_skew([one, two], (1.0, 0.0)), one / 2)
