"""Floats of 16 and 32 bits at plain addresses, for compiled code.

numba knows neither bfloat16 nor (on a CPU) float16. So kernels get addresses and a code for the
type, and these few intrinsics turn bits into float32 and back exactly as PyTorch does: widening is
exact, narrowing rounds to the nearest, ties to even.
"""

from __future__ import annotations

import platform
from typing import Any, Final

from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic
from numpy import uint16, uint32

FLOAT32: Final = 0
BFLOAT16: Final = 1
FLOAT16: Final = 2


def has_half() -> bool:
    """Whether this processor converts float16 by itself; if not, LLVM would call a library."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return bool(binding.get_host_cpu_features().get("f16c", False))


def _pointer(kind: Any, element: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], element.as_pointer())

    return types.CPointer(kind)(address), generate


@intrinsic
def words(typing: Any, address: Any) -> Any:
    """The address of 16-bit words."""
    return _pointer(types.uint16, ir.IntType(16), address)


@intrinsic
def floats(typing: Any, address: Any) -> Any:
    """The address of float32 numbers."""
    return _pointer(types.float32, ir.FloatType(), address)


@intrinsic
def to_float(typing: Any, bits: Any) -> Any:
    """The float32 of the same 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def to_bits(typing: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def from_half(typing: Any, bits: Any) -> Any:
    """The float32 of a float16's bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def to_half(typing: Any, number: Any) -> Any:
    """The bits of the float16 nearest to a float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Asks for the cache line at an address, which need not be one of the process's own."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        module = builder.module
        name = "llvm.prefetch.p0"
        function = module.globals.get(name) or ir.Function(module, kind, name)
        where = builder.inttoptr(values[0], byte)
        builder.call(function, [where, word(0), word(2), word(1)])  # to read, into L2, data
        return context.get_dummy_value()

    return types.void(address), generate


@njit(inline="always")
def from_bfloat(bits: Any) -> Any:
    """The float32 of a bfloat16's bits."""
    return to_float(uint32(bits) << uint32(16))


@njit(inline="always")
def to_bfloat(number: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32 that is no NaN."""
    bits = to_bits(number)
    return uint16((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))
