"""Module 2: the nearest labels of every product, for training and for the evaluation of a run.

Knows no network. Exact for small L; HNSW beyond, with head labels searched exactly and merged (docs/network.md).
"""

from __future__ import annotations

import faiss
import numpy as np

from mufin.inputs import FloatArray, Int64Array
from mufin.training.config import ShortlistConfig
from mufin.training.label_vectors import LabelVectors

_HNSW_NEIGHBOURS = 100
_QUERIES_AT_ONCE = 4096


def _add_in_order(index: faiss.Index, embeddings: FloatArray) -> None:
    """On one thread: several insert in any order, and the graph, so the shortlist, would differ from run to run."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(embeddings)
    finally:
        faiss.omp_set_num_threads(threads)


class LabelSearch:
    """Cosine search over vectors of L labels, one or several each; a label's cosine is that of its nearest."""

    def __init__(self, found_by: LabelVectors, frequency: Int64Array, config: ShortlistConfig) -> None:
        """``frequency`` (L,): training products of each label."""
        vectors, self._labels = found_by.vectors, found_by.labels
        self._vectors = vectors
        self._most = int(np.bincount(self._labels).max(initial=1))
        """Vectors of one label"""
        head = frequency[self._labels] >= config.head_frequency
        if len(vectors) <= config.exact_labels:
            head = np.ones(len(vectors), dtype=np.bool_)
        self._head = np.flatnonzero(head)
        self._tail = np.flatnonzero(~head)
        self._exact = faiss.IndexFlatIP(vectors.shape[1])
        self._exact.add(vectors[self._head])
        self._near: faiss.Index | None = None
        if len(self._tail):
            near = faiss.IndexHNSWFlat(vectors.shape[1], _HNSW_NEIGHBOURS // 2, faiss.METRIC_INNER_PRODUCT)
            near.hnsw.efConstruction = near.hnsw.efSearch = max(300, config.size)
            _add_in_order(near, vectors[self._tail])
            self._near = near

    def search(self, queries: FloatArray, k: int) -> tuple[Int64Array, FloatArray]:
        """Best k of each query (B, D): labels (B, k), -1 where there are fewer, and cosines; ties by label index."""
        parts = [
            self._search_block(queries[i : i + _QUERIES_AT_ONCE], k) for i in range(0, len(queries), _QUERIES_AT_ONCE)
        ]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def cosines(self, query: FloatArray, labels: Int64Array) -> FloatArray:
        """(m,) of a query (D,) with (m,) labels."""
        if self._most == 1:
            return np.asarray(self._vectors[labels] @ query)
        starts, ends = (np.searchsorted(self._labels, labels, side) for side in ("left", "right"))
        return np.asarray(
            [(self._vectors[start:end] @ query).max() for start, end in zip(starts, ends, strict=True)],
            dtype=np.float32,
        )

    def _search_block(self, queries: FloatArray, k: int) -> tuple[Int64Array, FloatArray]:
        wanted = k * self._most
        places = np.full((len(queries), wanted), -1, dtype=np.int64)
        scores = np.full((len(queries), wanted), -np.inf, dtype=np.float32)
        if len(self._head):
            exact = min(wanted, len(self._head))
            found_scores, found = self._exact.search(queries, exact)
            places[:, :exact], scores[:, :exact] = self._head[found], found_scores
        if self._near is not None:
            near_scores, near = self._near.search(queries, min(wanted, len(self._tail)))
            places = np.concatenate([places, np.where(near >= 0, self._tail[np.maximum(near, 0)], -1)], axis=1)
            scores = np.concatenate([scores, np.where(near >= 0, near_scores, -np.inf)], axis=1)
        labels = np.where(places >= 0, self._labels[np.maximum(places, 0)], -1)
        if self._most > 1:
            labels, scores = _best_of_each(labels, scores)
        order = np.lexsort((labels, -scores))[:, :k]
        return np.take_along_axis(labels, order, 1), np.take_along_axis(scores, order, 1).astype(np.float32)


def _best_of_each(labels: Int64Array, scores: FloatArray) -> tuple[Int64Array, FloatArray]:
    """Each row's (B, W) labels once, with their highest score; -1 and -inf in place of the others."""
    order = np.lexsort((-scores, labels))
    labels, scores = np.take_along_axis(labels, order, 1), np.take_along_axis(scores, order, 1)
    again = np.zeros(labels.shape, dtype=np.bool_)
    again[:, 1:] = labels[:, 1:] == labels[:, :-1]
    return np.where(again, -1, labels), np.where(again, np.float32(-np.inf), scores)
