"""Vectors kept as float16, and their inner products with queries: compiled over what is kept, or plain numpy.

Knows not what the vectors are of. numba is imported only when something is compared by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mufin.compilation import Kernel, begin, compile_only, kept
from mufin.errors import InputError
from mufin.inputs import FloatArray, Int64Array

HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class VectorRows:
    """N vectors. Thread-safe."""

    values: HalfArray
    """(N, D)"""
    kernel: Kernel = "numba"
    """numpy: the reference; it keeps a second copy, as float32"""

    @classmethod
    def of(cls, values: npt.NDArray[Any], kernel: Kernel = "numba") -> VectorRows:
        """(N, D) vectors, rounded to float16 unless they are that: a cosine moves by some 1e-4."""
        return cls(np.ascontiguousarray(values, dtype=np.float16), kernel)

    @cached_property
    def wide(self) -> FloatArray:
        """(N, D) the same as float32, made when first asked for and kept."""
        return self.values.astype(np.float32)

    @cached_property
    def _stored(self) -> npt.NDArray[np.uint16]:
        stored = self.values.view(np.uint16)
        stored.flags.writeable = False  # one type for the compiler, whatever the source
        return stored

    @property
    def dimension(self) -> int:
        """D"""
        return int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def products(self, queries: FloatArray) -> FloatArray:
        """(B, D) -> (B, N) inner products; no company changes those of a query.

        Raises InputError for queries of another dimension: compiled code reads wherever it is told to.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise InputError(f"queries are {queries.shape}, the vectors have dimension {self.dimension}")
        found = np.zeros((len(queries), len(self)), dtype=np.float32)
        if self.kernel == "numba":
            _kernels().inner_products(self._stored, np.ascontiguousarray(queries, dtype=np.float32), found)
        else:
            for own, query in zip(found, queries, strict=True):
                np.matmul(self.wide, query, out=own)
        return found

    def products_of(self, rows: Int64Array, query: FloatArray) -> FloatArray:
        """(m,) inner products of the given rows with one query (D,): those that ``products`` gives.

        Raises InputError for a query of another dimension and a row that there is not.
        """
        if query.shape != (self.dimension,) or not (rows.min(initial=0) >= 0 and rows.max(initial=-1) < len(self)):
            raise InputError(
                f"a query is {query.shape} and rows are {rows.min(initial=0)}..{rows.max(initial=-1)}, "
                f"there are {len(self)} vectors of dimension {self.dimension}"
            )
        found = np.zeros(len(rows), dtype=np.float32)
        if self.kernel == "numba":
            wanted, own = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(query, dtype=np.float32)
            _kernels().inner_products_of(self._stored, wanted, own, found)
        else:
            np.matmul(self.wide[rows], query, out=found)
        return found


def compile_here() -> None:
    """Compile for the CPU that numba is set to, without running it."""
    rows = VectorRows.of(np.zeros((1, 1)))
    one = np.zeros((1, 1), dtype=np.float32)
    kernels = compile_only(_kernels())
    kernels.inner_products(rows._stored, one, one)
    kernels.inner_products_of(rows._stored, np.zeros(1, dtype=np.int64), one[0], one[0])


@cache
def _kernels() -> Any:
    begin("install it, or open the bundle with kernel='numpy'")
    from mufin import vector_kernels

    return kept(vector_kernels)
