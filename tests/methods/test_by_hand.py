"""The first methods against their formulas entry by entry, and their rules by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import get_method
from evomerge.methods.masks import trim
from tests.methods.cases import (
    TALL,
    WIDE,
    close,
    context,
    draw,
    drop_formula,
    elect_formula,
    f64,
    linear_formula,
    names,
    run,
    slerp_formula,
    sum_formula,
    trim_formula,
)

# dyadic, so that weighted sums that vanish do so in float32 and in float64
WEIGHTS = {2: (0.75, 0.5), 5: (0.25, 0.5, 1.0, 0.125, 0.75)}
SIGNED = {2: (0.75, -0.5), 5: (0.25, -0.5, 1.0, -0.125, 0.75)}
DENSITIES = {2: (0.2, 0.7), 5: (0.2, 0.5, 1.0, 0.05, 0.9)}

both_shapes = pytest.mark.parametrize("shape", [WIDE, TALL])
both_counts = pytest.mark.parametrize("count", [2, 5])


@both_shapes
@both_counts
@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
def test_linear(shape: tuple[int, ...], count: int, weights: dict[int, tuple[float, ...]]) -> None:
    base, experts = draw(shape, count)
    found = run(get_method("linear"), base, experts, weight=weights[count])
    close(found, linear_formula([f64(e) for e in experts], weights[count]))


def test_linear_with_weights_that_sum_to_zero() -> None:
    base, experts = draw(WIDE, 2)
    with pytest.raises(CandidateError, match=r"mlp\.up_proj\.weight sum to 0; at least one"):
        run(get_method("linear"), base, experts, weight=(0.0, 0.0))


@both_shapes
@both_counts
@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_task_arithmetic(
    shape: tuple[int, ...], count: int, weights: dict[int, tuple[float, ...]], scale: float
) -> None:
    base, experts = draw(shape, count)
    weight = weights[count]
    found = run(get_method("task_arithmetic"), base, experts, weight=weight, scale=scale)
    deltas = [f64(e) - f64(base) for e in experts]
    close(found, sum_formula(f64(base), deltas, weight, scale))


@both_shapes
@both_counts
@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
@pytest.mark.parametrize("normalise", [True, False])
def test_ties(
    shape: tuple[int, ...], count: int, weights: dict[int, tuple[float, ...]], normalise: bool
) -> None:
    base, experts = draw(shape, count)
    weight, density = weights[count], DENSITIES[count]
    found = run(
        get_method("ties"),
        base,
        experts,
        weight=weight,
        density=density,
        scale=0.7,
        normalise=normalise,
    )
    deltas = [trim_formula(f64(e) - f64(base), d) for e, d in zip(experts, density, strict=True)]
    close(found, elect_formula(f64(base), deltas, weight, 0.7, normalise))


@pytest.mark.parametrize(
    ("deltas", "weight", "normalise", "expected"),
    [
        # the positive side wins by size, not by number
        ([[3.0], [-1.0], [-1.0]], (1.0, 1.0, 1.0), True, [3.0]),
        ([[3.0], [1.0], [-1.0]], (1.0, 1.0, 1.0), True, [2.0]),
        ([[3.0], [1.0], [-1.0]], (1.0, 1.0, 1.0), False, [4.0]),
        # an entry of zero neither votes nor counts in the mean
        ([[3.0], [0.0], [1.0]], (1.0, 1.0, 1.0), True, [2.0]),
        # weights vote: -2 against +1.5; the mean is weighted
        ([[1.0], [-1.0], [0.5]], (1.0, 2.0, 1.0), True, [-1.0]),
        ([[1.0], [2.0], [-1.0]], (1.0, 3.0, 0.5), True, [1.75]),
        # a negative weight turns the task vector round
        ([[1.0], [1.0], [0.0]], (1.0, -2.0, 1.0), True, [-1.0]),
        # a draw counts as positive
        ([[1.0], [-1.0], [0.0]], (1.0, 1.0, 1.0), True, [1.0]),
        # nobody moves the entry
        ([[0.0], [0.0], [0.0]], (1.0, 1.0, 1.0), True, [0.0]),
        ([[1.0], [1.0], [1.0]], (0.0, 0.0, 0.0), True, [0.0]),
    ],
)
def test_election_by_hand(
    deltas: list[list[float]], weight: tuple[float, ...], normalise: bool, expected: list[float]
) -> None:
    base = torch.tensor([8.0])
    experts = [base + torch.tensor(d) for d in deltas]
    found = run(get_method("ties"), base, experts, weight=weight, density=1.0, normalise=normalise)
    assert found.tolist() == [8.0 + x for x in expected]


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (1 / 6, [5]),
        (2 / 6, [0, 2, 5]),  # three are equal in second place: all of them, or none
        (3 / 6, [0, 2, 5]),
        (4 / 6, [0, 2, 3, 5]),
        (5 / 6, [0, 2, 3, 4, 5]),
        (0.9, [0, 2, 3, 4, 5]),  # 5.4 entries are 5
        (0.92, [0, 1, 2, 3, 4, 5]),
        (0.08, []),  # 0.48 entries are none
        (0.0, []),
        (1.0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_trim_by_hand(density: float, kept: list[int]) -> None:
    delta = torch.tensor([2.0, 0.25, -2.0, 1.0, -0.5, -3.0])
    found = trim(delta, density)
    assert found.nonzero().flatten().tolist() == kept
    assert found[kept].tolist() == delta[kept].tolist()


def test_trim_keeps_no_zeros_alive() -> None:
    delta = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert trim(delta, 0.75).tolist() == [0.0, 0.0, 0.0, 1.0]


@both_shapes
@both_counts
@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
@pytest.mark.parametrize("seed", [0, 7])
def test_dare_linear(
    shape: tuple[int, ...], count: int, weights: dict[int, tuple[float, ...]], seed: int
) -> None:
    base, experts = draw(shape, count)
    weight, density, where = weights[count], DENSITIES[count], context(count, seed)
    found = run(
        get_method("dare_linear"), base, experts, where, weight=weight, density=density, scale=0.7
    )
    deltas = [
        drop_formula(f64(e) - f64(base), d, where, n)
        for e, d, n in zip(experts, density, names(count), strict=True)
    ]
    close(found, sum_formula(f64(base), deltas, weight, 0.7))


@both_shapes
@both_counts
@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
@pytest.mark.parametrize("normalise", [True, False])
def test_dare_ties(
    shape: tuple[int, ...], count: int, weights: dict[int, tuple[float, ...]], normalise: bool
) -> None:
    base, experts = draw(shape, count)
    # dyadic densities: 1/d must not round, or a vanishing vote could fall to either side
    weight, density, where = weights[count], (0.5, 0.25, 1.0, 0.125, 0.5)[:count], context(count, 3)
    found = run(
        get_method("dare_ties"),
        base,
        experts,
        where,
        weight=weight,
        density=density,
        scale=0.7,
        normalise=normalise,
    )
    deltas = [
        drop_formula(f64(e) - f64(base), d, where, n)
        for e, d, n in zip(experts, density, names(count), strict=True)
    ]
    close(found, elect_formula(f64(base), deltas, weight, 0.7, normalise))


@both_shapes
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_of_two_experts(shape: tuple[int, ...], t: float) -> None:
    base, _ = draw(shape, 1)
    (a, _), (b, _) = draw(shape, 1, seed=1), draw(shape, 1, seed=2)
    found = run(get_method("slerp"), base, [a, b], t=t)
    close(found, slerp_formula(f64(a), f64(b), t))


@both_shapes
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_of_the_base_and_one_expert(shape: tuple[int, ...], t: float) -> None:
    base, (expert,) = draw(shape, 1)
    close(run(get_method("slerp"), base, [expert], t=t), slerp_formula(f64(base), f64(expert), t))


def pair(cosine: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two vectors of lengths 2 and 3 with that cosine."""
    sine = np.sqrt(1 - cosine**2)
    return torch.tensor([2.0, 0.0]), torch.tensor([3 * cosine, 3 * sine]).float()


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_is_linear_between_nearly_parallel_vectors(sign: int) -> None:
    a, b = pair(sign * 0.9996)
    found = run(get_method("slerp"), a, [a, b], t=0.25)
    close(found, 0.75 * f64(a) + 0.25 * f64(b))


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_follows_the_arc_up_to_that(sign: int) -> None:
    a, b = pair(sign * 0.9994)
    found = run(get_method("slerp"), a, [a, b], t=0.25)
    expected = slerp_formula(f64(a), f64(b), 0.25)
    np.testing.assert_allclose(f64(found), expected, rtol=1e-5, atol=1e-5)  # sin Ω is 0.03
    assert np.abs(expected - (0.75 * f64(a) + 0.25 * f64(b))).max() > 1e-4


def test_slerp_of_a_right_angle_by_hand() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    close(run(get_method("slerp"), a, [a, b], t=1 / 3), np.array([np.sqrt(0.75), 0.5]))


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.0, 2.0), (2.0, 0.0)])
def test_slerp_with_a_tensor_of_zeros_is_linear(a: float, b: float) -> None:
    one, two = torch.full((4,), a), torch.full((4,), b)
    assert run(get_method("slerp"), one, [one, two], t=0.25).tolist() == [0.75 * a + 0.25 * b] * 4
