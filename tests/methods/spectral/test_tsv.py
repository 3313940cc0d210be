"""TSV-M and R-TSVM: what they promise, and small cases by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.methods import Factors, get_method
from evomerge.methods.spectral.tsv import outlier_weights, sparsity
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run

both = pytest.mark.parametrize("name", ["tsv_m", "r_tsvm"])


def leading(delta: np.ndarray, kept: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    return u[:, :kept] * s[:kept] @ vh[:kept]


def changed(*deltas: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    base = torch.ones(deltas[0].shape)
    return base, [base + d for d in deltas]


def unit(row: int, column: int, value: float, shape: tuple[int, int] = (4, 4)) -> torch.Tensor:
    found = torch.zeros(shape)
    found[row, column] = value
    return found


def test_directions_that_do_not_overlap_are_added() -> None:
    one, other = unit(0, 0, 3) + unit(1, 1, 2), unit(2, 3, 5) + unit(3, 2, 1)
    base, experts = changed(one, other)
    close(run(get_method("tsv_m"), base, experts), f64(base + one + other))


def test_overlapping_directions_by_hand() -> None:
    """Left directions e1 and (0.6, 0.8) become a turn by atan2(-0.6, 1.8); the right ones stay."""
    base, experts = changed(
        torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.2], [0.0, 1.6]])
    )
    angle = math.atan2(-0.6, 1.8)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    close(run(get_method("tsv_m"), base, experts), 1 + turn @ np.diag([3.0, 2.0]))


@pytest.mark.parametrize("shape", [WIDE, TALL])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_equal_experts_give_that_expert_at_the_rank_that_each_may_bring(
    shape: tuple[int, int], count: int
) -> None:
    base, (expert,) = draw(shape, 1)
    found = run(get_method("tsv_m"), base, [expert.clone() for _ in range(count)])
    close(found, f64(base) + leading(f64(expert) - f64(base), 6 // count))


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_an_expert_at_base_pushes_nothing_aside(shape: tuple[int, int]) -> None:
    base, (expert,) = draw(shape, 1)
    found = run(get_method("tsv_m"), base, [expert, base.clone()])
    close(found, f64(base) + leading(f64(expert) - f64(base), 3))


def test_a_weight_scales_its_task_vector() -> None:
    base, experts = draw(TALL, 3)
    weight = (0.5, 1.5, 1.0)
    scaled = [base + (e - base) * w for e, w in zip(experts, weight, strict=True)]
    close(
        run(get_method("tsv_m"), base, experts, weight=weight),
        f64(run(get_method("tsv_m"), base, scaled)),
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


@pytest.mark.parametrize("name", ["tsv_m", "r_tsvm", "iso_c", "iso_cts", "twin_merging"])
@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_adapters_and_the_same_adapters_added_to_float32_weights(
    name: str, shape: tuple[int, int]
) -> None:
    """The rounding of the weights makes them full rank, but not to the methods."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator) / 10
    factors = tuple(
        Factors(
            torch.randn(shape[0], 4, generator=generator) / 100,
            torch.randn(4, shape[1], generator=generator),
        )
        for _ in range(3)
    )
    experts = [base + f.b @ f.a for f in factors]
    dense = run(get_method(name), base, experts) - base
    short = run(get_method(name), base, experts, replace(context(3), factors=factors)) - base
    assert float((dense - short).norm() / short.norm()) < 1e-4
    largest = max(float((e - base).norm()) for e in experts)
    assert float(short.norm()) > largest / 4  # nothing collapsed


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_without_outliers_and_slope_r_tsvm_is_tsv_m(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 3)
    found = run(get_method("r_tsvm"), base, experts, outlier=100.0, slope=0.0, rank_share=1.0)
    close(found, f64(run(get_method("tsv_m"), base, experts)))


def test_equal_experts_have_equal_outlier_weights() -> None:
    base, (expert,) = draw(WIDE, 1)
    found = run(get_method("r_tsvm"), base, [expert, expert.clone()], outlier=1.0, slope=0.0)
    close(found, f64(run(get_method("tsv_m"), base, [expert, expert.clone()])))


def test_outlier_weights_by_hand() -> None:
    """Magnitudes 9, 1 and fourteen of 0: mean 0.625, deviation 2.176; beyond 2 of them: 9 alone."""
    spiked, flat = torch.zeros(2, 8).double(), torch.ones(2, 8).double()
    spiked[0, 3], spiked[0, 4] = -9.0, 1.0
    first, second = outlier_weights([spiked, flat], 2.0)
    share = math.exp(0.9) / (math.exp(0.9) + 1)
    torch.testing.assert_close(first.flatten().tolist(), [2 * share, 1.0])
    torch.testing.assert_close(second.flatten().tolist(), [2 * (1 - share), 1.0])
    (far,) = outlier_weights([spiked], 4.0)  # beyond 9.33 there is none; one expert has weight 1
    assert far.flatten().tolist() == [1.0, 1.0]


def test_sparsity_by_hand() -> None:
    one = unit(2, 1, 7.0)
    assert sparsity([torch.full((4, 4), -0.3)]) == pytest.approx(0, abs=1e-6)
    assert sparsity([one]) == pytest.approx(15 / 16)
    assert sparsity([one, torch.ones(4, 4), torch.zeros(4, 4)]) == pytest.approx(15 / 32)
    assert sparsity([torch.zeros(4, 4)]) == 0
    normal = torch.randn(500, 500, generator=torch.Generator().manual_seed(0))
    assert sparsity([normal]) == pytest.approx(1 - 2 / math.pi, abs=0.01)


@pytest.mark.parametrize(("slope", "rank"), [(0.0, 8), (0.5, 6), (1.0, 4)])
def test_sparse_matrices_get_a_lower_rank(slope: float, rank: int) -> None:
    """Half of the entries are equal, the others zero: sparsity 1/2."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (8, 8), generator=generator) * 2.0 - 1
    base, experts = changed(signs * (torch.rand(8, 8, generator=generator).argsort(dim=1) < 4))
    found = run(get_method("r_tsvm"), base, experts, slope=slope)
    full = torch.linalg.matrix_rank(experts[0] - base)
    assert full >= 7
    assert torch.linalg.matrix_rank(found - base, atol=1e-4) == min(rank, full)
