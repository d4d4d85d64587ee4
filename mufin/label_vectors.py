"""The vectors that labels are compared by, and labels put in order by them: compiled, or plain numpy, which is the reference.

Knows no index. numba is imported only where it is asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mufin.compilation import Kernel, begin, compile_only, kept
from mufin.errors import InputError
from mufin.inputs import FloatArray, Int64Array

VECTOR_UNIT = 32767
"""Stored numbers of a unit vector are int16 in units of 1/32767: half of float16's error in scores, half of its time."""

# Vectors compared at once by numpy: they stay in a core's cache, and below what glibc asks the system for anew every time
# where the service has it give large blocks back: a page fault for every 4 KB made a batch's search half as slow again.
_SCORED_BYTES = 3 << 18


class LabelVectors:
    """Vectors of L labels. Thread-safe: nothing is written."""

    def __init__(self, values: npt.NDArray[Any], kernel: Kernel = "numpy") -> None:
        """``values``: (L, D), float32, or int16 in units of 1 / VECTOR_UNIT, of which rows are read when they are needed.

        Raises ConfigError when ``kernel`` is numba and cannot be imported.
        """
        self._values = values
        self._unit = np.float32(1 if values.dtype == np.float32 else 1 / VECTOR_UNIT)
        self._kernels: Any = None
        if kernel == "numba":
            self._kernels = _kernels()
            self._stored = _closed(values)
            # Compiled, or read from where it is kept: the first request is as fast as others.
            self.ordered(np.zeros((1, values.shape[1]), np.float32), np.full((1, 1), -1, np.int64), 1)

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) of unit length, in the order of ``labels``, as they are compared."""
        rows = self._values[labels]
        if rows.dtype == np.float32:
            return np.asarray(rows)
        return np.asarray(rows, dtype=np.float32) * self._unit

    def ordered(self, queries: FloatArray, found: Int64Array, wanted: int) -> tuple[Int64Array, FloatArray]:
        """The ``wanted`` best (B, wanted) of (B, n) labels for (B, D) queries, and their inner products, falling.

        Equal scores come by ascending label; -1 is no label, and stands behind all with -inf. Each product is summed in the
        same order, whatever stands beside it, so that equal vectors have equal scores. Raises InputError for queries of
        another dimension or number; compiled, for a label that there is not, too.
        """
        if queries.ndim != 2 or queries.shape[1] != self._values.shape[1]:
            raise InputError(f"queries are {queries.shape}, the labels have dimension {self._values.shape[1]}")
        if found.ndim != 2 or len(found) != len(queries):
            raise InputError(f"{len(queries)} queries have labels of shape {found.shape}, need a row each")
        if not found.shape[1]:
            return found, np.zeros(found.shape, dtype=np.float32)
        if self._kernels is not None:
            return self._compiled(queries, found, wanted)
        scores = np.empty(found.shape, dtype=np.float32)
        step = max(1, _SCORED_BYTES // (4 * queries.shape[1] * found.shape[1]))
        for start in range(0, len(found), step):
            part = slice(start, start + step)
            scores[part] = np.einsum("bd,bkd->bk", queries[part], self.embeddings(found[part]))  # without BLAS
        scores[found < 0] = -np.inf
        order = np.lexsort((found, -scores, found < 0))[:, :wanted]
        rows = np.arange(len(found))[:, None]  # take_along_axis takes fifteen calls to come to the same
        return found[rows, order], scores[rows, order]

    def _compiled(self, queries: FloatArray, found: Int64Array, wanted: int) -> tuple[Int64Array, FloatArray]:
        shape = len(found), min(wanted, found.shape[1])
        labels, scores = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
        beyond = self._kernels.order(
            self._stored, np.ascontiguousarray(queries, dtype=np.float32), np.ascontiguousarray(found), self._unit,
            labels, scores,
        )  # fmt: skip
        if beyond:
            raise InputError(f"labels up to {found.max()} are asked for, there are {len(self._values)}")
        return labels, scores


def compile_here() -> None:
    """Compile for the CPU that numba is set to, without running it."""
    kernels = compile_only(_kernels())
    floats, labels = np.zeros((1, 1), dtype=np.float32), np.zeros((1, 1), dtype=np.int64)
    for kind in (np.int16, np.float32):
        kernels.order(_closed(floats.astype(kind)), floats, labels, np.float32(1), labels, floats)


def _closed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory, not to be written: one type for the compiler, whatever the source."""
    view = np.ascontiguousarray(values).view()
    view.flags.writeable = False
    return view


@cache
def _kernels() -> Any:
    begin("install it, or open the bundle with kernel='numpy'")
    from mufin import label_kernels

    return kept(label_kernels)
