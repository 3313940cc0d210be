from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints import digest
from evomerge.checkpoints.digest import DTYPES, combine, raw_bytes, scan, tensor_digest


def test_golden_value() -> None:
    expected = hashlib.sha256(b"F32:2,2:" + struct.pack("<4f", 1, 2, 3, 4)).hexdigest()
    assert tensor_digest(torch.tensor([[1.0, 2.0], [3.0, 4.0]])) == expected


@given(
    shape=st.lists(st.integers(0, 5), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64]),
    seed=st.integers(0, 99),
)
def test_strides_do_not_matter(shape: list[int], dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 100).to(dtype)
    twisted = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    assert tensor_digest(twisted) == tensor_digest(tensor)
    padded = torch.cat([tensor, tensor], dim=-1)[..., : shape[-1]]
    assert tensor_digest(padded) == tensor_digest(tensor)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(7, 11)
    whole = tensor_digest(tensor)
    monkeypatch.setattr(digest, "_CHUNK", 5)
    assert tensor_digest(tensor) == whole


def test_dtype_shape_and_bits_matter() -> None:
    zeros = torch.zeros(4)
    others = [
        zeros.half(),
        zeros.bfloat16(),
        zeros.reshape(2, 2),
        torch.zeros(3),
        -zeros,
        torch.zeros(4, dtype=torch.int32),
    ]
    assert len({tensor_digest(each) for each in [zeros, *others]}) == len(others) + 1


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_can_be_hashed(name: str) -> None:
    tensor = torch.ones(3).to(DTYPES[name])
    assert scan(tensor) == (tensor_digest(tensor.clone()), True)
    assert raw_bytes(tensor).nbytes == 3 * tensor.element_size()


def test_scalar_and_empty() -> None:
    assert tensor_digest(torch.tensor(1.0)) != tensor_digest(torch.tensor([1.0]))
    assert tensor_digest(torch.zeros(0, 2)) != tensor_digest(torch.zeros(2, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nonfinite_is_seen_anywhere(
    value: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_CHUNK", 4)
    for position in range(10):
        tensor = torch.ones(10, dtype=dtype)
        assert scan(tensor)[1]
        tensor[position] = value
        assert not scan(tensor)[1]


def test_gradients_do_not_matter() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert tensor_digest(tensor) == tensor_digest(torch.ones(2))


def test_combine_sorts_and_separates() -> None:
    assert combine({"a": "1", "b": "2"}) == combine({"b": "2", "a": "1"})
    assert combine({"a": "1", "b": "2"}) != combine({"a": "2", "b": "1"})
    assert combine({"a": "1"}) != combine({})
    assert combine({"a": "1"}) == hashlib.sha256(b"a\x001\n").hexdigest()
