"""Iso-C and Iso-CTS: what they promise, and small cases by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.methods import Factors, get_method
from evomerge.methods.spectral.iso import _split
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run
from tests.methods.golden import draw_low_rank

both = pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
shapes = pytest.mark.parametrize("shape", [WIDE, TALL])


def values_of(found: torch.Tensor, base: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(f64(found) - f64(base), compute_uv=False)


def rotation(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q


@both
@shapes
@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_singular_values_are_equal(name: str, shape: tuple[int, int], count: int) -> None:
    base, experts = draw(shape, count)
    found = values_of(run(get_method(name), base, experts), base)
    assert found.max() - found.min() < 1e-5
    if name == "iso_c":
        total = np.sum([f64(e) - f64(base) for e in experts], axis=0)
        expected = np.linalg.svd(total, compute_uv=False).mean()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@shapes
def test_a_sum_that_is_isotropic_already_comes_back(shape: tuple[int, int]) -> None:
    base, _ = draw(shape, 1)
    m, n = shape
    delta = (rotation(m, 0)[:, :6] @ rotation(n, 1)[:6]).float()
    close(
        run(get_method("iso_c"), base, [base + 0.25 * delta, base + 0.75 * delta]),
        f64(base + delta),
    )


@both
def test_adapters_do_not_collapse(name: str) -> None:
    """Mean and directions are those of the rank that the sum has, 6 of 24."""
    base, experts, factors = draw_low_rank((24, 40), 3)
    total = np.sum([f64(e) - f64(base) for e in experts], axis=0)
    mean = np.linalg.svd(total, compute_uv=False)[:6].mean()
    for at in (context(3), replace(context(3), factors=factors)):
        found = values_of(run(get_method(name), base, experts, at), base)
        assert (found[6:] < 1e-5).all()
        if name == "iso_c":
            np.testing.assert_allclose(found[:6], mean, rtol=1e-5)
        else:
            assert found[:6].min() > 0.5 * mean


@both
def test_task_vectors_that_cancel_give_the_base(name: str) -> None:
    base, (expert,), factors = draw_low_rank((24, 40), 1)
    opposite = Factors(-factors[0].b, factors[0].a)
    experts = [expert, base - (expert - base)]
    assert torch.equal(run(get_method(name), base, experts), base)
    at = replace(context(2), factors=(factors[0], opposite))
    close(run(get_method(name), base, experts, at), f64(base))


@both
def test_cancelling_by_weight_leaves_only_rounding(name: str) -> None:
    """0.1 + 0.2 - 0.3 is not zero in float64: the rest must not be taken for a matrix."""
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(24, 40)
    one = Factors(torch.randn(24, 2, generator=generator), torch.randn(2, 40, generator=generator))
    experts = [base + one.b @ one.a] * 3
    weight = (0.1, 0.2, -0.3)
    at = replace(context(3), factors=(one,) * 3)
    for where in (context(3), at):
        found = run(get_method(name), base, experts, where, weight=weight)
        assert float(found.abs().max()) < 1e-6


@shapes
@pytest.mark.parametrize("count", [1, 3])
def test_with_everything_common_iso_cts_is_iso_c(shape: tuple[int, int], count: int) -> None:
    base, experts = draw(shape, count)
    found = run(get_method("iso_cts"), base, experts, common=1.0)
    close(found, f64(run(get_method("iso_c"), base, experts)))


def test_iso_cts_by_hand() -> None:
    """The sum takes the directions of 10 and 8, each expert its best other: mean 21 / 4."""
    base = torch.ones(4, 4)
    experts = [base + torch.diag(torch.tensor(d)) for d in ([10.0, 0, 1, 0], [0, 8.0, 0, 2])]
    found = run(get_method("iso_cts"), base, experts, common=0.5)
    close(found, 1 + 5.25 * np.eye(4))


@pytest.mark.parametrize("seed", range(5))
def test_an_expert_within_the_common_space_brings_no_direction_of_rounding(seed: int) -> None:
    """Common are 10 and 8, all that the first has; the second adds 2: mean 20 / 3 of three."""
    base = torch.zeros(4, 4)
    u, v = rotation(4, seed), rotation(4, seed + 10)
    experts = [
        (u @ torch.diag(torch.tensor(d).double()) @ v.T).float()
        for d in ([10.0, 8, 0, 0], [0, 0, 2.0, 1])
    ]
    found = values_of(run(get_method("iso_cts"), base, experts, common=0.5), base)
    np.testing.assert_allclose(found, [20 / 3] * 3 + [0], atol=1e-5)


def test_the_experts_bring_what_the_sum_lacks() -> None:
    """With a small common space the result reaches into each expert's own directions."""
    base, experts = draw((24, 24), 3)
    found = run(get_method("iso_cts"), base, experts, common=0.25)
    assert not torch.allclose(found, run(get_method("iso_c"), base, experts), atol=1e-2)


@both
def test_a_weight_scales_its_task_vector(name: str) -> None:
    base, experts = draw(TALL, 3)
    weight = (0.5, 1.5, 1.0)
    scaled = [base + (e - base) * w for e, w in zip(experts, weight, strict=True)]
    close(
        run(get_method(name), base, experts, weight=weight),
        f64(run(get_method(name), base, scaled)),
    )


@both
def test_weights_of_zero_give_the_base(name: str) -> None:
    base, experts = draw(TALL, 3)
    assert torch.equal(run(get_method(name), base, experts, weight=0.0), base)


@both
def test_weights_and_scale_multiply_the_change(name: str) -> None:
    base, experts = draw(WIDE, 3)
    once = f64(run(get_method(name), base, experts)) - f64(base)
    for values in ({"weight": 1.5}, {"scale": 1.5}):
        close(run(get_method(name), base, experts, **values), f64(base) + 1.5 * once)


@pytest.mark.parametrize(
    ("total", "count", "common", "expected"),
    [
        (6, 2, 0.8, (1, 4)),
        (6, 5, 0.8, (0, 6)),  # 2 directions cannot be shared by 5 experts
        (1024, 8, 0.8, (26, 816)),  # 205 / 8 is 25.6
        (10, 2, 0.5, (2, 6)),  # 2.5: half to even
        (6, 2, 0.0, (3, 0)),
        (8, 5, 0.0, (1, 3)),  # 1.6 rounds to 2, but 5 x 2 is more than there is
        (6, 2, 1.0, (0, 6)),
        (0, 3, 0.8, (0, 0)),
        (100, 1, 0.57, (43, 57)),
    ],
)
def test_the_split_by_hand(
    total: int, count: int, common: float, expected: tuple[int, int]
) -> None:
    assert _split(total, count, common) == expected
