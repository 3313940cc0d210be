"""NearSwap, Arcee Fusion and RAM by hand, and at the ends of their parameters."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import get_method
from evomerge.methods.elementwise import overlap
from evomerge.methods.elementwise.overlap import importance
from tests.methods.cases import WIDE, close, draw, f64, run

NEARSWAP, FUSION, RAM = (get_method(name) for name in ("nearswap", "arcee_fusion", "ram"))


def test_nearswap_by_hand() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    expert = torch.tensor([1.125, 3.0, -1.0, 1.0])
    assert run(NEARSWAP, base, [expert], t=0.25).tolist() == [1.125, 1.25, 0.75, 1.0]
    assert run(NEARSWAP, base, [expert], t=0.25, scale=0.5).tolist() == [1.0625, 1.125, 0.875, 1.0]


def test_nearswap_of_two_starts_at_the_first() -> None:
    base, experts = draw(WIDE, 2)
    first, second = experts
    step = (second - first).clamp(-0.125, 0.125)
    close(run(NEARSWAP, base, experts, t=0.125), f64(first + step))
    close(run(NEARSWAP, base, [second, first], t=0.125), f64(second - step))
    close(run(NEARSWAP, first, [second], t=0.125), f64(first + step))


def test_ends_of_nearswap() -> None:
    base, experts = draw(WIDE, 2)
    close(run(NEARSWAP, base, experts, t=0.0), f64(experts[0]))
    close(run(NEARSWAP, base, experts, t=100.0), f64(experts[1]))
    assert torch.equal(run(NEARSWAP, base, experts[:1], t=0.0), base)


def test_nearswap_does_not_clip_an_infinity_away() -> None:
    base, experts = draw(WIDE, 1)
    experts[0][0, 0] = math.inf
    with pytest.raises(CandidateError, match="expert-c holds NaN or Inf"):
        run(NEARSWAP, base, experts)


def test_the_third_expert_is_refused_by_declaration() -> None:
    assert {m.max_experts for m in (NEARSWAP, FUSION)} == {2}
    assert RAM.max_experts is None


def test_fusion_takes_the_row_that_moved() -> None:
    """One entry of ten stands out; importances of the others lie close together."""
    base = torch.zeros(5, 4)
    expert = base.clone()
    expert[:, 0] = torch.tensor([0.1, 0.1, 2.0, 0.1, 0.1])
    expert[:, 1] = 0.01
    found = run(FUSION, base, [expert])
    expected = base.clone()
    expected[2, :2] = expert[2, :2]
    assert found[2, 0] == 2.0
    assert torch.equal(found != 0, (importance(base, expert) >= _threshold(base, expert)))


def _threshold(base: torch.Tensor, expert: torch.Tensor) -> float:
    rising = sorted(importance(base, expert).flatten().tolist())
    low, middle, high = (rising[int(q * (len(rising) - 1))] for q in (0.25, 0.5, 0.75))
    return float(middle + 1.5 * (high - low))


def test_importance_by_hand() -> None:
    first = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    second = torch.log(torch.tensor([[0.25, 0.75], [0.25, 0.75]]))
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    expected = [[math.log(2) * divergence, math.log(1.5) * divergence], [0.0, 0.0]]
    torch.testing.assert_close(
        importance(first, second), torch.tensor(expected), rtol=1e-5, atol=1e-7
    )


def test_a_row_shifted_as_a_whole_has_no_importance() -> None:
    base, _ = draw((4, 10), 1)
    assert float(importance(base, base + 0.5).max()) < 1e-12


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    base, experts = draw((30, 20), 1)
    whole = importance(base, experts[0])
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    assert torch.equal(importance(base, experts[0]), whole)


def test_a_lower_spread_takes_more() -> None:
    base, experts = draw((30, 20), 1)
    taken = [run(FUSION, base, experts, spread=s) != base for s in (4.0, 1.5, 0.5, 0.0)]
    for fewer, more in pairwise(taken):
        assert not (fewer & ~more).any()
        assert int(fewer.sum()) < int(more.sum())


def test_where_most_is_untouched_all_changes_are_taken() -> None:
    base, _ = draw((30, 20), 1)
    expert = base.clone()
    expert[3] += torch.linspace(-1, 1, 20)
    close(run(FUSION, base, [expert]), f64(expert))


def test_fusion_of_two_starts_at_the_first() -> None:
    base, experts = draw((30, 20), 2)
    found = run(FUSION, base, experts)
    close(found, f64(run(FUSION, experts[0], experts[1:])))
    taken = importance(*experts) >= _threshold(*experts)
    close(found, f64(torch.where(taken, experts[1], experts[0])))


def test_ram_by_hand() -> None:
    base = torch.ones(6)
    deltas = [
        torch.tensor([2.0, 4.0, 0.0, 1.0, 0.0, 0.0]),
        torch.tensor([4.0, 0.0, 8.0, 3.0, -5.0, 1e-6]),
        torch.tensor([0.0, 0.0, 0.0, -1.0, 0.0, 0.0]),
    ]
    experts = [base + d for d in deltas]
    # shared and own entries: 2 and 1, 2 and 2, 1 and 0; λ = 1 + 0.5 min(ratio, 1.5)
    found = run(RAM, base, experts, r=0.5, alpha=1.5) - base
    torch.testing.assert_close(found, torch.tensor([3.0, 7.0, 12.0, 1.0, -7.5, 0.0]))
    plain = run(RAM, base, experts, r=0.0) - base
    torch.testing.assert_close(plain, torch.tensor([3.0, 4.0, 8.0, 1.0, -5.0, 0.0]))


def test_ram_counts_weighted_changes() -> None:
    base, experts = draw(WIDE, 2)
    close(run(RAM, base, experts, weight=(1.0, 0.0)), f64(experts[0]))
    halved = [base + (e - base) / 2 for e in experts]
    found = run(RAM, base, experts, weight=0.5, r=0.5)
    close(found, f64(run(RAM, base, halved, r=0.5)))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ram_of_equal_experts_is_that_expert(count: int) -> None:
    base, experts = draw(WIDE, 1)
    close(run(RAM, base, experts * count, r=1.0), f64(experts[0]))


def test_experts_that_share_nothing_are_added() -> None:
    base, experts = draw(WIDE, 2)
    experts[0][:, :20], experts[1][:, 20:] = base[:, :20], base[:, 20:]
    expected = f64(experts[0]) + f64(experts[1]) - f64(base)
    close(run(RAM, base, experts, r=1.0), expected)
