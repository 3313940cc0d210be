"""Karcher mean: SLERP for two, vanishing mean logarithm for all, opposite directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evomerge.methods import get_method
from evomerge.methods.spherical.karcher import karcher_mean
from tests.methods.cases import Array, close, f64, run


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [0.1, 0.25, 0.8])
@pytest.mark.parametrize("angle", [0.05, 1.0, 2.0, 3.0])
def test_two_experts_of_equal_length_lie_on_an_arc(t: float, angle: float) -> None:
    points = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    found = run(get_method("karcher"), torch.zeros(2), list(points), weight=(1 - t, t))
    expected = [math.cos(t * angle), math.sin(t * angle)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def mean_logarithm(units: Array, mean: Array, weight: Array) -> float:
    """‖Σ wᵢ log_μ uᵢ‖."""
    inner = units @ mean
    away = units - inner[:, None] * mean
    size = np.linalg.norm(away, axis=1)
    angles = np.arctan2(size, inner)
    return float(np.linalg.norm((weight * angles / size) @ away))


@pytest.mark.parametrize("count", [3, 5, 16])
@pytest.mark.parametrize("common", [0.0, 0.5, 30.0])
def test_the_mean_logarithm_vanishes(count: int, common: float) -> None:
    vectors = noise(count, 400) + common * noise(400, seed=1)
    weight = np.linspace(0.1, 1, count)
    double = vectors.double()
    coefficients = karcher_mean((double @ double.T)[:, :, None], (weight / weight.sum()).tolist())
    mean = coefficients[:, 0].numpy() @ f64(vectors)
    mean /= np.linalg.norm(mean)
    units = f64(vectors) / np.linalg.norm(f64(vectors), axis=1, keepdims=True)
    share = weight / weight.sum()
    assert mean_logarithm(units, mean, share) < 1e-9
    chord = share @ units
    assert mean_logarithm(units, chord / np.linalg.norm(chord), share) > 1e-9  # not multi-SLERP's


def test_a_weight_of_zero_leaves_an_expert_out() -> None:
    base, experts = torch.zeros(6, 5), list(noise(3, 6, 5))
    found = run(get_method("karcher"), base, experts, weight=(0.4, 0.0, 0.9))
    close(found, f64(run(get_method("karcher"), base, [experts[0], experts[2]], weight=(0.4, 0.9))))


@pytest.mark.parametrize("turn", [0.0, 1e-9, 1e-6, 1e-3])
def test_opposite_directions_of_unequal_weight(turn: float) -> None:
    """The smaller one has no logarithm at the larger; it counts for the length."""
    other = torch.tensor([-math.cos(turn), math.sin(turn)])
    found = run(
        get_method("karcher"), torch.zeros(2), [torch.tensor([1.0, 0.0]), other], weight=(0.8, 0.2)
    )
    assert float(found.norm()) == pytest.approx(1, rel=1e-5)
    if turn < 1e-5:
        assert found.tolist() == pytest.approx([1, 0], abs=1e-5)
