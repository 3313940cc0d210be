"""What holds between parameters, and how exactly."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.methods import Context, get_method, numerics
from evomerge.methods.elementwise import dare
from evomerge.methods.elementwise.linear import weighted_sum
from tests.methods.cases import TALL, WIDE, close, context, draw, f64, run

# parameters under which a method is θ₀ + Σ wᵢ τᵢ, so that a single weight of 1 is that expert
WHOLE = {
    "task_arithmetic": {},
    "ties": {"density": 1.0},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0},
}
by_task_vectors = pytest.mark.parametrize("name", WHOLE)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def wild(count: int, dtype: torch.dtype, octaves: int) -> list[torch.Tensor]:
    """Tensors whose entries differ by up to that many octaves, as float32."""
    generator = torch.Generator().manual_seed(octaves)

    def one() -> torch.Tensor:
        numbers = torch.randn(5000, generator=generator)
        numbers = numbers.sign() * (numbers.abs() % 1 + 1)
        exponents = torch.randint(0, octaves + 1, (5000,), generator=generator)
        return (numbers * 2.0 ** (exponents - octaves)).to(dtype).float()

    return [one() for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_linear_with_one_weight_is_that_expert_bit_for_bit(count: int) -> None:
    experts = wild(count, torch.float32, 60)
    experts[-1][:3] = torch.tensor([-0.0, 0.0, 1e-42])
    for weight in (1.0, 0.3):
        weights = (0.0,) * (count - 1) + (weight,)
        found = run(get_method("linear"), experts[0], experts, weight=weights)
        assert torch.equal(bits(found), bits(experts[-1]))


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_of_slerp_are_its_models_bit_for_bit(t: float) -> None:
    experts = wild(2, torch.float32, 60)
    for expert in experts:
        expert[:2] = torch.tensor([-0.0, 1e-42])
    found = run(get_method("slerp"), experts[0], experts, t=t)
    assert torch.equal(bits(found), bits(experts[int(t)]))


@by_task_vectors
@pytest.mark.parametrize("count", [1, 3])
def test_bf16_experts_come_back_exactly_while_exponents_are_near(name: str, count: int) -> None:
    """8 bits of one and 8 of the other fit the 24 of float32 up to 15 octaves apart."""
    base, *experts = wild(count + 1, torch.bfloat16, 15)
    weights = (0.0,) * (count - 1) + (1.0,)
    found = run(get_method(name), base, experts, weight=weights, **WHOLE[name])
    assert torch.equal(found, experts[-1])


@by_task_vectors
@pytest.mark.parametrize("octaves", [15, 20, 40])
def test_float32_experts_come_back_up_to_the_rounding_of_the_larger(
    name: str, octaves: int
) -> None:
    """θ₀ + (θ₁ − θ₀) rounds twice, at the size of θ₀ or θ₁: beside a much larger base entry a
    small expert entry keeps only its leading bits. Where the base is no larger than the expert,
    bf16 loses at most one unit in the last place."""
    base, *experts = wild(3, torch.float32, octaves)
    found = run(get_method(name), base, experts, weight=(0.0, 1.0), **WHOLE[name])
    expert = experts[1]
    larger = torch.maximum(base.abs(), expert.abs()).double()
    error = (found.double() - expert.double()).abs()
    assert (error <= larger * 2.0**-23).all()
    ordinary = base.abs() <= expert.abs()
    apart = bits(found.bfloat16()).int() - bits(expert.bfloat16()).int()
    assert (apart[ordinary].abs() <= 1).all()
    if octaves == 40:
        assert (found != expert).any()  # the loss is real, not merely permitted


@by_task_vectors
@pytest.mark.parametrize("count", [2, 5])
def test_no_weight_gives_the_base(name: str, count: int) -> None:
    base, experts = draw(WIDE, count)
    assert torch.equal(run(get_method(name), base, experts, weight=0.0, **WHOLE[name]), base)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties"])
def test_density_zero_gives_the_base(name: str) -> None:
    base, experts = draw(WIDE, 3)
    assert torch.equal(run(get_method(name), base, experts, density=0.0), base)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("linear", {"weight": (0.2, 0.7, 0.4)}),
        ("task_arithmetic", {"weight": (0.2, 0.3, 0.5)}),
        ("ties", {"weight": (0.2, 0.7, 0.4), "density": 1.0}),
        ("ties", {"weight": (0.2, 0.3, 0.5), "density": 1.0, "normalise": False}),
        ("dare_linear", {"weight": (0.2, 0.3, 0.5), "density": 1.0}),
        ("dare_ties", {"weight": (0.2, 0.7, 0.4), "density": 1.0}),
    ],
)
def test_equal_experts_give_that_expert(name: str, values: dict[str, object]) -> None:
    base, (expert,) = draw(TALL, 1)
    found = run(get_method(name), base, [expert.clone() for _ in range(3)], **values)
    close(found, f64(expert))


@pytest.mark.parametrize("t", [0.0, 0.2, 1.0])
def test_slerp_between_equal_models(t: float) -> None:
    base, (expert,) = draw(TALL, 1)
    close(run(get_method("slerp"), base, [expert, expert.clone()], t=t), f64(expert))


def test_dare_without_a_drop_is_the_plain_method() -> None:
    base, experts = draw(WIDE, 3)
    weight = (0.2, 0.7, 0.4)
    assert torch.equal(
        run(get_method("dare_linear"), base, experts, weight=weight, density=1.0),
        run(get_method("task_arithmetic"), base, experts, weight=weight),
    )
    assert torch.equal(
        run(get_method("dare_ties"), base, experts, weight=weight, density=1.0),
        run(get_method("ties"), base, experts, weight=weight, density=1.0),
    )


def test_dare_keeps_the_expectation() -> None:
    """The mean over many masks is the task vector, as far as the spread of the masks allows."""
    delta = torch.ones(10)
    total = torch.zeros(10)
    draws, density = 2000, 0.25
    for seed in range(draws):
        (kept,) = dare.drop_and_rescale([delta], [density], context(1, seed))
        assert set(kept.tolist()) <= {0.0, 4.0}
        total += kept
    deviation = math.sqrt((1 - density) / density / draws)
    assert ((total / draws - 1).abs() < 5 * deviation).all()


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_depends_on_seed_tensor_and_expert(name: str) -> None:
    base, experts = draw(WIDE, 2)

    def merged(seed: int, tensor: str, names: tuple[str, ...]) -> torch.Tensor:
        return run(get_method(name), base, experts, Context(tensor, names, seed), density=0.5)

    usual = merged(0, "x", ("a", "b"))
    assert torch.equal(merged(0, "x", ("a", "b")), usual)
    for other in (
        merged(1, "x", ("a", "b")),
        merged(0, "y", ("a", "b")),
        merged(0, "x", ("a", "c")),
    ):
        assert not torch.equal(other, usual)


def test_a_scale_multiplies_the_task_vector() -> None:
    base, experts = draw(WIDE, 3)
    for name in WHOLE:
        one, half = (run(get_method(name), base, experts, scale=s) for s in (1.0, 0.5))
        close(half, (f64(base) + f64(one)) / 2)


def test_weights_of_linear_are_only_ratios() -> None:
    base, experts = draw(WIDE, 3)
    one, other = (
        run(get_method("linear"), base, experts, weight=w)
        for w in ((1.0, 2.0, 1.0), (0.25, 0.5, 0.25))
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 600_001])
def test_dot_has_the_same_bits_for_every_number_of_threads(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    a, b = torch.randn(2, size, generator=generator)
    before = torch.get_num_threads()
    try:
        found = set()
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.add(numerics.dot(a, b).hex())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
    exact = math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    assert float.fromhex(found.pop()) == pytest.approx(exact, rel=1e-9)


def test_dot_is_cut_into_chunks_without_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(2, 3 * 4096 + 5, generator=torch.Generator().manual_seed(0))
    whole = numerics.dot(a, b)
    monkeypatch.setattr(numerics, "_CHUNK", 4096)
    assert numerics.dot(a, b) == whole


def test_a_weighted_sum_of_nothing_is_zero_and_its_own() -> None:
    tensor = torch.ones(3)
    found = weighted_sum([tensor, tensor], [0.0, 0.0])
    assert found.tolist() == [0.0, 0.0, 0.0]
    found = weighted_sum([tensor, tensor], [0.0, 1.0])
    found += 1
    assert tensor.tolist() == [1.0, 1.0, 1.0]
