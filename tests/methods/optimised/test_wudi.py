"""WUDI: what its minimum is, that descents end there, and rules worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import get_method
from tests.methods.cases import TALL, WIDE, close, draw, f64, run

DESCENTS = [
    "wudi",
    "wudi_closed",
    "swudi",
    "aswudi",
    "optmerge",
    "optmerge_lora",
    "optmerge_full",
    "optmerge_modality",
]
every_descent = pytest.mark.parametrize("name", DESCENTS)
both_shapes = pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)


def published_loss(merged: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """As its code writes it: deltas (N, m, n)."""
    inner = (merged - deltas) @ deltas.transpose(1, 2)
    return (inner.square() / deltas.square().sum((1, 2), keepdim=True)).sum()


def stacked(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([e.double() - base.double() for e in experts])


def merged_by(name: str, base: torch.Tensor, experts: Sequence[torch.Tensor]) -> torch.Tensor:
    return run(get_method(name), base, experts).double() - base.double()


@both_shapes
@pytest.mark.parametrize("count", [2, 5])
def test_the_closed_form_is_where_gradient_descent_ends(shape: tuple[int, int], count: int) -> None:
    """Plain descent on the published loss, gradients by autograd; equal to 1e-5."""
    base, experts = draw(shape, count)
    deltas = stacked(base, experts)
    merged = deltas.sum(0).requires_grad_()
    optimiser = torch.optim.SGD([merged], lr=0.4, momentum=0.9)
    for _ in range(1200):
        optimiser.zero_grad()
        published_loss(merged, deltas).backward()
        optimiser.step()
    found = merged_by("wudi_closed", base, experts)
    assert (found - merged.detach()).norm() <= 1e-5 * merged.detach().norm()


@both_shapes
def test_the_published_form_is_adam_on_the_published_loss(shape: tuple[int, int]) -> None:
    """With torch's own Adam and autograd, in float64."""
    base, experts = draw(shape, 3)
    deltas = stacked(base, experts)
    merged = deltas.sum(0).requires_grad_()
    optimiser = torch.optim.Adam([merged], lr=1e-4)
    for _ in range(150):
        optimiser.zero_grad()
        published_loss(merged, deltas).backward()
        optimiser.step()
    found = run(get_method("wudi"), base, experts, rate=1e-4, iterations=150)
    close(found, f64(base.double() + merged.detach()))


@both_shapes
def test_no_descent_goes_below_the_closed_form(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 3)
    deltas = stacked(base, experts)
    least = published_loss(merged_by("wudi_closed", base, experts), deltas)
    at_sum = published_loss(deltas.sum(0), deltas)
    for name in ("wudi", "swudi", "aswudi"):
        reached = published_loss(merged_by(name, base, experts), deltas)
        assert least < reached * (1 + 1e-6), name
        assert reached < at_sum, name


def test_experts_that_do_not_meet_are_summed() -> None:
    """τ₁ reads the first two inputs, τ₂ the others: their sum has no interference at all."""
    base, experts = draw((5, 8), 2)
    experts[0][:, 2:] = base[:, 2:]
    experts[1][:, :2] = base[:, :2]
    found = run(get_method("wudi_closed"), base, experts)
    close(found, f64(experts[0]) + f64(experts[1]) - f64(base))


def test_one_direction_by_hand() -> None:
    """τ₁ = a e₁e₁ᵀ, τ₂ = b e₁e₁ᵀ: C = w₁ + w₂ and D = w₁ a + w₂ b, so the weighted mean."""
    base = torch.zeros(3, 4)
    experts = [base.clone(), base.clone()]
    experts[0][0, 0], experts[1][0, 0] = 3.0, -1.0
    found = run(get_method("wudi_closed"), base, experts, weight=(0.5, 1.5), scale=0.5)
    expected = np.zeros((3, 4))
    expected[0, 0] = 0.5 * (0.5 * 3 - 1.5) / 2
    close(found, expected)


def test_the_first_step_of_adam_moves_every_entry_by_the_rate() -> None:
    _, experts = draw(TALL, 2)
    base = torch.zeros(TALL)
    moved = run(get_method("wudi"), base, experts, iterations=1, rate=1e-4)
    steps = f64(moved) - f64(experts[0]) - f64(experts[1])
    np.testing.assert_allclose(np.abs(steps), 1e-4, rtol=0.01)


@both_shapes
def test_equal_experts_are_the_minimum(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 1)
    for name in ("wudi_closed", "aswudi"):
        close(run(get_method(name), base, [experts[0]] * 3), f64(experts[0]))


def test_turning_inputs_and_outputs_turns_the_result() -> None:
    """True of all but Adam, so that LoRA experts may be merged in small coordinates."""
    base, experts = draw(TALL, 3)
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0]
        for k in TALL
    )
    turned = [(left @ d @ right).float() for d in stacked(base, experts)]
    for name in ("wudi_closed", "swudi", "aswudi", "optmerge", "optmerge_lora"):
        found = run(get_method(name), torch.zeros(TALL), turned)
        expected = left @ merged_by(name, base, experts) @ right
        np.testing.assert_allclose(f64(found), expected, atol=1e-5)


@every_descent
def test_weights_of_zero_leave_the_base(name: str) -> None:
    base, experts = draw(WIDE, 3)
    assert torch.equal(run(get_method(name), base, experts, weight=0.0), base)


@pytest.mark.parametrize("name", ["wudi", "wudi_closed", "swudi", "aswudi"])
def test_a_weight_of_zero_leaves_an_expert_out(name: str) -> None:
    base, experts = draw(TALL, 3)
    found = run(get_method(name), base, experts, weight=(1.0, 0.0, 0.5))
    close(found, f64(run(get_method(name), base, experts[::2], weight=(1.0, 0.5))))


@pytest.mark.parametrize("name", [n for n in DESCENTS if n != "optmerge_full"])
def test_an_expert_that_is_the_base_has_no_say(name: str) -> None:
    """It counts in what is divided by N alone. (Centring has it in the mean, by its weight.)"""
    base, experts = draw(TALL, 2)
    experts.append(base.clone())
    found = run(get_method(name), base, experts, weight=(1.0, 0.5, 1.0))
    assert torch.equal(found, run(get_method(name), base, experts, weight=(1.0, 0.5, 0.0)))


@every_descent
def test_a_negative_weight_is_refused(name: str) -> None:
    base, experts = draw(WIDE, 2)
    message = r"the weight of expert-a is -0\.5, expected 0 or more.*use task_arithmetic"
    with pytest.raises(CandidateError, match=message):
        run(get_method(name), base, experts, weight=(1.0, -0.5))


@every_descent
def test_what_is_merged_scales(name: str) -> None:
    base, experts = draw(WIDE, 2)
    once = f64(run(get_method(name), base, experts, scale=1.0)) - f64(base)
    half = f64(run(get_method(name), base, experts, scale=0.5)) - f64(base)
    np.testing.assert_allclose(half, once / 2, atol=1e-6)


@every_descent
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_size_of_task_vectors_does_not_matter(name: str, factor: float) -> None:
    """The loss is scale-free; Adam's steps are not, so they are scaled alike."""
    _, experts = draw(TALL, 3)
    base = torch.zeros(TALL)
    adam = {"rate": 1e-5, "iterations": 20} if name in ("wudi", "optmerge_full") else {}
    once = run(get_method(name), base, experts, **adam)
    if adam:
        adam["rate"] *= factor
    found = run(get_method(name), base, [e * factor for e in experts], **adam)
    np.testing.assert_allclose(f64(found) / factor, f64(once), rtol=1e-3, atol=1e-6)
