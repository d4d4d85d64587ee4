"""The kinds of approximate label index: how each is built, what can be tuned, what a query and a build cost.

Knows no target and no bundle. Costs are counted work times constants that ``bench/label_index.py`` measured, not times
of this machine at this moment: two exports of one run must choose alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log2, sqrt
from typing import Any

import faiss as _faiss
import numpy as np

from mufin.inputs import FloatArray, Int64Array

# FAISS's own stubs know neither its numpy overloads nor its search parameters.
faiss: Any = _faiss

_HNSW_NEIGHBOURS = 32
_HNSW_BUILD_EFFORT = 100
_SEED = 22
_TRAINED_ON_A_LIST = 48
_LEAST_IN_A_LIST = 32
_ITERATIONS = 8
_ADDED_AT_ONCE = 65_536
_BITS_A_CODE = 4


@dataclass(frozen=True, slots=True)
class QueryWork:
    """What one query does, on average."""

    lists: float
    """Lists whose centre is compared with"""
    visited: float
    """Lists visited"""
    codes: float
    """Codes compared with"""
    candidates: float
    """Labels scored by their vectors"""
    fewest: float = float("inf")
    """Codes that the query with fewest compared with"""


@dataclass(frozen=True, slots=True)
class QueryCost:
    """Nanoseconds, one thread; those of lists, codes and candidates per number of their vectors (D)."""

    visit: float
    code: float
    candidate: float = 1.45
    centre: float = 0.125
    fixed: float = 10_000

    def microseconds(self, work: QueryWork, dimension: int) -> float:
        """Of one query."""
        compared = self.centre * work.lists + self.code * work.codes + self.candidate * work.candidates
        return (self.fixed + self.visit * work.visited + dimension * compared) / 1000


@dataclass(frozen=True)
class ApproximateKind:
    """One kind of index."""

    name: str
    make: Callable[[int, int], Any]
    """D, lists -> empty index"""
    cost: QueryCost
    candidates: tuple[float, ...]
    """Labels asked for per label wanted, that are worth trying"""
    lists: bool
    even: int
    """D must be a multiple"""
    code_bytes: Callable[[int], float]
    """D -> bytes a label"""

    def fits(self, dimension: int) -> bool:
        """Whether FAISS has it for D."""
        return dimension % self.even == 0

    def bytes_a_label(self, labels: int, dimension: int) -> float:
        """Of labels.faiss, roughly: codes, ids or links, and the centres of lists."""
        return self.code_bytes(dimension) + (4 * dimension * list_count(labels) / labels if self.lists else 0)

    def build_seconds(self, labels: int, dimension: int) -> float:
        """Of one thread of the machine the constants were measured on; others are compared by it."""
        if not self.lists:
            return 4.5e-8 * labels * log2(max(labels, 2)) * dimension * (_HNSW_BUILD_EFFORT / 100)
        lists = list_count(labels)
        compared = lists * (labels + _ITERATIONS * min(labels, lists * _TRAINED_ON_A_LIST))
        return (1.6e-11 * compared + 7e-8 * labels) * dimension

    def build(self, embeddings: FloatArray, threads: int) -> Any:
        """The index of (L, D) embeddings. The bytes depend on nothing else, not on ``threads`` either.

        A graph is built by one thread: several insert in an order that differs from run to run.
        """
        count, dimension = embeddings.shape
        index = self.make(dimension, list_count(count))
        with faiss_threads(threads if self.lists else 1):
            index.train(_training_rows(embeddings))
            for start in range(0, count, _ADDED_AT_ONCE):
                index.add(np.ascontiguousarray(embeddings[start : start + _ADDED_AT_ONCE], dtype=np.float32))
        return index


def list_count(labels: int) -> int:
    """Lists of an inverted file of so many labels: visiting them and choosing them then cost alike."""
    return max(1, min(round(4 * sqrt(labels)), labels // _LEAST_IN_A_LIST))


def _training_rows(embeddings: FloatArray) -> FloatArray:
    """A seeded sample: memory and time of training grow with the lists, not with L."""
    count = len(embeddings)
    wanted = max(_TRAINED_ON_A_LIST * list_count(count), 65_536)
    if wanted >= count:
        return np.ascontiguousarray(embeddings, dtype=np.float32)
    rows = np.sort(np.random.default_rng(_SEED).choice(count, wanted, replace=False))
    return np.ascontiguousarray(embeddings[rows], dtype=np.float32)


def _hnsw(dimension: int, _: int) -> Any:
    index = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _HNSW_BUILD_EFFORT
    return index


def _inverted_file(make: Callable[[Any, int, int], Any]) -> Callable[[int, int], Any]:
    """With centres found on the sphere by a fixed seed."""

    def made(dimension: int, lists: int) -> Any:
        centres = faiss.IndexFlatIP(dimension)
        index = make(centres, dimension, lists)
        centres.this.disown()
        index.own_fields = True
        index.cp.niter, index.cp.seed, index.cp.spherical = _ITERATIONS, _SEED, True
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = max(_TRAINED_ON_A_LIST, ceil(65_536 / lists))
        return index

    return made


def _scalar(centres: Any, dimension: int, lists: int) -> Any:
    # Without residuals: those cost time at every list and gain nothing where 8 bits are enough.
    return faiss.IndexIVFScalarQuantizer(
        centres, dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )


def _product(centres: Any, dimension: int, lists: int) -> Any:
    """Two numbers a code of 4 bits."""
    return faiss.IndexIVFPQFastScan(centres, dimension, lists, dimension // 2, _BITS_A_CODE, faiss.METRIC_INNER_PRODUCT)


def _rabitq(centres: Any, dimension: int, lists: int) -> Any:
    """One bit a number. No rotation before it: the numbers of a learned embedding are like each other."""
    return faiss.IndexIVFRaBitQFastScan(centres, dimension, lists, faiss.METRIC_INNER_PRODUCT)


APPROXIMATE_KINDS: dict[str, ApproximateKind] = {
    kind.name: kind
    for kind in (
        ApproximateKind("hnsw-sq8", _hnsw, QueryCost(0, 1.1), (1.0, 1.5), False, 1, lambda d: d + 278),
        ApproximateKind(
            "ivf-sq8", _inverted_file(_scalar), QueryCost(1400, 0.08), (1.0, 1.5), True, 1, lambda d: d + 8
        ),
        ApproximateKind(
            "ivf-pq",
            _inverted_file(_product),
            QueryCost(100, 0.045),
            (1.5, 2.0, 3.0, 4.0, 6.0),
            True,
            8,
            lambda d: 1.15 * d / 4 + 8,
        ),
        ApproximateKind(
            "ivf-rabitq",
            _inverted_file(_rabitq),
            QueryCost(1400, 0.085),
            (1.5, 2.0, 3.0, 4.0, 6.0),
            True,
            8,
            lambda d: 1.15 * (d / 8 + 8) + 8,
        ),
    )
}
"""By the name that the manifest has of it."""


class WorkCounter:
    """Counts what queries do in an index."""

    def __init__(self, index: Any, kind: ApproximateKind, queries: FloatArray) -> None:
        self._index, self._kind, self._queries = index, kind, queries

    @cached_property
    def _sizes(self) -> Int64Array:
        return np.asarray([self._index.get_list_size(i) for i in range(self._index.nlist)], dtype=np.int64)

    def count(self, effort: int, number: int) -> QueryWork:
        """Of a mean query that visits ``effort`` lists (a graph: keeps so many nodes) and asks for ``number`` labels."""
        if self._kind.lists:
            visited = self._index.quantizer.search(self._queries, effort)[1]
            codes = self._sizes[visited].sum(axis=1)
            return QueryWork(self._index.nlist, effort, float(codes.mean()), number, float(codes.min()))
        statistics = faiss.cvar.hnsw_stats
        statistics.reset()
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, number))
        self._index.search(self._queries, number, params=parameters)
        return QueryWork(0, 0, statistics.ndis / len(self._queries), number)


def get_effort(index: Any, kind: ApproximateKind) -> int:
    """Lists visited, or nodes kept, as stored in the index."""
    return int(index.nprobe if kind.lists else index.hnsw.efSearch)


def set_effort(index: Any, kind: ApproximateKind, effort: int) -> None:
    """Store it in the index, whose file keeps it."""
    if kind.lists:
        index.nprobe = effort
    else:
        index.hnsw.efSearch = effort


@contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """FAISS's threads of this thread's calls; 0: all there are."""
    before = faiss.omp_get_max_threads()
    if threads:
        faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
