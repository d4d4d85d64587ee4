"""The arithmetic of reranking, compiled: label records are read where they lie, one after the other.

Imports numba, so it is imported only where ``mufin.reranking`` was asked for ``kernel="numba"``. Knows no bundle.
The product's cost per label is two blocks of inner products and two passes over D, because what depends on the label
alone is stored with it. With v_j the stored values, x_s the product's slots, a_sj the attention weights, all centred:

    |x_s + sum_j a_sj v_j|^2 = |x_s|^2 + 2 sum_j a_sj <x_s, v_j> + sum_jk a_sj a_sk <v_j, v_k>

so the LayerNorm's variance of every slot is known before any attended vector is made, and their mean over s is one sum
over j. ``mufin.scoring.classifier_scores`` is the same in numpy and the reference.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import overload as _overload_decorator

from mufin.kernel_parts import LINE_BYTES, OPTIONS, ask_for, compiled, float_of_bits, half, numba

# numba ships no types.
overload: Any = _overload_decorator

_LOG2_E = np.float32(1.4426950408889634)
_LN_2 = np.float32(0.6931471805599453)
_LEAST_EXPONENT = np.float32(-87.0)
_ONE, _TWO, _HALF, _ZERO = np.float32(1), np.float32(2), np.float32(0.5), np.float32(0)
_TINY = np.float32(1e-12)


@compiled
def _exp(x: Any) -> Any:
    """exp of a float32 <= 0 within 2e-7, written so that LLVM computes many at once; libm's does one."""
    x = max(x, _LEAST_EXPONENT)
    power = np.int32(x * _LOG2_E - _HALF)
    r = x - np.float32(power) * _LN_2
    p = np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + _HALF
    p = p * r + _ONE
    p = p * r + _ONE
    return p * float_of_bits(np.uint32(np.uint32(power + np.int32(127)) << np.uint32(23)))


def _unpack(record: Any, scales: Any, scratch: Any, slots: Any, used: Any, dimension: Any) -> Any:
    """(1 + 2M) rows of D numbers -> an array that holds them as float32, rows of unused slots left out."""
    raise NotImplementedError  # pragma: no cover


@compiled
def _unpack_half(record: Any, scratch: Any, first: Any, count: Any) -> None:
    source, target = record[first : first + count], scratch[first : first + count]
    for i in range(count):
        target[i] = half(source[i])


@compiled
def _unpack_int8(record: Any, scale: Any, scratch: Any, first: Any, count: Any) -> None:
    source, target = record[first : first + count], scratch[first : first + count]
    for i in range(count):
        target[i] = np.float32(source[i]) * scale


def _read_float32(record: Any, scales: Any, scratch: Any, slots: Any, used: Any, dimension: Any) -> Any:
    return record


def _read_half(record: Any, scales: Any, scratch: Any, slots: Any, used: Any, dimension: Any) -> Any:
    _unpack_half(record, scratch, 0, (1 + used) * dimension)
    _unpack_half(record, scratch, (1 + slots) * dimension, used * dimension)
    return scratch


def _read_int8(record: Any, scales: Any, scratch: Any, slots: Any, used: Any, dimension: Any) -> Any:
    for row in range(1 + used):
        _unpack_int8(record, scales[row], scratch, row * dimension, dimension)
    for row in range(1 + slots, 1 + slots + used):
        _unpack_int8(record, scales[row], scratch, row * dimension, dimension)
    return scratch


@overload(_unpack, jit_options=OPTIONS)  # type: ignore[untyped-decorator]
def _choose_unpack(record: Any, scales: Any, scratch: Any, slots: Any, used: Any, dimension: Any) -> Any:
    readers = {numba.types.float32: _read_float32, numba.types.uint16: _read_half, numba.types.int8: _read_int8}
    return readers[record.dtype]


@compiled
def _products(left: Any, rows: Any, first: Any, used: Any, out: Any) -> None:
    """out[s, j] = <left[s], row j behind ``first``>; six, three or one product slot share each load of the label's."""
    size, dimension = left.shape
    for j in range(used):
        row = rows[first + j * dimension : first + (j + 1) * dimension]
        s = 0
        while s + 6 <= size:
            l0, l1, l2, l3, l4, l5 = left[s], left[s + 1], left[s + 2], left[s + 3], left[s + 4], left[s + 5]
            a, b, c, d, e, f = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
            for i in range(dimension):
                x = row[i]
                a += l0[i] * x
                b += l1[i] * x
                c += l2[i] * x
                d += l3[i] * x
                e += l4[i] * x
                f += l5[i] * x
            out[s, j], out[s + 1, j], out[s + 2, j] = a, b, c
            out[s + 3, j], out[s + 4, j], out[s + 5, j] = d, e, f
            s += 6
        while s + 3 <= size:
            l0, l1, l2 = left[s], left[s + 1], left[s + 2]
            a, b, c = _ZERO, _ZERO, _ZERO
            for i in range(dimension):
                x = row[i]
                a += l0[i] * x
                b += l1[i] * x
                c += l2[i] * x
            out[s, j], out[s + 1, j], out[s + 2, j] = a, b, c
            s += 3
        while s < size:
            out[s, j] = _inner(left[s], row)
            s += 1


@compiled
def _inner(left: Any, right: Any) -> Any:
    total = _ZERO
    for i in range(len(left)):
        total += left[i] * right[i]
    return total


@compiled
def _add_rows(total: Any, rows: Any, first: Any, weights: Any, used: Any) -> None:
    """total += sum_j weights[j] * row j behind ``first``, three rows a pass."""
    dimension = len(total)
    j = 0
    while j + 3 <= used:
        begin = first + j * dimension
        w0, w1, w2 = weights[j], weights[j + 1], weights[j + 2]
        r0 = rows[begin : begin + dimension]
        r1 = rows[begin + dimension : begin + 2 * dimension]
        r2 = rows[begin + 2 * dimension : begin + 3 * dimension]
        for i in range(dimension):
            total[i] += w0 * r0[i] + w1 * r1[i] + w2 * r2[i]
        j += 3
    while j < used:
        begin = first + j * dimension
        w0, r0 = weights[j], rows[begin : begin + dimension]
        for i in range(dimension):
            total[i] += w0 * r0[i]
        j += 1


@compiled
def _softmax(logits: Any, used: Any) -> None:
    """Each row's first ``used`` numbers become weights, in place; what lies behind them is left meaningless."""
    size, slots = logits.shape
    for s in range(size):
        top = logits[s, 0]
        for j in range(1, used):
            top = max(top, logits[s, j])
        for j in range(used):
            logits[s, j] -= top
        for j in range(used, slots):
            logits[s, j] = _ZERO
    flat = logits.reshape(-1)
    for i in range(size * slots):
        flat[i] = _exp(flat[i])
    for s in range(size):
        total = _ZERO
        for j in range(used):
            total += logits[s, j]
        share = _ONE / total
        for j in range(used):
            logits[s, j] *= share


@compiled
def _prepare(bag: Any, query_rows: Any, query_bias: Any, queries: Any, centred: Any, squares: Any) -> None:
    """A product's folded queries, its slots less their mean, and what is left of their squared length.

    Here and not by BLAS: that rounds by the size of the batch, and its threads wait for each other on a busy machine.
    """
    size, dimension = bag.shape
    _products(bag, query_rows, 0, dimension, queries)
    for s in range(size):
        mean = _ZERO
        for i in range(dimension):
            mean += bag[s, i]
        mean /= np.float32(dimension)
        for i in range(dimension):
            queries[s, i] += query_bias[i]
            centred[s, i] = bag[s, i] - mean
        squares[s] = _inner(centred[s], centred[s])


@compiled
def _slot_weights(
    weights: Any, crosses: Any, squares: Any, gram: Any, used: Any, dimension: Any, epsilon: Any, of_slots: Any,
    of_label: Any,
) -> None:  # fmt: skip
    """1 / deviation of every attended slot, and how much each label slot weighs in their sum."""
    slots = weights.shape[1]
    for j in range(used):
        of_label[j] = _ZERO
    for s in range(len(squares)):
        length = squares[s]
        for j in range(used):
            part = _TWO * crosses[s, j]
            for i in range(used):
                part += gram[j * slots + i] * weights[s, i]
            length += weights[s, j] * part
        inverse = _ONE / np.float32(math.sqrt(max(length / np.float32(dimension), _ZERO) + epsilon))
        of_slots[s] = inverse
        for j in range(used):
            of_label[j] += inverse * weights[s, j]


@compiled
def _cosine(summed: Any, shift: Any, size: Any, norm_weight: Any, norm_bias: Any, classifier: Any) -> Any:
    """<norm(LayerNorm's weight and bias on the mean), w_l>"""
    length, product, share = _ZERO, _ZERO, _ONE / np.float32(size)
    for i in range(len(summed)):
        x = (summed[i] - shift) * share * norm_weight[i] + norm_bias[i]
        length += x * x
        product += x * classifier[i]
    return product / max(np.float32(math.sqrt(length)), _TINY)


@compiled
def cross_attention_scores(
    numbers: Any, floats: Any, octets: Any, places: Any, labels: Any, label_ends: Any, bags: Any, bag_ends: Any,
    query_rows: Any, query_bias: Any, norm_weight: Any, norm_bias: Any, epsilon: Any, out: Any,
) -> None:  # fmt: skip
    """Classifier scores of B products' labels, behind one another, into ``out`` (N,) float32.

    ``numbers``, ``floats``, ``octets``: one (L, bytes) memory seen as stored numbers, float32 and uint8;
    ``places``: (M, count's byte, first number, first of gram, means and scales among the floats);
    ``labels`` (N,) int64 within 0..L-1, product b's end at ``label_ends[b]``; ``bags`` (sum S, D), product b's end at
    ``bag_ends[b]``; ``query_rows`` (D * D,): row by row, the transposed query matrix.
    """
    slots, count_place, first_number, first_gram, first_mean, first_scale = places
    dimension, row_bytes = bags.shape[1], octets.shape[1]
    most, begin = 0, 0
    for end in bag_ends:
        most, begin = max(most, end - begin), end
    scratch, summed = np.empty((1 + 2 * slots) * dimension, np.float32), np.empty(dimension, np.float32)
    all_weights, all_crosses = np.empty((most, slots), np.float32), np.empty((most, slots), np.float32)
    all_queries, all_centred = np.empty((most, dimension), np.float32), np.empty((most, dimension), np.float32)
    all_squares = np.empty(most, np.float32)
    of_slots, of_label = np.empty(most, np.float32), np.empty(slots, np.float32)
    quarter = row_bytes // (4 * LINE_BYTES) * LINE_BYTES
    first_bag, position = 0, 0
    for b in range(len(label_ends)):
        size = bag_ends[b] - first_bag
        queries, centred, squares = all_queries[:size], all_centred[:size], all_squares[:size]
        weights, crosses, flat_bag = all_weights[:size], all_crosses[:size], centred.reshape(-1)
        _prepare(bags[first_bag : bag_ends[b]], query_rows, query_bias, queries, centred, squares)
        while position < label_ends[b]:
            label = labels[position]
            # The next record comes while this one is computed: a quarter at each step, as a core has some dozen lines under way.
            after = labels[min(position + 1, len(labels) - 1)]
            ask_for(octets, after, 0, quarter)
            # An altered byte must not lead outside the record: not every opening verifies hashes.
            used = min(max(np.int64(octets[label, count_place]), 1), slots)
            own = floats[label]
            rows = _unpack(numbers[label][first_number:], own[first_scale:], scratch, slots, used, dimension)
            values = (1 + slots) * dimension
            ask_for(octets, after, quarter, 2 * quarter)
            _products(queries, rows, dimension, used, weights)
            ask_for(octets, after, 2 * quarter, 3 * quarter)
            _products(centred, rows, values, used, crosses)
            ask_for(octets, after, 3 * quarter, row_bytes)
            _softmax(weights, used)
            _slot_weights(weights, crosses, squares, own[first_gram:], used, dimension, epsilon, of_slots, of_label)
            shift = _ZERO
            for j in range(used):
                shift += of_label[j] * own[first_mean + j]
            summed[:] = _ZERO
            _add_rows(summed, flat_bag, 0, of_slots, size)
            _add_rows(summed, rows, values, of_label, used)
            out[position] = _cosine(summed, shift, size, norm_weight, norm_bias, rows[:dimension])
            position += 1
        first_bag = bag_ends[b]


@compiled
def plain_scores(
    numbers: Any, floats: Any, places: Any, labels: Any, label_ends: Any, embeddings: Any, out: Any
) -> None:
    """The same without cross attention: <embedding of product b (B, D), w_l>."""
    slots, _, first_number, _, _, first_scale = places
    dimension = embeddings.shape[1]
    scratch = np.empty(dimension, np.float32)
    position = 0
    for b in range(len(label_ends)):
        while position < label_ends[b]:
            label = labels[position]
            rows = _unpack(numbers[label][first_number:], floats[label][first_scale:], scratch, slots, 0, dimension)
            out[position] = _inner(embeddings[b], rows[:dimension])
            position += 1


KERNELS = (cross_attention_scores, plain_scores)
