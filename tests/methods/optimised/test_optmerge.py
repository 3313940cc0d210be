"""OptMerge: the closed form against descents that are iterated, its limits, its variants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.methods import Context, Factors, get_method
from evomerge.methods.optimised.optmerge import TIME, continuous_time, kept_rank
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run

OPTMERGE = get_method("optmerge")
MODALITY = get_method("optmerge_modality")
both_shapes = pytest.mark.parametrize("shape", [WIDE, TALL, (24, 40)], ids=str)


def deltas_of(base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([e.double() - base.double() for e in experts])


def published_parts(deltas: torch.Tensor, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``Tᵢ`` and ``Rᵢ`` by full SVDs, (N, m, n) each."""
    count, m, n = deltas.shape
    rank = min(m, n) // count
    middle = deltas.mean(0) * centred
    targets, rows = [], []
    for delta in deltas:
        _, s, vh = torch.linalg.svd(delta)
        diagonal = torch.zeros(m, n, dtype=delta.dtype)
        diagonal[range(rank), range(rank)] = s[:rank]
        rows.append(diagonal @ vh)
        u, s, vh = torch.linalg.svd(delta - middle, full_matrices=False)
        targets.append(u[:, :rank] * s[:rank] @ vh[:rank] + middle)
    return torch.stack(targets), torch.stack(rows)


def iterated(
    deltas: torch.Tensor, start: torch.Tensor, centred: bool, optimiser: str, rate: float
) -> torch.Tensor:
    """The published 300 steps: torch's own optimiser, gradients by autograd, float64."""
    targets, rows = published_parts(deltas, centred)
    sizes = deltas.square().sum((1, 2))[:, None, None]
    merged = start.clone().requires_grad_()
    stepper: torch.optim.Optimizer
    if optimiser == "sgd":
        stepper = torch.optim.SGD([merged], lr=rate, momentum=0.9)
    else:
        stepper = torch.optim.Adam([merged], lr=rate)
    for _ in range(300):
        stepper.zero_grad()
        inner = (merged - targets) @ rows.transpose(1, 2)
        (inner.square() / sizes).sum().backward()
        stepper.step()
    return merged.detach()


@both_shapes
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("rate", [1e-4, 1e-2])
def test_lora_form_is_300_steps_of_sgd(shape: tuple[int, int], count: int, rate: float) -> None:
    base, experts = draw(shape, count)
    deltas = deltas_of(base, experts)
    merged = iterated(deltas, deltas.mean(0), False, "sgd", rate)
    found = run(get_method("optmerge_lora"), base, experts, rate=rate)
    close(found, f64(base.double() + merged))


@both_shapes
def test_full_form_is_300_steps_of_adam(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 3)
    deltas = deltas_of(base, experts)
    merged = iterated(deltas, deltas.sum(0), True, "adam", 1e-5)
    close(run(get_method("optmerge_full"), base, experts), f64(base.double() + 0.1 * merged))


@both_shapes
@pytest.mark.parametrize("count", [2, 5])
def test_the_closed_form_is_the_published_lora_form(shape: tuple[int, int], count: int) -> None:
    """At its defaults, within 1 % of the movement away from the mean."""
    base, experts = draw(shape, count)
    deltas = deltas_of(base, experts)
    merged = iterated(deltas, deltas.mean(0), False, "sgd", 1e-4)
    found = run(OPTMERGE, torch.zeros(shape), [d.float() for d in deltas]).double()
    moved = (merged - deltas.mean(0)).norm()
    assert moved > 0.02 * merged.norm()
    assert (found - merged).norm() <= 0.01 * moved


def test_the_default_time_is_that_of_the_published_steps() -> None:
    assert round(continuous_time(300, 1e-4), 3) == TIME.default
    assert continuous_time(1, 0.01) == pytest.approx(0.02)  # a first step has no momentum yet
    assert continuous_time(2, 0.01) == pytest.approx(0.02 + 0.02 * 1.9)
    assert continuous_time(300, 1e-4) < 2 * 1e-4 * 300 / 0.1


@both_shapes
@pytest.mark.parametrize(("towards_sum", "factor"), [(0.0, 1 / 3), (1.0, 1.0), (0.25, 0.5)])
def test_at_time_zero_it_is_the_starting_point(
    shape: tuple[int, int], towards_sum: float, factor: float
) -> None:
    base, experts = draw(shape, 3)
    found = run(OPTMERGE, base, experts, t=0.0, towards_sum=towards_sum, scale=0.5)
    close(found, f64(base) + 0.5 * factor * f64(deltas_of(base, experts).sum(0)))


@both_shapes
@pytest.mark.parametrize("centred", [False, True])
def test_untruncated_it_ends_at_the_minimum_of_wudi(shape: tuple[int, int], centred: bool) -> None:
    """Share N keeps all singular values, t → ∞ is the end of the flow."""
    base, experts = draw(shape, 3)
    found = run(OPTMERGE, base, experts, share=3.0, t=1e9, centred=centred)
    close(found, f64(run(get_method("wudi_closed"), base, experts)))


def test_what_no_projector_sees_stays_as_it_began() -> None:
    """Descent never moves the component of the starting point in the null space of C."""
    base, experts = draw(WIDE, 2)
    deltas = deltas_of(base, experts)
    _, rows = published_parts(deltas, False)
    _, s, vh = torch.linalg.svd(rows.reshape(-1, WIDE[1]))
    seen, unseen = vh[s > 1e-9] if len(s) == len(vh) else vh[:6], vh[6:]  # 2 experts, k = 3
    moved = run(OPTMERGE, base, experts, t=10.0).double() - base.double() - deltas.mean(0)
    assert (moved @ unseen.T).abs().max() < 1e-6
    assert (moved @ seen.T).abs().max() > 1e-2
    assert (deltas.mean(0) @ unseen.T).abs().max() > 1e-2


def test_by_hand() -> None:
    """τ₁ = diag(4, 1), τ₂ = diag(2, 0), k = 1: C = diag(16/17 + 1, 0), D = diag(64/17 + 2, 0)."""
    base = torch.zeros(2, 2)
    experts = [torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([2.0, 0.0]))]
    c, d = 16 / 17 + 1, 64 / 17 + 2
    for t in (0.582, 5.0):
        corner = 3 + (d - 3 * c) * (1 - np.exp(-c * t)) / c
        close(run(OPTMERGE, base, experts, t=t), np.diag([corner, 0.5]))


def test_the_rank_kept() -> None:
    matrix = torch.zeros(40, 10)
    shares = (1 / 5, 1 / 3, 0.3, 0.7 / 2, 0.01, 2.5)
    assert [kept_rank(matrix, share) for share in shares] == [2, 3, 3, 3, 1, 25]


def lora(ranks: tuple[int, ...], shape: tuple[int, int] = (9, 12)) -> tuple[Factors, ...]:
    generator = torch.Generator().manual_seed(len(ranks))
    return tuple(
        Factors(
            torch.randn(shape[0], r, generator=generator),
            torch.randn(r, shape[1], generator=generator),
        )
        for r in ranks
    )


def with_factors(*factors: Factors) -> tuple[torch.Tensor, list[torch.Tensor], Context]:
    base = torch.zeros(9, 12)
    return base, [f.b @ f.a for f in factors], replace(context(len(factors)), factors=factors)


def test_modality_merges_the_factors_by_themselves() -> None:
    """Without a step it is the product of the means, not the mean of the products."""
    factors = lora((4, 4))
    base, experts, at = with_factors(*factors)
    found = run(MODALITY, base, experts, at, iterations=0)
    b, a = (f64(factors[0].b + factors[1].b) / 2, f64(factors[0].a + factors[1].a) / 2)
    np.testing.assert_allclose(f64(found), b @ a, atol=1e-5)


def test_modality_counts_an_expert_without_change_as_zero() -> None:
    factors = lora((4, 0, 4))
    base, experts, at = with_factors(*factors)
    zeros = Factors(torch.zeros(9, 4), torch.zeros(4, 12))
    found = run(MODALITY, base, experts, at)
    same = run(MODALITY, *with_factors(factors[0], zeros, factors[2]))
    assert torch.equal(found, same)


@pytest.mark.parametrize("ranks", [(4, 3), (0, 0)])
def test_modality_with_factors_that_do_not_match(ranks: tuple[int, ...]) -> None:
    """It then merges the task vectors themselves, as where there are no factors."""
    base, experts, at = with_factors(*lora(ranks))
    found = run(MODALITY, base, experts, at)
    dense = run(MODALITY, base, experts)
    np.testing.assert_allclose(f64(found), f64(dense), atol=1e-5)


def test_modality_of_one_expert_is_that_expert_where_nothing_is_cut() -> None:
    base, experts, at = with_factors(*lora((4,)))
    np.testing.assert_allclose(
        f64(run(MODALITY, base, experts, at, kept=1.0)), f64(experts[0]), atol=1e-5
    )


@pytest.mark.parametrize("name", ["wudi", "optmerge_full"])
def test_adam_depends_on_coordinates_so_lora_experts_are_multiplied_out(name: str) -> None:
    base, experts, at = with_factors(*lora((2, 3)))
    found = run(get_method(name), base, [torch.full((9, 12), torch.nan)] * 2, at, rate=1e-4)
    dense = run(get_method(name), base, experts, rate=1e-4)
    np.testing.assert_allclose(f64(found), f64(dense), atol=1e-5)
