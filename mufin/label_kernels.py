"""Labels scored by their stored vectors and put in order, compiled.

Imports numba, so it is imported only where ``mufin.label_vectors`` was asked for ``kernel="numba"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mufin.kernel_parts import ask_for, compiled

# Rows lie apart: that many ahead are on their way from memory while one is summed.
_AHEAD = 4
_SIGN, _MAGNITUDE, _ALL = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0xFFFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_LABEL_BITS = np.uint64(32)


@compiled
def _rank(bits: Any) -> Any:
    """A float32's bits -> a number that falls as the float grows; of both zeros the same, of NaN the largest."""
    if bits == _SIGN:
        bits = np.uint32(0)
    if (bits & _MAGNITUDE) > _INFINITY:
        return _ALL
    return np.uint32(bits if bits & _SIGN else _ALL ^ (bits | _SIGN))


@compiled
def order(stored: Any, queries: Any, found: Any, unit: Any, labels: Any, scores: Any) -> Any:
    """The best of (B, n) ``found`` labels into ``labels`` and ``scores`` (B, wanted), falling; True: one is beyond L.

    ``stored``: (L, D) int16 or float32, times ``unit`` the label's vector; ``queries``: (B, D) float32. Equal scores come by
    ascending label, NaN behind all numbers, negative labels last, as -1 with -inf. Sorted are numbers made of a score's rank
    and, below it, the label: one comparison decides.
    """
    count, row_bytes = found.shape[1], stored.shape[1] * stored.itemsize
    own, keys = np.empty(count, np.float32), np.empty(count, np.uint64)
    bits = own.view(np.uint32)
    for b in range(len(found)):
        query = queries[b]
        for n in range(count):
            label = found[b, n]
            if label >= len(stored):
                return True
            if n + _AHEAD < count and 0 <= found[b, n + _AHEAD] < len(stored):
                ask_for(stored, found[b, n + _AHEAD], 0, row_bytes)
            keys[n] = _LAST
            if label >= 0:
                row, total = stored[label], np.float32(0)
                for i in range(len(query)):
                    total += np.float32(row[i]) * query[i]
                own[n] = total * unit
                keys[n] = (np.uint64(_rank(bits[n])) << _LABEL_BITS) | np.uint64(label)
        keys.sort()
        for n in range(labels.shape[1]):
            key = keys[n]
            if key == _LAST:
                labels[b, n], scores[b, n] = -1, -np.inf
                continue
            rank = np.uint32(key >> _LABEL_BITS)
            bits[0] = rank if rank & _SIGN else (_ALL ^ rank) & _MAGNITUDE
            labels[b, n], scores[b, n] = np.int64(key & np.uint64(_ALL)), own[0]
    return False


KERNELS = (order,)
