"""How much of the exact shortlist an index finds, and the least work at which it finds enough.

Knows neither bundle files nor how kinds are compared. Recall is that of ``mufin.label_search``, as served.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import faiss as _faiss
import numpy as np

from model_export.index_kinds import ApproximateKind, QueryWork, WorkCounter, get_effort, set_effort
from mufin.inputs import FloatArray, Int64Array
from mufin.label_search import LabelSearch

# FAISS's own stubs know neither its numpy overloads nor its search parameters.
faiss: Any = _faiss

_ROWS_AT_ONCE = 65_536
_TIMED_QUERIES = 50
_MOST_QUERIES = 512
_MOVED_QUERIES = 256
_SEED = 22
_MOST_EFFORT_OF_GRAPH = 8
_FIRST_LISTS = 4
# Doubled effort that gains less has met what the candidates' codes can tell.
_LEAST_GAIN = 0.001
_FINE_ENOUGH = 1.08


@dataclass(frozen=True)
class Point:
    """One setting of an index, measured."""

    effort: int
    """Lists visited, or nodes kept by a graph search"""
    candidates: float
    """Labels the index is asked for, per label wanted"""
    recall: float
    milliseconds: float
    """Of one query, one thread, median"""
    work: QueryWork

    def to_json(self, kind: ApproximateKind) -> dict[str, Any]:
        """Plain values for the report."""
        name = "nprobe" if kind.lists else "efSearch"
        return {
            "parameters": {"kind": kind.name, name: self.effort, "candidates": self.candidates},
            "recall": round(self.recall, 5), "ms": round(self.milliseconds, 4),
        }  # fmt: skip


@dataclass(frozen=True)
class ExactShortlists:
    """What an index is judged by."""

    queries: FloatArray
    """(Q, D)"""
    size: int
    """K"""
    worst: FloatArray
    """(Q,) score of the last of each query's K nearest labels"""

    def recall(self, scores: FloatArray) -> float:
        """Of found labels, (Q, K), by their true scores: one as good as the last is right, equal labels may swap."""
        return float((scores >= self.worst[:, None] - 1e-6).mean())


@dataclass(frozen=True)
class Tuned:
    """What tuning an index came to."""

    best: Point | None
    """Least work at which the target is met; None: it is not"""
    points: tuple[Point, ...] = field(default=())
    """All that were tried"""

    @property
    def highest(self) -> Point:
        """The one that finds most."""
        return max(self.points, key=lambda point: point.recall)


def exact_shortlists(embeddings: FloatArray, queries: FloatArray, size: int) -> ExactShortlists:
    """By comparison with all of (L, D), read in blocks; at most so many of the queries as settle the recall."""
    chosen = np.unique(np.linspace(0, len(queries) - 1, _MOST_QUERIES).astype(np.int64))
    queries = np.ascontiguousarray(queries[chosen], dtype=np.float32)
    best = np.zeros((len(queries), 0), dtype=np.float32)
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        block = np.ascontiguousarray(embeddings[start : start + _ROWS_AT_ONCE], dtype=np.float32)
        own = faiss.knn(queries, block, min(size, len(block)), metric=faiss.METRIC_INNER_PRODUCT)[0]
        both = np.concatenate([best, own], axis=1)
        best = -np.sort(-both, axis=1)[:, :size]
    return ExactShortlists(queries, size, best[:, -1])


def moved_labels(embeddings: FloatArray) -> FloatArray:
    """Some label embeddings moved a little, in place of products, which lie near the labels relevant to them."""
    random = np.random.default_rng(_SEED)
    rows = np.sort(random.choice(len(embeddings), min(_MOVED_QUERIES, len(embeddings)), replace=False))
    noise = random.standard_normal((len(rows), embeddings.shape[1])).astype(np.float32)
    moved = embeddings[rows] + 0.5 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), dtype=np.float32)


def tune(
    index: Any, kind: ApproximateKind, embeddings: FloatArray, head: Int64Array, exact: ExactShortlists, target: float
) -> Tuned:
    """Find the cheapest setting of ``index`` that reaches ``target``, and store its effort in the index."""
    trial = _Trial(index, kind, embeddings, head, exact)
    best, least = None, float("inf")
    for candidates in kind.candidates:  # ascending: once more of them cost more, they go on doing so
        point = trial.least_effort(candidates, target)
        if point is not None:
            cost = kind.cost.microseconds(point.work, embeddings.shape[1])
            if cost >= least:
                break
            best, least = point, cost
    if best is not None:
        set_effort(index, kind, best.effort)
    return Tuned(best, tuple(trial.points))


class _Trial:
    def __init__(
        self, index: Any, kind: ApproximateKind, embeddings: FloatArray, head: Int64Array, exact: ExactShortlists
    ) -> None:
        self._index, self._kind, self._exact = index, kind, exact
        self._search: Callable[[float, int], LabelSearch] = lambda candidates, threads: LabelSearch(
            index, kind.name, embeddings, head=head, candidates=candidates, threads=threads
        )
        self._counter = WorkCounter(index, kind, exact.queries)
        self._threads = faiss.omp_get_max_threads()
        self.points: list[Point] = []

    def least_effort(self, candidates: float, target: float) -> Point | None:
        """Doubled until the target is met, then halved in between; None when it is not."""
        first, most = self._efforts(candidates)
        below, effort = 0, first
        point = self._measure(effort, candidates)
        while point.recall < target:
            if effort >= most:
                return None
            below, effort = effort, min(2 * effort, most)
            before, point = point, self._measure(effort, candidates)
            if point.recall < target and point.recall - before.recall < _LEAST_GAIN:
                return None
        while effort - below > 1 and below and effort > _FINE_ENOUGH * below:
            middle = self._measure(ceil((effort * below) ** 0.5), candidates)
            if middle.effort == effort:
                break
            if middle.recall >= target:
                effort, point = middle.effort, middle
            else:
                below = middle.effort
        return point

    def _efforts(self, candidates: float) -> tuple[int, int]:
        """Least and most that is worth trying. Lists that hold too few labels for one of the queries would be searched
        again, wider: that costs more than it seems to.
        """
        if not self._kind.lists:
            return self._exact.size, _MOST_EFFORT_OF_GRAPH * self._exact.size
        effort, number = _FIRST_LISTS, ceil(candidates * self._exact.size)
        while effort < self._index.nlist and self._counter.count(effort, number).fewest < number:
            effort = ceil(1.4 * effort)
        return min(effort, self._index.nlist), int(self._index.nlist)

    def _measure(self, effort: int, candidates: float) -> Point:
        before = get_effort(self._index, self._kind)
        set_effort(self._index, self._kind, effort)
        scores = self._search(candidates, self._threads).search(self._exact.queries, self._exact.size)[1]
        milliseconds = median_milliseconds(self._search(candidates, 1), self._exact.queries, self._exact.size)
        faiss.omp_set_num_threads(self._threads)
        set_effort(self._index, self._kind, before)
        work = self._counter.count(effort, ceil(candidates * self._exact.size))
        point = Point(effort, candidates, self._exact.recall(scores), milliseconds, work)
        self.points.append(point)
        return point


def median_milliseconds(search: LabelSearch, queries: FloatArray, size: int) -> float:
    """Of one query at a time."""
    return float(np.median(query_milliseconds(search, queries[:_TIMED_QUERIES], size)))


def query_milliseconds(search: LabelSearch, queries: FloatArray, size: int) -> FloatArray:
    """(Q,) of each query alone, after one for warming."""
    search.search(queries[:1], size)
    times = []
    for query in queries:
        began = time.perf_counter()
        search.search(query[None], size)
        times.append(1000 * (time.perf_counter() - began))
    return np.asarray(times, dtype=np.float32)
