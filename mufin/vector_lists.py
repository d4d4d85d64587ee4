"""Lists of vectors that lie near one centre: which few of many are worth comparing with a query (an inverted file).

Knows neither what the vectors are of nor who finds the centres (``mufin.training.vector_lists``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mufin.candidate_arithmetic import Arithmetic
from mufin.compilation import Kernel
from mufin.inputs import FloatArray, Int64Array
from mufin.vector_rows import VectorRows


@dataclass(frozen=True, eq=False)
class VectorLists:
    """N vectors in C lists. Thread-safe."""

    centres: VectorRows
    """(C, D) unit length"""
    first: Int64Array
    """(C + 1,): list c owns ``rows[first[c]:first[c + 1]]``"""
    rows: Int64Array
    """(N,) numbers of the vectors, each once, ascending within a list"""
    probes: int
    """Lists that a query looks at, those whose centres are nearest"""

    def near(self, query: FloatArray, arithmetic: Arithmetic) -> Int64Array:
        """Rows of the ``probes`` lists nearest to ``query`` (D,), list after list; no company of a query changes them."""
        lists = arithmetic.best(self.centres.products(query[None])[0], self.probes, False)
        return np.concatenate([self.rows[self.first[own] : self.first[own + 1]] for own in lists.tolist()])

    def with_kernel(self, kernel: Kernel) -> VectorLists:
        """The same, compared by ``kernel``."""
        return replace(self, centres=replace(self.centres, kernel=kernel))

    def __len__(self) -> int:
        return len(self.rows)
