"""Inner products with vectors kept as float16, compiled.

Imports numba, so it is imported only where ``mufin.vector_rows`` was asked for ``kernel="numba"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mufin.kernel_parts import ask_for, compiled, half

# Chosen rows lie apart: that many ahead are on their way from memory while one is summed.
_AHEAD = 3


@compiled
def _inner(stored: Any, query: Any) -> Any:
    total = np.float32(0)
    for i in range(len(query)):
        total += half(stored[i]) * query[i]
    return total


@compiled
def inner_products(rows: Any, queries: Any, out: Any) -> None:
    """<row n, query b> into ``out`` (B, N) float32. ``rows``: (N, D) float16 as uint16; ``queries``: (B, D) float32.

    Memory sets the pace, so a row is read once for all queries; it is converted anew for each, by the same code however
    many there are: no company changes a product.
    """
    for n in range(len(rows)):
        row = rows[n]
        for b in range(len(queries)):
            out[b, n] = _inner(row, queries[b])


@compiled
def inner_products_of(rows: Any, places: Any, query: Any, out: Any) -> None:
    """<row places[i], query> into ``out`` (m,) float32; ``places``: (m,) int64 within 0..N-1."""
    row_bytes = rows.shape[1] * rows.itemsize
    for i in range(len(places)):
        if i + _AHEAD < len(places):
            ask_for(rows, places[i + _AHEAD], 0, row_bytes)
        out[i] = _inner(rows[places[i]], query)


KERNELS = (inner_products, inner_products_of)
