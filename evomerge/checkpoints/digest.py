"""Content hashes of tensors: the same tensor has the same digest wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.checkpoints.scan import combine as combine
from evomerge.checkpoints.scan import hasher

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""Torch dtypes by their safetensors names."""

DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {dtype: name for name, dtype in DTYPES.items()}

_CHUNK: Final = 1 << 22  # elements hashed at a time; bounds the memory that a pass takes


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256, as hex, over dtype, shape and the elements' little-endian bytes in row-major order.

    It depends neither on the device nor on the strides. Bit patterns count: 0.0 and -0.0 differ.
    """
    return scan(tensor)[0]


def scan(tensor: torch.Tensor) -> tuple[str, bool]:
    """The digest of a tensor, and whether all its elements are finite, in one pass over it."""
    dtype = DTYPE_NAMES[tensor.dtype]
    checked = tensor.is_floating_point() and not dtype.startswith("F8")
    digest = hasher(dtype, tensor.shape)
    finite = True
    for chunk in _chunks(tensor.detach()):
        digest.update(raw_bytes(chunk).data)
        if checked and finite:
            finite = bool(torch.isfinite(chunk).all())
    return digest.hexdigest(), finite


def raw_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor in row-major order; no copy of a contiguous tensor on the CPU."""
    # every platform that torch runs on is little-endian, as safetensors is
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    octets: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return octets


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield flat[start : start + _CHUNK].cpu()
