"""The look-up of a threshold is the selection that ``masks.trim`` makes."""

from __future__ import annotations

import pytest
import torch

from evomerge.bank.ranks import Ranks
from evomerge.methods.masks import trim

DENSITIES = [0.0, 1e-9, 0.05, 0.2, 1 / 3, 0.5, 0.75, 0.999, 1.0]


def deltas() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3001, generator=generator)
    return {
        "many values": noise,
        "few values": (noise * 8).round() / 8,
        "of bfloat16": (noise + 5).bfloat16().float() - 5,
        "equal": torch.full((100,), -0.25),
        "zero": torch.zeros(77),
        "one": torch.tensor([2.5]),
        "negative zeros": torch.tensor([-0.0, 0.0, -1.0, 1.0]),
    }


@pytest.mark.parametrize("name", deltas())
@pytest.mark.parametrize("density", DENSITIES)
def test_the_threshold_keeps_what_trim_keeps(name: str, density: float) -> None:
    delta = deltas()[name]
    threshold = Ranks.of(delta.clone().numpy()).threshold(density)
    kept = torch.where(delta.abs() >= threshold, delta, 0.0)

    assert torch.equal(kept, trim(delta, density))


def test_few_distinct_values_take_little_memory() -> None:
    delta = deltas()["few values"].repeat(100)
    many = deltas()["many values"].repeat(1)

    assert Ranks.of(delta.clone().numpy()).nbytes < delta.numel() // 10
    assert Ranks.of(many.clone().numpy()).nbytes == 4 * many.numel()
