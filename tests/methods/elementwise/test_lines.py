"""LiNeS: factors by depth, around a single expert, a sum, or another merge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import get_method
from evomerge.methods.elementwise.lines import published_alpha
from tests.methods.cases import WIDE, close, context, draw, f64, run, sum_formula


@pytest.mark.parametrize(
    ("block", "blocks", "factor"),
    [(None, 0, 0.25), (None, 9, 0.25), (0, 9, 0.25), (2, 9, 0.375), (8, 9, 0.75), (0, 1, 0.25)],
)
def test_factors_by_depth(block: int | None, blocks: int, factor: float) -> None:
    base, experts = draw(WIDE, 3)
    where = replace(context(3), block=block, blocks=blocks)
    weight = (1.0, 0.5, 0.75)
    found = run(get_method("lines"), base, experts, where, alpha=0.25, beta=0.5, weight=weight)
    close(found, sum_formula(f64(base), [f64(e - base) for e in experts], weight, factor))


def test_the_last_block_of_a_single_expert_is_kept_whole() -> None:
    base, experts = draw(WIDE, 1)
    where = replace(context(1), block=11, blocks=12)
    close(run(get_method("lines"), base, experts, where, alpha=0.3, beta=0.7), f64(experts[0]))


def test_around_another_merge() -> None:
    base, experts = draw(WIDE, 3)
    where = replace(context(1), block=1, blocks=3)
    merge = run(get_method("ties"), base, experts, density=0.5)
    found = run(get_method("lines"), base, [merge], where, alpha=0.5, beta=0.5)
    close(found, f64(run(get_method("ties"), base, experts, density=0.5, scale=0.75)))


def test_the_published_alpha() -> None:
    generator = torch.Generator().manual_seed(2)
    deltas = [[torch.randn(n, generator=generator) for _ in range(4)] for n in (5, 3000)]
    summed = [(torch.stack(d).sum(dim=0), d) for d in deltas]
    assert published_alpha(summed, 4) == pytest.approx(1 / 4)
    assert published_alpha([(m / 2, d) for m, d in summed], 4) == pytest.approx(1 / 2)
    one, other = torch.tensor([1.0, -3.0]), torch.tensor([-4.0, 4.0])
    assert published_alpha([(one, [one, other]), (other, [one])], 2) == pytest.approx(8 / 12 / 2)
    with pytest.raises(CandidateError, match="no α can match"):
        published_alpha([(torch.zeros(3), [torch.ones(3)])], 1)
