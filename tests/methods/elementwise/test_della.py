"""DELLA: probabilities by rank, masks that are nested, what is kept divided by its own odds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from evomerge.methods import Context, get_method
from evomerge.methods.elementwise.della import keep_probability, magprune
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run

KEY = 0x1234567890ABCDEF
BOTH = pytest.mark.parametrize("name", ["della", "della_linear"])
FREE = {"della": "dare_ties", "della_linear": "dare_linear"}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "della": ("ties", {"density": 1.0}),
    "della_linear": ("task_arithmetic", {}),
}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def test_probabilities_by_hand() -> None:
    delta = torch.tensor([[0.3, -0.1, 0.0, -4.0, 0.2], [1.0, -1.0, 1.0, 1.0, 1.0]])
    found = keep_probability(delta, 0.5, 0.2)
    expected = [[0.6, 0.4, 0.3, 0.7, 0.5], [0.3, 0.4, 0.5, 0.6, 0.7]]  # equal ones from the left
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("density", [0.05, 0.1, 0.5, 0.7, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.2])
def test_probabilities_are_probabilities_with_the_density_as_mean(
    density: float, epsilon: float
) -> None:
    found = keep_probability(noise(20, 300), density, epsilon)
    assert float(found.min()) >= 0.1 * density - 1e-7
    assert float(found.max()) <= 1
    torch.testing.assert_close(found.mean(dim=1), torch.full((20,), density))


def test_a_window_that_fits_is_not_narrowed() -> None:
    found = keep_probability(noise(4, 100), 0.2, 0.15)
    assert float(found.min()) == pytest.approx(0.05)
    assert float(found.max()) == pytest.approx(0.35)


def test_an_entry_alone_in_its_row_has_the_density() -> None:
    assert keep_probability(noise(7, 1), 0.4, 0.2).flatten().tolist() == pytest.approx([0.4] * 7)


@pytest.mark.parametrize("epsilon", [0.0, 0.07, 0.2])
def test_masks_are_nested_across_densities(epsilon: float) -> None:
    delta = noise(40, 100)
    found = [magprune(delta, d, epsilon, KEY) != 0 for d in (0.05, 0.1, 0.2, 0.5, 0.85, 0.95, 1)]
    for smaller, larger in pairwise(found):
        assert not (smaller & ~larger).any()
        assert (larger & ~smaller).any()


def test_large_entries_survive_more_often() -> None:
    delta = noise(400, 200)
    kept = magprune(delta, 0.5, 0.2, KEY) != 0
    small = delta.abs() < delta.abs().median(dim=1, keepdim=True).values
    # means 0.4 and 0.6, each over 40 000 draws: a deviation of 0.0025
    assert float(kept[small].float().mean()) == pytest.approx(0.4, abs=0.01)
    assert float(kept[~small].float().mean()) == pytest.approx(0.6, abs=0.01)


def test_survivors_are_divided_by_their_own_probability() -> None:
    delta = noise(30, 50)
    found = magprune(delta, 0.6, 0.1, KEY)
    kept = found != 0
    expected = delta[kept] / keep_probability(delta, 0.6, 0.1)[kept]
    torch.testing.assert_close(found[kept], expected)


def test_the_mean_over_many_masks_is_the_task_vector() -> None:
    delta = noise(4, 10)
    drawn = torch.stack([magprune(delta, 0.5, 0.15, key) for key in range(2000)])
    error = (drawn.mean(dim=0) - delta).abs()
    assert (error < 4.5 * drawn.std(dim=0) / 2000**0.5).all()


@BOTH
@pytest.mark.parametrize("shape", [WIDE, TALL, (7,)], ids=str)
def test_without_a_window_it_is_dare(name: str, shape: tuple[int, ...]) -> None:
    base, experts = draw(shape, 3)
    common: dict[str, Any] = {"density": (0.25, 0.5, 0.75), "scale": 0.75}  # exact in float32
    expected = f64(run(get_method(FREE[name]), base, experts, **common))
    close(run(get_method(name), base, experts, epsilon=0.0, **common), expected)


@BOTH
@pytest.mark.parametrize("epsilon", [0.0, 0.07, 0.2])
def test_density_1_leaves_everything(name: str, epsilon: float) -> None:
    base, experts = draw(WIDE, 3)
    found = run(get_method(name), base, experts, density=1.0, epsilon=epsilon, scale=1.0)
    other, more = WHOLE[name]
    assert torch.equal(found, run(get_method(other), base, experts, scale=1.0, **more))


@BOTH
def test_masks_depend_on_seed_tensor_and_expert(name: str) -> None:
    base, experts = draw((30, 40), 1)
    contexts = [Context(t, (e,), seed=s) for t in ("x", "y") for e in ("a", "b") for s in (0, 1)]
    found = [run(get_method(name), base, experts, c) for c in contexts]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_rows_do_not_see_each_other() -> None:
    """A row of huge entries changes no other row's probabilities; per tensor it would."""
    delta = noise(6, 40)
    other = delta.clone()
    other[0] *= 1000
    assert torch.equal(magprune(delta, 0.5, 0.2, KEY)[1:], magprune(other, 0.5, 0.2, KEY)[1:])


def test_weights_and_scale() -> None:
    base, experts = draw(WIDE, 2)
    where = context(2)
    once = run(get_method("della_linear"), base, experts, where, weight=0.25, scale=1.0) - base
    twice = run(get_method("della_linear"), base, experts, where, weight=0.5, scale=2.0) - base
    torch.testing.assert_close(twice, once * 4, rtol=1e-5, atol=2e-6)
