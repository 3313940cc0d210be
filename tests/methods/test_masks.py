from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from evomerge.methods import Context, masks
from evomerge.methods.masks import mask_key, pack, random_keep, row_ranks, rows, unpack
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


def test_a_tensor_of_one_density_is_that_density() -> None:
    for density in (0.0, 0.25, 0.3, 1.0):
        each = torch.full((30, 50), density, dtype=torch.float64)
        assert torch.equal(random_keep((30, 50), each, KEY), random_keep((30, 50), density, KEY))


def test_every_element_has_its_own_probability() -> None:
    density = torch.linspace(0, 1, 500).reshape(20, 25)
    kept = random_keep((20, 25), density, KEY).flatten().tolist()
    hashes = [(splitmix64(KEY, i) >> 32) / 2**32 for i in range(500)]
    pairs = zip(kept, hashes, density.flatten().tolist(), strict=True)
    assert all(k == (h < d) for k, h, d in pairs)
    assert 0 < sum(kept) < 500


def test_masks_of_tensors_are_nested() -> None:
    lower = torch.rand(100, 100, generator=torch.Generator().manual_seed(0))
    higher = lower + 0.1 * torch.rand(100, 100, generator=torch.Generator().manual_seed(1))
    smaller, larger = (random_keep((100, 100), d, KEY) for d in (lower, higher))
    assert not (smaller & ~larger).any()
    assert (larger & ~smaller).any()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 10_000])
def test_chunks_change_no_tensor_of_densities_and_no_ranks(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    density = torch.rand(25, 40, generator=torch.Generator().manual_seed(0))
    whole, ranks = random_keep((25, 40), density, KEY), row_ranks(density)
    monkeypatch.setattr(masks, "_CHUNK", chunk)
    assert torch.equal(random_keep((25, 40), density, KEY), whole)
    assert torch.equal(row_ranks(density), ranks)


def test_ranks_by_hand() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert row_ranks(values).tolist() == [[3, 0, 2, 1], [0, 1, 2, 3]]
    assert row_ranks(values[0]).tolist() == [3, 0, 2, 1]
    assert row_ranks(values.reshape(1, 2, 4)).tolist() == [[[7, 4, 6, 5], [0, 1, 2, 3]]]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), (1, 1)), ((5,), (1, 5)), ((2, 3), (2, 3)), ((2, 3, 4, 5), (2, 60))],
    ids=str,
)
def test_a_row_is_all_that_feeds_one_output(
    shape: tuple[int, ...], expected: tuple[int, int]
) -> None:
    assert rows(torch.zeros(shape)).shape == expected


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 4)], ids=str)
def test_packed_masks_come_back(shape: tuple[int, ...]) -> None:
    mask = random_keep(shape, 0.5, KEY)
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack(bits, shape), mask)


def test_the_first_element_is_the_highest_bit() -> None:
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    assert pack(mask).tolist() == [0b10000011, 0b10000000]
