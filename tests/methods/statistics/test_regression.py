"""RegMean, RegMean++ and LOT: what the regression promises, and what it does with unused inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import Factors, get_method
from evomerge.methods.statistics.reading import alone
from evomerge.methods.statistics.regression import by_columns, by_rows, divide
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, names, run
from tests.methods.drawn import draw_statistics, each, informed
from tests.methods.golden import draw_low_rank

KINDS = {"regmean": "gram", "regmean_plus_plus": "merged_gram", "lot": "gram"}
REGMEANS = pytest.mark.parametrize("name", ["regmean", "regmean_plus_plus"])
ALL = pytest.mark.parametrize("name", KINDS)
BASE = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
ONE = BASE + torch.tensor([[4.0, 8.0], [-4.0, 0.0]])
TWO = BASE.clone()


def merge(name: str, grams: list[torch.Tensor], *experts: torch.Tensor, **values: Any) -> Any:
    where = informed(each(KINDS[name], *grams), len(experts))
    return run(get_method(name), BASE, list(experts), where, **values)


def diagonal(*entries: float) -> torch.Tensor:
    return torch.diag(torch.tensor(entries))


@ALL
def test_by_hand(name: str) -> None:
    """Uncorrelated inputs: in each channel the experts count by the power they see there."""
    found = merge(name, [diagonal(3.0, 1.0), diagonal(1.0, 3.0)], ONE, TWO)
    close(found, f64(BASE + torch.tensor([[3.0, 2.0], [-3.0, 0.0]])))


@ALL
def test_weights_are_shares_of_the_loss(name: str) -> None:
    grams = [diagonal(1.0, 1.0), diagonal(1.0, 1.0)]
    expected = f64(BASE + (ONE - BASE) * 0.75)
    close(merge(name, grams, ONE, TWO, weight=(0.75, 0.25)), expected)
    close(merge(name, grams, ONE, TWO, weight=(3.0, 1.0)), expected)


@ALL
def test_weights_of_zero(name: str) -> None:
    grams = [diagonal(3.0, 1.0), diagonal(1.0, 3.0)]
    close(merge(name, grams, ONE, TWO, weight=(0.5, 0.0)), f64(ONE))
    assert torch.equal(merge(name, grams, ONE, TWO, weight=(0.0, 0.0)), BASE)


@REGMEANS
def test_without_off_diagonals_channels_are_merged_alone(name: str) -> None:
    correlated = [torch.tensor([[3.0, 1.5], [1.5, 1.0]]), torch.tensor([[1.0, -1.0], [-1.0, 3.0]])]
    alone_ = merge(name, [diagonal(3.0, 1.0), diagonal(1.0, 3.0)], ONE, TWO)
    close(merge(name, correlated, ONE, TWO, off_diagonal=0.0), f64(alone_))
    assert not torch.allclose(merge(name, correlated, ONE, TWO), alone_)


def test_the_default_shrinks_as_published() -> None:
    defaults = {n: get_method(n).parameter("off_diagonal").default for n in KINDS if n != "lot"}
    assert defaults == {"regmean": 0.9, "regmean_plus_plus": 0.95}


def test_a_channel_that_no_input_uses() -> None:
    """RegMean averages there, by weight; LOT stays at the base."""
    grams = [diagonal(3.0, 0.0), diagonal(1.0, 0.0)]
    weight = (0.25, 0.75)
    column = {"regmean": 8.0 * 0.25, "lot": 0.0}
    for name, moved in column.items():
        found = merge(name, grams, ONE, TWO, weight=weight)
        close(found, f64(BASE + torch.tensor([[2.0, moved], [-2.0, 0.0]])))


@REGMEANS
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_identical_experts_give_that_expert(name: str, rank: int | None, count: int) -> None:
    """Also where their inputs differ or leave directions open."""
    base, experts = draw(WIDE, 1)
    drawn = draw_statistics([KINDS[name]], [], WIDE, names(count), 0, rank)
    weight = (0.5, 0.25, 1.0)[:count]
    found = run(get_method(name), base, experts * count, informed(drawn, count), weight=weight)
    close(found, f64(experts[0]))


def test_lot_gives_one_expert_as_far_as_its_inputs_see_it() -> None:
    base, experts = draw(WIDE, 1)
    drawn = draw_statistics(["gram"], [], WIDE, names(1), 0, rank=3)
    found = f64(run(get_method("lot"), base, experts, informed(drawn, 1)) - base)
    delta, gram = f64(experts[0] - base), f64(drawn["gram", names(1)[0]])
    np.testing.assert_allclose(found @ gram, delta @ gram, atol=1e-6)
    unseen = np.linalg.svd(gram)[2][3:]
    np.testing.assert_allclose(found @ unseen.T, 0, atol=1e-6)
    assert np.abs(delta @ unseen.T).max() > 0.1


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)
def test_no_other_layer_has_a_smaller_loss(shape: tuple[int, int]) -> None:
    """Checked on outputs: the loss grows in every direction from the merged layer."""
    base, experts = draw(shape, 3)
    drawn = draw_statistics(["gram"], [], shape, names(3))
    weight = (0.25, 1.0, 0.5)
    where = informed(drawn, 3)
    found = f64(run(get_method("regmean"), base, experts, where, weight=weight, off_diagonal=1.0))

    def loss(layer: Any) -> float:
        total = 0.0
        for expert, gram, w in zip(experts, where.statistic("gram"), weight, strict=True):
            miss = layer - f64(expert)
            total += w * float(np.sum(miss @ f64(gram) * miss))
        return total

    generator = np.random.default_rng(0)
    least = loss(found)
    for _ in range(20):
        step = generator.standard_normal(shape) * 1e-3
        assert loss(found + step) > least
    assert loss(f64(base)) > least < loss(sum(f64(e) for e in experts) / 3)


def test_lot_is_regmean_without_shrinking_where_all_directions_are_used() -> None:
    base, experts = draw(WIDE, 3)
    where = informed(draw_statistics(["gram"], [], WIDE, names(3)), 3)
    values: dict[str, Any] = {"weight": (0.25, 1.0, 0.5), "scale": 1.2}
    expected = run(get_method("regmean"), base, experts, where, off_diagonal=1.0, **values)
    close(run(get_method("lot"), base, experts, where, **values), f64(expected))


def test_ridge_by_hand() -> None:
    """A ridge of one mean eigenvalue halves a channel of that power, and weak ones by more."""
    found = merge("lot", [diagonal(3.0, 1.0)], ONE, ridge=0.5)
    close(found, f64(BASE + torch.tensor([[4.0 * 3 / 4, 8.0 * 1 / 2], [-3.0, 0.0]])))


@ALL
@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_unit_of_the_inputs_does_not_matter(name: str, size: float) -> None:
    base, experts = draw(WIDE, 2)
    drawn = draw_statistics([KINDS[name]], [], WIDE, names(2), rank=4)
    scaled = {key: gram * size for key, gram in drawn.items()}
    found, expected = (
        run(get_method(name), base, experts, informed(grams, 2)) for grams in (scaled, drawn)
    )
    close(found, f64(expected))


@ALL
def test_grams_of_zeros(name: str) -> None:
    """Nothing is known: RegMean averages, LOT stays."""
    found = merge(name, [diagonal(0.0, 0.0)] * 2, ONE, TWO)
    close(found, f64(BASE if name == "lot" else (ONE + TWO) / 2))


@ALL
@pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)
def test_adapters_that_change_nothing(name: str, shape: tuple[int, int]) -> None:
    base, _ = draw(shape, 2)
    empty = Factors(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
    where = informed(draw_statistics([KINDS[name]], [], shape, names(2)), 2)
    found = run(get_method(name), base, [base, base], replace(where, factors=(empty, empty)))
    assert torch.equal(found, base)


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)
@pytest.mark.parametrize("cores", [by_rows, by_columns])
def test_coordinates_of_adapters(cores: Any, shape: tuple[int, int]) -> None:
    base, experts, factors = draw_low_rank(shape, 3, rank=1)
    sided = cores(base, [], replace(context(3), factors=factors))
    axis = 0 if cores is by_rows else 1
    for delta, expert in zip(sided.deltas, experts, strict=True):
        assert delta.shape[axis] == 3
        close(base + sided.expand(delta).float(), f64(expert))


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_division_is_by_the_pseudo_inverse(rank: int) -> None:
    """Of a Gram that went through float32, which fills its null space with rounding."""
    generator = np.random.default_rng(rank)
    inputs = generator.standard_normal((rank, 12))
    gram = torch.tensor(inputs.T @ inputs).float().double()
    numerator = torch.tensor(generator.standard_normal((4, 12)))
    expected = f64(numerator) @ np.linalg.pinv(inputs.T @ inputs, rcond=1e-10, hermitian=True)
    np.testing.assert_allclose(f64(divide(numerator, gram)), expected, rtol=1e-3, atol=1e-3)


def test_both_ways_of_division_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((40, 12)) * np.geomspace(1, 3e-3, 12)
    gram = torch.tensor(inputs.T @ inputs)
    numerator = torch.tensor(generator.standard_normal((4, 12)))
    fast = divide(numerator, gram)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda _: (None, torch.tensor(1)))
    np.testing.assert_allclose(f64(fast), f64(divide(numerator, gram)), rtol=1e-8)


@ALL
def test_a_statistic_of_another_shape_is_named(name: str) -> None:
    kind = KINDS[name]
    with pytest.raises(CandidateError, match=rf"up_proj.*{kind}.*expert-a.*\(3, 3\).*\(2, 2\)"):
        merge(name, [torch.eye(2), torch.eye(3)], ONE, TWO)


@ALL
def test_a_statistic_that_is_not_finite_is_named(name: str) -> None:
    with pytest.raises(CandidateError, match=rf"{KINDS[name]}.*expert-a.*NaN or Inf; collect"):
        merge(name, [torch.eye(2), torch.eye(2) * torch.inf], ONE, TWO)


def test_plain_points_of_shares() -> None:
    assert alone((0.0, 0.0)) == {"scale": 0.0}
    assert alone((0.0, 1.5)) == {"weight": (0.0, 1.0), "scale": 1.5}
    assert alone((0.5, 0.5)) is None
    assert alone((-0.5, 0.0)) is None
    assert alone((0.0, 2.5)) is None
