"""Which labels are relevant to which products: a sparse 0/1 matrix, row after row.

Knows no ids, no files and no scipy; rows and labels are numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mufin.inputs import Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """N rows x L labels in CSR form; the labels of a row are unique and ascending."""

    indptr: Int64Array
    """(N + 1,): row i owns ``indices[indptr[i]:indptr[i + 1]]``"""
    indices: Int64Array
    """(nnz,) label indices"""
    label_count: int
    """L"""

    def __post_init__(self) -> None:
        if self.indptr.ndim != 1 or not len(self.indptr) or self.indptr[0] != 0:
            raise ValueError(f"indptr must be one-dimensional and begin with 0, has shape {self.indptr.shape}")
        if self.indptr[-1] != len(self.indices):
            raise ValueError(f"indptr ends at {self.indptr[-1]}, there are {len(self.indices)} indices")

    @classmethod
    def from_pairs(cls, rows: Int64Array, labels: Int64Array, row_count: int, label_count: int) -> Relevance:
        """From (nnz,) pairs in any order; a repeated pair counts once. ValueError outside the matrix."""
        rows, labels = np.asarray(rows, dtype=np.int64), np.asarray(labels, dtype=np.int64)
        if rows.shape != labels.shape:
            raise ValueError(f"{rows.shape} rows do not match {labels.shape} labels")
        for name, values, limit in (("row", rows, row_count), ("label", labels, label_count)):
            if len(values) and (values.min() < 0 or values.max() >= limit):
                raise ValueError(f"{name} {values.min()}..{values.max()} does not lie in 0..{limit - 1}")
        flat = np.unique(rows * label_count + labels)
        width = max(1, label_count)
        counts = np.bincount(flat // width, minlength=row_count)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(indptr, flat % width, label_count)

    @property
    def row_count(self) -> int:
        """N"""
        return len(self.indptr) - 1

    def row(self, index: int) -> Int64Array:
        """The labels of one row, ascending; a view."""
        return self.indices[self.indptr[index] : self.indptr[index + 1]]

    def row_sizes(self) -> Int64Array:
        """(N,) labels of each row."""
        return np.diff(self.indptr)

    def label_frequency(self) -> Int64Array:
        """(L,) rows that each label belongs to."""
        return np.bincount(self.indices, minlength=self.label_count).astype(np.int64)

    def select(self, rows: Int64Array) -> Relevance:
        """The given rows in the given order, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, sizes = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        place = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], sizes)
        return Relevance(indptr, self.indices[place], self.label_count)

    def to_pairs(self) -> tuple[Int64Array, Int64Array]:
        """(nnz,) rows and (nnz,) labels, row after row."""
        return np.repeat(np.arange(self.row_count, dtype=np.int64), self.row_sizes()), self.indices
