"""Pairs of numbers on disk, in buckets of products, so that merging repeated ones needs little memory.

Knows no ids and no data set.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mufin.inputs import BoolArray, Int64Array

_FIELDS = 4
_WAITING_PAIRS = 1 << 17
_COMPACT_BYTES = 1 << 25
_PART_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class MergedPairs:
    """Different pairs of one bucket, by product, then label."""

    products: Int64Array
    """(n,)"""
    labels: Int64Array
    """(n,)"""
    splits: Int64Array
    """(n,) bits of the splits the pair was added in: bit i for split i"""
    counts: Int64Array
    """(n,) sum of the counts it was added with"""

    def first_split(self) -> Int64Array:
        """(n,) the lowest split of each pair."""
        return np.asarray(np.log2(self.splits & -self.splits), dtype=np.int64)

    def select(self, keep: BoolArray) -> MergedPairs:
        """Those pairs where ``keep`` (n,) holds."""
        return MergedPairs(self.products[keep], self.labels[keep], self.splits[keep], self.counts[keep])


class PairSpool:
    """Collects (product, label, split, count); memory is a few dozen MiB, or the pairs of one product if they need more."""

    def __init__(self, folder: Path, bucket_shift: int = 13) -> None:
        """``folder`` is created and holds a file a bucket; products that agree but for ``bucket_shift`` bits share one."""
        folder.mkdir(parents=True)
        self._folder = folder
        self._shift = bucket_shift
        self._waiting = array("q")
        self._limits: dict[int, int] = {}
        self.added = 0
        """Pairs added so far, repeats included"""

    def add(self, product: int, label: int, split: int = 0, count: int = 1) -> None:
        """One pair; adding it again adds up the counts."""
        self._waiting.extend((product, label, 1 << split, count))
        self.added += 1
        if len(self._waiting) >= _FIELDS * _WAITING_PAIRS:
            self._flush()

    def merged(self) -> Iterator[MergedPairs]:
        """Bucket after bucket, ascending; may be asked for again."""
        self._flush()
        for bucket in sorted(self._limits):
            for part in self._parts(bucket):
                rows = _merge(part)
                yield MergedPairs(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = np.array(self._waiting, dtype=np.int64).reshape(-1, _FIELDS)
        self._waiting = array("q")
        buckets = rows[:, 0] >> self._shift
        order = np.argsort(buckets, kind="stable")
        rows, buckets = rows[order], buckets[order]
        starts = np.flatnonzero(np.diff(buckets, prepend=buckets[:1] - 1))
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            self._append(int(buckets[start]), rows[start:end])

    def _append(self, bucket: int, rows: Int64Array) -> None:
        path = self._path(bucket)
        with path.open("ab") as file:
            file.write(rows.tobytes())
            size = file.tell()
        if size > self._limits.setdefault(bucket, _COMPACT_BYTES):
            compact = path.with_suffix(".compact")
            with compact.open("wb") as file:
                for part in self._parts(bucket):
                    file.write(_merge(part).tobytes())
            compact.replace(path)
            # Where nearly all pairs differ, merging anew at every flush would take for ever.
            self._limits[bucket] = max(_COMPACT_BYTES, 2 * path.stat().st_size)

    def _parts(self, bucket: int) -> Iterator[Int64Array]:
        """The rows of a bucket by ranges of products, ascending, so that a busy bucket is not read whole."""
        path, products = self._path(bucket), 1 << self._shift
        number = min(products, -(-path.stat().st_size // _PART_BYTES))
        width = -(-products // number)
        for low in range(bucket << self._shift, (bucket + 1) << self._shift, width):
            chosen = []
            with path.open("rb") as file:
                while len(chunk := np.fromfile(file, np.int64, _FIELDS * _WAITING_PAIRS)):
                    rows = chunk.reshape(-1, _FIELDS)
                    chosen.append(rows[(rows[:, 0] >= low) & (rows[:, 0] < low + width)])
            yield np.concatenate(chosen)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.pairs"


def _merge(rows: Int64Array) -> Int64Array:
    """(m, 4) sorted different pairs of (n, 4): bits joined, counts added."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    is_first = np.ones(len(rows), dtype=np.bool_)
    is_first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    starts = np.flatnonzero(is_first)
    merged = rows[starts]
    merged[:, 2] = np.bitwise_or.reduceat(rows[:, 2], starts)
    merged[:, 3] = np.add.reduceat(rows[:, 3], starts)
    return merged
