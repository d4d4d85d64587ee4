"""Pillow's Lanczos resizing, compiled, bit for bit: sixteen numbers at a time, where Pillow takes one.

Imports numba, so it is imported only by ``mufin.resizing``. Knows no picture format. As in Pillow (src/libImaging/Resample.c):
first along rows, then along columns (the other way round is the caller's to choose), weights in fixed point with 22 bits behind the point, sums rounded to 8 bits after
either, weights of a place made in double precision and made to add up to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from mufin.kernel_parts import cgutils, intrinsic, ir, numba

_F = TypeVar("_F", bound=Callable[..., Any])

_LOBES = 3.0
_BITS = 22
_LANES = 16


def _compiled(function: _F) -> _F:
    return cast(_F, numba.njit(nogil=True, error_model="numpy")(function))


@intrinsic  # type: ignore[untyped-decorator]
def _weigh(
    typing: Any, source: Any, first: Any, step: Any, weights: Any, first_weight: Any, count: Any, target: Any,
    place: Any, target_step: Any,
) -> Any:  # fmt: skip
    """Sixteen weighted sums, rounded: of ``source[first + k * step + lane]`` over k < count, all arrays flat.

    Written as four times four bytes, ``target_step`` bytes apart from ``place`` on. Nothing is checked: the callers
    below stay inside.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        octet, number, lanes = ir.IntType(8), ir.IntType(32), ir.VectorType(ir.IntType(32), _LANES)
        octets = ir.VectorType(octet, _LANES)

        def data(position: int, kind: Any, offset: Any) -> Any:
            array = context.make_array(signature.args[position])(context, builder, arguments[position])
            return builder.gep(builder.bitcast(array.data, kind.as_pointer()), [offset])

        def all_lanes(value: int) -> Any:
            return ir.Constant(lanes, [value] * _LANES)

        begin, own_weights = data(0, octet, arguments[1]), data(3, number, arguments[4])
        out = data(6, octet, arguments[7])
        total = cgutils.alloca_once_value(builder, all_lanes(1 << (_BITS - 1)))
        with cgutils.for_range(builder, arguments[5]) as loop:
            at = builder.gep(begin, [builder.mul(loop.index, arguments[2])])
            found = builder.load(builder.bitcast(at, octets.as_pointer()), align=1)
            weight = builder.load(builder.gep(own_weights, [loop.index]))
            nothing = ir.Constant(lanes, ir.Undefined)
            lane = builder.insert_element(nothing, weight, number(0))
            everywhere = builder.shuffle_vector(lane, nothing, all_lanes(0))
            product = builder.mul(builder.zext(found, lanes), everywhere)
            builder.store(builder.add(builder.load(total), product), total)
        rounded = builder.ashr(builder.load(total), all_lanes(_BITS))
        for bound, beyond in ((all_lanes(0), "<"), (all_lanes(255), ">")):
            rounded = builder.select(builder.icmp_signed(beyond, rounded, bound), bound, rounded)
        fours = builder.bitcast(builder.trunc(rounded, octets), ir.VectorType(number, 4))
        for row in range(4):
            to = builder.gep(out, [builder.mul(arguments[8], ir.IntType(64)(row))])
            four = builder.extract_element(fours, number(row))
            builder.store(four, builder.bitcast(to, number.as_pointer()), align=1)
        return context.get_dummy_value()

    whole = numba.types.int64
    kinds = (source, whole, whole, weights, whole, whole, target, whole, whole)
    return numba.types.void(*kinds), build


@_compiled
def _lanczos(x: Any) -> Any:
    if not -_LOBES <= x < _LOBES:
        return 0.0
    if x == 0.0:
        return 1.0
    wide = x * math.pi
    narrow = x / _LOBES * math.pi
    return math.sin(wide) / wide * (math.sin(narrow) / narrow)


@_compiled
def lanczos_weights(size: Any, new_size: Any) -> Any:
    """What ``new_size`` places are made of: first of the old ones (N,), how many (N,), their weights (N, most) int32."""
    scale = size / new_size
    wider = max(scale, 1.0)
    reach = _LOBES * wider
    most = math.ceil(reach) * 2 + 1
    first, count = np.zeros(new_size, np.int64), np.zeros(new_size, np.int64)
    weights, exact = np.zeros((new_size, most), np.int32), np.zeros(most, np.float64)
    for place in range(new_size):
        centre = (place + 0.5) * scale
        begin = max(int(centre - reach + 0.5), 0)
        end = min(int(centre + reach + 0.5), size)
        whole = 0.0
        for k in range(end - begin):
            exact[k] = _lanczos((k + begin - centre + 0.5) * (1.0 / wider))
            whole += exact[k]
        for k in range(end - begin):
            share = (exact[k] / whole if whole != 0.0 else exact[k]) * (1 << _BITS)
            weights[place, k] = int(share - 0.5) if share < 0 else int(share + 0.5)
        first[place], count[place] = begin, end - begin
    return first, count, weights


@_compiled
def resize(
    pixels: Any, first_column: Any, columns: Any, column_weights: Any, first_row: Any, rows: Any, row_weights: Any
) -> Any:
    """(H, W) uint32, red, green, blue and nothing in a number's bytes -> (h, w, 3) uint8; weights as made above."""
    height, width = pixels.shape
    new_height, new_width = len(rows), len(columns)
    stride = (new_width + 3) // 4 * _LANES
    # Four rows side by side, so that a place's four pixels are sixteen numbers; rows beyond the last are read as the last.
    block = np.empty(width * 4, np.uint32)
    narrowed = np.empty((height + 3) * stride, np.uint8)
    flat, most = column_weights.reshape(-1), column_weights.shape[1]
    for top in range(0, height, 4):
        for row in range(4):
            line = pixels[min(top + row, height - 1)]
            for x in range(width):
                block[x * 4 + row] = line[x]
        for x in range(new_width):
            _weigh(
                block.view(np.uint8), first_column[x] * _LANES, _LANES, flat, x * most, columns[x],
                narrowed, top * stride + x * 4, stride,
            )  # fmt: skip
    flat, most = row_weights.reshape(-1), row_weights.shape[1]
    line = np.empty(stride, np.uint8)
    out = np.empty((new_height, new_width, 3), np.uint8)
    for y in range(new_height):
        for begin in range(0, stride, _LANES):
            _weigh(narrowed, first_row[y] * stride + begin, stride, flat, y * most, rows[y], line, begin, 4)
        for x in range(new_width):
            for channel in range(3):
                out[y, x, channel] = line[x * 4 + channel]
    return out


KERNELS = (lanczos_weights, resize)
