"""Twin-Merging: its static form, and the parts for routing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import Context, get_method
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, fill, names, run
from tests.methods.golden import Unread, draw_low_rank

METHOD = get_method("twin_merging")
shapes = pytest.mark.parametrize("shape", [WIDE, TALL])


def only(chosen: int, count: int) -> tuple[float, ...]:
    return tuple(float(i == chosen) for i in range(count))


@shapes
def test_the_whole_route_to_one_expert_gives_that_expert(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 3)
    for i in range(3):
        close(run(METHOD, base, experts, route=only(i, 3), rank=6), f64(experts[i]))


@shapes
def test_without_a_route_it_is_task_arithmetic(shape: tuple[int, int]) -> None:
    base, experts = draw(shape, 3)
    weight = (0.5, 0.25, 0.75)
    found = run(METHOD, base, experts, route=0.0, weight=weight, scale=0.7)
    arithmetic = get_method("task_arithmetic")
    close(found, f64(run(arithmetic, base, experts, weight=weight, scale=0.7)))


def test_only_ratios_of_the_route_matter() -> None:
    base, experts = draw(WIDE, 3)
    found = run(METHOD, base, experts, route=(0.5, 0.25, 1.0), rank=2)
    close(found, f64(run(METHOD, base, experts, route=(2.0, 1.0, 4.0), rank=2)))


def test_one_expert_of_low_rank_is_itself() -> None:
    base, (expert,), _ = draw_low_rank((24, 40), 1)
    close(run(METHOD, base, [expert], rank=2), f64(expert))


def test_by_hand() -> None:
    """Shared (2, 1, 4.25); beside it (2, -1, -4.25) and the opposite: rank 1 keeps the last."""
    base = torch.ones(3, 3)
    experts = [base + torch.diag(torch.tensor(d)) for d in ([4.0, 0, 0], [0.0, 2, 8.5])]
    found = run(METHOD, base, experts, weight=(0.5, 0.5), rank=1, route=(0.75, 0.25), scale=2.0)
    exclusive = 0.75 * -4.25 + 0.25 * 4.25
    close(found, 1 + 2 * np.diag([2, 1, 4.25 + exclusive]))


def test_a_route_that_cancels_is_refused() -> None:
    base, experts = draw(WIDE, 2)
    with pytest.raises(CandidateError, match=r"up_proj\.weight adds up to 0"):
        run(METHOD, base, experts, route=(1.0, -1.0))


def parts(
    base: torch.Tensor, experts: list[torch.Tensor], where: Context, **values: object
) -> dict[str, torch.Tensor]:
    assert METHOD.extra is not None
    return dict(METHOD.extra(base, experts, where, **fill(METHOD, len(experts), **values)))


@shapes
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rank", [2, 8])
def test_the_parts_serve_what_the_merge_makes(
    shape: tuple[int, int], count: int, rank: int
) -> None:
    base, experts = draw(shape, count)
    weight, route = (0.5, 0.25, 0.75, 0.125, 0.25)[:count], (0.1, 0.4, 0.2, 0.3, 0.7)[:count]
    values = {"weight": weight, "rank": rank}
    found = parts(base, experts, context(count), **values)
    kept = min(rank, 6)
    served = f64(run(METHOD, base, experts, route=0.0, **values))
    for name, share in zip(names(count), route, strict=True):
        left, right = found.pop(f"exclusive_left.{name}"), found.pop(f"exclusive_right.{name}")
        assert (left.shape, right.shape) == ((shape[0], kept), (kept, shape[1]))
        assert left.dtype == right.dtype == torch.float32
        served += share / sum(route) * f64(left) @ f64(right)
    assert not found
    close(run(METHOD, base, experts, route=route, **values), served)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_parts_of_adapters_come_from_their_factors(shape: tuple[int, int]) -> None:
    base, experts, factors = draw_low_rank(shape, 3)
    weight = (0.5, 0.25, 0.75)
    dense = parts(base, experts, context(3), weight=weight, rank=3)
    at = replace(context(3), factors=factors)
    short = parts(base, Unread(experts), at, weight=weight, rank=3)
    assert short.keys() == dense.keys()
    for name in names(3):
        left, right = f"exclusive_left.{name}", f"exclusive_right.{name}"
        assert short[left].shape == (shape[0], 3)
        close(short[left] @ short[right], f64(dense[left]) @ f64(dense[right]))
