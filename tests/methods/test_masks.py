from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from evomerge.methods import Context, masks
from evomerge.methods.masks import mask_key, random_keep
from tests.methods.cases import key_formula, splitmix64

KEY = 0x9ABCDEF012345678


def test_the_oracle_gives_the_published_numbers() -> None:
    """First outputs of SplitMix64 for seed 1234567, as its reference implementation gives them."""
    assert [splitmix64(1234567, i) for i in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("key", [0, 1234567, KEY, 2**63, 2**64 - 1])
def test_the_hash_is_splitmix64(key: int) -> None:
    found = masks._splitmix64_high(0, 500, key, "cpu").tolist()
    assert found == [splitmix64(key, i) >> 32 for i in range(500)]


def test_far_indices_are_hashed_as_near_ones() -> None:
    start = 2**40
    found = masks._splitmix64_high(start, start + 5, KEY, "cpu").tolist()
    assert found == [splitmix64(KEY, i) >> 32 for i in range(start, start + 5)]


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.8, 0.99])
def test_density(density: float) -> None:
    n = 50_000
    for key in range(4):
        kept = int(random_keep((n,), density, key).sum())
        deviation = math.sqrt(n * density * (1 - density))
        assert abs(kept - n * density) < 4.5 * deviation


def test_masks_are_nested() -> None:
    densities = [0.0, 0.05, 0.3, 0.300001, 0.9, 1.0]
    found = [random_keep((100, 100), d, KEY) for d in densities]
    for smaller, larger in pairwise(found):
        assert not (smaller & ~larger).any()
    assert not found[0].any()
    assert found[-1].all()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 10_000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    whole = random_keep((25, 40), 0.4, KEY)
    monkeypatch.setattr(masks, "_CHUNK", chunk)
    assert torch.equal(random_keep((25, 40), 0.4, KEY), whole)


def test_shape_is_only_a_view_of_the_index() -> None:
    flat = random_keep((1000,), 0.4, KEY)
    assert torch.equal(random_keep((10, 4, 25), 0.4, KEY).flatten(), flat)
    assert torch.equal(random_keep((300,), 0.4, KEY), flat[:300])


def test_key_of_a_mask() -> None:
    context = Context("language.é.weight", ("a", "b"), seed=11)
    assert mask_key(context, "b") == key_formula(11, "language.é.weight", "b")


def test_every_part_of_the_key_counts() -> None:
    contexts = [(Context(t, (), s), e) for t in ("x", "y") for s in (0, 1) for e in ("a", "b")]
    keys = [mask_key(context, expert) for context, expert in contexts]
    assert len(set(keys)) == len(keys)
    # masks of different keys agree as often as independent ones do: n/2 with deviation sqrt(n)/2
    n = 40_000
    drawn = [random_keep((n,), 0.5, key) for key in keys]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(int((one == other).sum()) - n / 2) < 4.5 * math.sqrt(n) / 2
