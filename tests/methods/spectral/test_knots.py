"""KnOTS: what a shared basis changes and what it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.methods import Factors, get_method
from evomerge.methods.spectral.knots import representations
from tests.methods.cases import TALL, WIDE, Array, close, context, draw, f64, run
from tests.methods.golden import Unread, draw_low_rank

NAMES = ["knots_ta", "knots_ties", "knots_dare_ties"]
both_shapes = pytest.mark.parametrize("shape", [WIDE, TALL])
every_name = pytest.mark.parametrize("name", NAMES)


def tensor(array: Array) -> torch.Tensor:
    return torch.tensor(array).float()


def merge(name: str, *deltas: Array, **values: Any) -> Array:
    """The merged task vector, over a base of zeros."""
    base = torch.zeros(deltas[0].shape)
    return f64(run(get_method(name), base, [tensor(d) for d in deltas], **values))


def orthogonal(size: int, seed: int) -> Array:
    drawn = np.random.default_rng(seed).standard_normal((size, size))
    result: Array = np.linalg.qr(drawn)[0]
    return result


@both_shapes
@pytest.mark.parametrize("density", [1.0, 0.9999])  # without the basis, and with it
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_untrimmed_ta_is_task_arithmetic(
    shape: tuple[int, int], density: float, scale: float
) -> None:
    base, experts = draw(shape, 3)
    values: dict[str, Any] = {"weight": (0.5, 0.25, -0.75), "scale": scale}
    found = run(get_method("knots_ta"), base, experts, density=density, **values)
    close(found, f64(run(get_method("task_arithmetic"), base, experts, **values)))


@both_shapes
@pytest.mark.parametrize("name", NAMES[1:])
def test_one_untrimmed_expert_is_that_expert(shape: tuple[int, int], name: str) -> None:
    base, experts = draw(shape, 1)
    close(run(get_method(name), base, experts, density=1.0, scale=1.0), f64(experts[0]))


@both_shapes
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", NAMES[1:])
def test_equal_experts_merge_to_that_expert(shape: tuple[int, int], count: int, name: str) -> None:
    base, (expert,) = draw(shape, 1)
    found = run(get_method(name), base, [expert] * count, density=1.0, scale=1.0)
    close(found, f64(expert))


@both_shapes
@every_name
def test_the_result_turns_with_the_output_coordinates(shape: tuple[int, int], name: str) -> None:
    """Rows mixed by a rotation: TIES itself would choose other entries."""
    _, experts = draw(shape, 3)
    deltas = [f64(e) for e in experts]
    rotation = orthogonal(shape[0], seed=1)
    turned = merge(name, *[rotation @ d for d in deltas], density=0.5)
    np.testing.assert_allclose(turned, rotation @ merge(name, *deltas, density=0.5), atol=3e-6)


@both_shapes
@pytest.mark.parametrize("name", NAMES[:2])
def test_columns_are_entries_of_their_own(shape: tuple[int, int], name: str) -> None:
    _, experts = draw(shape, 3)
    deltas = [f64(e) for e in experts]
    order = np.random.default_rng(2).permutation(shape[1])
    mixed = merge(name, *[d[:, order] for d in deltas], density=0.5)
    np.testing.assert_allclose(mixed, merge(name, *deltas, density=0.5)[:, order], atol=3e-6)


@pytest.mark.parametrize("name", NAMES[1:])
def test_experts_that_move_other_directions_are_added(name: str) -> None:
    """Each direction of the basis is moved by one expert, who is alone in its mean.

    All numbers are exact in float32: rounding would mix directions of similar singular values.
    """
    rotation = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]) / 2
    generator = np.random.default_rng(4)
    one, two = np.zeros((4, 8)), np.zeros((4, 8))
    one[:1] = np.round(generator.standard_normal((1, 8)) * 64) / 64
    two[1:3] = np.round(generator.standard_normal((2, 8)) * 64) / 64
    one, two = rotation @ one, rotation @ two
    found = merge(name, one, two, density=1.0, scale=1.0)
    np.testing.assert_allclose(found, one + two, atol=2e-6)


# Both experts act along the same two directions. These are the shared basis, because the two rows
# (8, 1 | 4, -2) and (1, 6 | -2, 3) of all codes together are orthogonal.
BASIS = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5]]).T
CODES = [np.array([[8.0, 1.0], [1.0, 6.0]]), np.array([[4.0, -2.0], [-2.0, 3.0]])]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("knots_ties", {"density": 1.0}, [[6.0, -2.0], [-2.0, 4.5]]),
        ("knots_ties", {"density": 0.5}, [[6.0, 0.0], [0.0, 4.5]]),
        ("knots_ties", {"density": (0.25, 0.75)}, [[6.0, -2.0], [-2.0, 3.0]]),
        ("knots_ties", {"density": 1.0, "normalise": False}, [[12.0, -2.0], [-2.0, 9.0]]),
        ("knots_ties", {"density": 1.0, "weight": (3.0, 1.0)}, [[7.0, 1.0], [1.0, 5.25]]),
        ("knots_ta", {"density": 0.5, "weight": 1.0}, [[12.0, 0.0], [0.0, 9.0]]),
        ("knots_ta", {"density": 0.5, "weight": (0.5, 1.5)}, [[10.0, 0.0], [0.0, 7.5]]),
        ("knots_dare_ties", {"density": 1.0}, [[6.0, -2.0], [-2.0, 4.5]]),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_merges_by_hand(
    name: str, values: dict[str, Any], expected: list[list[float]], scale: float
) -> None:
    values = {k: (v,) * 2 if k == "weight" and v == 1.0 else v for k, v in values.items()}
    found = merge(name, *[BASIS @ c for c in CODES], scale=scale, **values)
    np.testing.assert_allclose(found, scale * BASIS @ np.array(expected), atol=2e-6)


def test_representations_by_hand() -> None:
    base = torch.zeros(4, 2)
    basis, codes = representations(base, [tensor(BASIS @ c) for c in CODES], context(2))
    signs = np.sign(basis.numpy()[:1])
    np.testing.assert_allclose(basis.numpy() * signs, BASIS, atol=1e-15)
    for found, expected in zip(codes, CODES, strict=True):
        np.testing.assert_allclose(found.numpy() * signs.T, expected, atol=1e-14)


@both_shapes
@pytest.mark.parametrize("rank", [1, 4, 8])
@every_name
def test_experts_are_not_read_beside_their_factors(
    name: str, shape: tuple[int, int], rank: int
) -> None:
    """Also where the ranks add up to more than the matrix has rows."""
    base, experts, factors = draw_low_rank(shape, 3, rank=rank)
    nothing = Factors(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
    experts, factors = [*experts, base], (*factors, nothing)
    dense = run(get_method(name), base, experts, density=0.6)
    at = replace(context(4), factors=factors)
    found = run(get_method(name), base, Unread(experts), at, density=0.6)
    np.testing.assert_allclose(f64(found), f64(dense), rtol=0, atol=2e-6)


@every_name
def test_factors_of_nothing(name: str) -> None:
    base, _ = draw(WIDE, 1)
    nothing = Factors(torch.zeros(6, 0), torch.zeros(0, 40))
    zero = Factors(torch.zeros(6, 2), torch.ones(2, 40))
    for factors in ((nothing, nothing), (nothing, zero)):
        at = replace(context(2), factors=factors)
        assert torch.equal(run(get_method(name), base, Unread([base] * 2), at, density=0.5), base)


def test_factors_make_no_matrix_of_full_size() -> None:
    """The largest thing made of an expert has as many rows as the ranks add up to."""
    base, _, factors = draw_low_rank((40, 6), 2, rank=1)
    basis, codes = representations(base, Unread([]), replace(context(2), factors=factors))
    assert basis.shape == (40, 2)
    assert [c.shape for c in codes] == [(2, 6), (2, 6)]


def test_opposite_experts_elect_the_positive_side_of_the_basis() -> None:
    _, (expert,) = draw(WIDE, 1)
    delta = f64(expert)
    u, codes = representations(torch.zeros(WIDE), [expert, -expert], context(2))
    found = merge("knots_ties", delta, -delta, density=1.0, scale=1.0)
    np.testing.assert_allclose(found, u.numpy() @ np.abs(codes[0].numpy()), atol=1e-6)


def test_masks_of_lower_density_are_nested() -> None:
    """One expert, whose codes are known: what is dropped shows in those of the result."""
    drawn = np.random.default_rng(5).standard_normal((2, 50))
    drawn[1] -= drawn[0] * (drawn[0] @ drawn[1]) / (drawn[0] @ drawn[0])
    delta = BASIS @ (drawn * [[2.0], [1.0]])
    kept = [
        np.abs(BASIS.T @ merge("knots_dare_ties", delta, density=d, scale=1.0)) > 1e-4
        for d in (0.3, 0.6, 1.0)
    ]
    assert (kept[0] <= kept[1]).all()
    assert [k.mean() for k in kept] == pytest.approx([0.3, 0.6, 1.0], abs=0.15)
