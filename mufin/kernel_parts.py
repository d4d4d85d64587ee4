"""What kernels share: how they are compiled, and float16 as stored read as float32.

Imports numba, so it is imported only by a module with kernels, none of which it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as _numba
import numpy as np
from llvmlite import ir as _ir
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic as _intrinsic_decorator

# numba ships no types.
numba: Any = _numba
ir: Any = _ir
cgutils: Any = _cgutils
intrinsic: Any = _intrinsic_decorator

_F = TypeVar("_F", bound=Callable[..., Any])

# Sums may be reordered, which lets LLVM use vectors; infinities and NaN keep their meaning.
OPTIONS = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
LEVELS_WITH_HALF = ("x86-64-v3", "x86-64-v4")
LINE_BYTES = 64
"""Of a cache line"""
_SUBNORMAL_STEP = np.float32(2.0**-24)


def compiled(function: _F) -> _F:
    """Compiled when first called; lets go of Python's lock."""
    return cast(_F, numba.njit(nogil=True, **OPTIONS)(function))


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(typing: Any, bits: Any) -> Any:
    """uint32 -> the float32 of these bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.types.float32(numba.types.uint32), build


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typing: Any, array: Any, row: Any, offset: Any) -> Any:
    """Ask for the cache line at ``array[row] + offset`` bytes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        base = builder.bitcast(held.data, ir.IntType(8).as_pointer())
        stride = builder.extract_value(held.strides, 0)
        address = builder.gep(base, [builder.add(builder.mul(arguments[1], stride), arguments[2])])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return numba.types.void(array, numba.types.int64, numba.types.int64), build


@compiled
def ask_for(array: Any, row: Any, first: Any, end: Any) -> None:
    """Have bytes ``first`` to ``end`` of ``array[row]`` come from memory while something else is computed."""
    for offset in range(first, end, LINE_BYTES):
        _prefetch(array, row, offset)


@intrinsic  # type: ignore[untyped-decorator]
def _half_of_bits(typing: Any, bits: Any) -> Any:
    """float16 as stored -> float32, by the CPU's own instruction."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return numba.types.float32(numba.types.uint16), build


@compiled
def _half_by_arithmetic(bits: Any) -> Any:
    """The same for a CPU that has none, where LLVM would call a function that is not there."""
    magnitude = np.uint32(bits & np.uint16(0x7FFF))
    normal = float_of_bits(np.uint32((magnitude << np.uint32(13)) + np.uint32(112 << 23)))
    value = normal if magnitude >= np.uint32(0x400) else np.float32(np.int32(magnitude)) * _SUBNORMAL_STEP
    return -value if bits & np.uint16(0x8000) else value


# Code is kept on disk by the CPU's name, so the two never meet in one cache entry.
half = _half_of_bits if numba.config.CPU_NAME in LEVELS_WITH_HALF else _half_by_arithmetic
