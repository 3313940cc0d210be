"""SCE: which entries vary, what each expert counts, who is erased."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import pytest
import torch

from evomerge.methods import get_method
from evomerge.methods.elementwise.sce import most_varied
from tests.methods.cases import WIDE, close, draw, f64, run

FIRST, SECOND = [1.0, 2.0, 0.0, -1.0, 2.0], [1.0, -1.0, 0.0, 3.0, 5.0]  # squares 10 and 36


def merged(*deltas: list[float], **values: Any) -> list[float]:
    base = torch.zeros(len(deltas[0]))
    return run(get_method("sce"), base, [torch.tensor(d) for d in deltas], **values).tolist()


def test_by_hand() -> None:
    both = (10 * 2 + 36 * 5) / 46
    assert merged(FIRST, SECOND) == pytest.approx([1, 2, 0, 3, both])
    # variances 0, 2¼, 0, 4, 2¼: of the three that vary one, then two and their equal, are kept
    assert merged(FIRST, SECOND, density=0.5) == pytest.approx([0, 0, 0, 3, 0])
    both = (9 * 2 + 35 * 5) / 44
    assert merged(FIRST, SECOND, density=0.7) == pytest.approx([0, 2, 0, 3, both])


def test_a_weight_scales_the_task_vector_first() -> None:
    doubled = [2 * x for x in SECOND]
    assert merged(FIRST, SECOND, weight=(1.0, 2.0)) == pytest.approx(merged(FIRST, doubled))
    assert merged(FIRST, SECOND, weight=(0.0, 1.0)) == pytest.approx(SECOND)
    assert merged(FIRST, SECOND, weight=0.0) == [0] * 5
    third = [9.0, 1.0, 8.0, -2.0, 7.0]
    found = merged(FIRST, SECOND, third, weight=(1.0, 1.0, 0.0), density=0.7)
    assert found == merged(FIRST, SECOND, density=0.7)
    base, experts = draw(WIDE, 4)  # as an expert of zeros it would change the variances
    left_out = run(get_method("sce"), base, experts, weight=(1.0, 1.0, 1.0, 0.0), density=0.3)
    assert torch.equal(left_out, run(get_method("sce"), base, experts[:3], density=0.3))


@pytest.mark.parametrize("size", [2.0**-20, 2.0**10])
def test_the_size_of_task_vectors_does_not_matter(size: float) -> None:
    small = merged([size * x for x in FIRST], [size * x for x in SECOND], density=0.7)
    assert small == pytest.approx([size * x for x in merged(FIRST, SECOND, density=0.7)])


@pytest.mark.parametrize("count", [1, 3])
def test_experts_that_do_not_differ(count: int) -> None:
    base, experts = draw(WIDE, 1)
    method = get_method("sce")
    close(run(method, base, experts * count), f64(experts[0]))
    assert torch.equal(run(method, base, experts * count, density=0.99), base)


def test_selections_are_nested_across_densities() -> None:
    base, experts = draw(WIDE, 3)
    deltas = [e - base for e in experts]
    found = [most_varied(deltas, d) for d in (0.01, 0.2, 0.5, 0.9)]
    for smaller, larger in pairwise(found):
        assert not (smaller & ~larger).any()
    varied = (torch.stack(deltas).double().var(dim=0) > 0).sum()
    assert found[2].sum() >= int(0.5 * varied) > 0


def test_which_expert_moves_an_entry_does_not_order_it() -> None:
    drawn = torch.randn(1, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(1)
    deltas = [torch.cat(column) for column in zip(*permutations((drawn, zero, zero)), strict=True)]
    assert most_varied(deltas, 0.2).all()
