"""Module 2: the nearest labels of every product, for training and for the evaluation of a run.

Knows no network. Exact for small L; HNSW beyond, with head labels searched exactly and merged (docs/network.md).
"""

from __future__ import annotations

import faiss
import numpy as np

from mufin.inputs import FloatArray, Int64Array
from mufin.training.config import ShortlistConfig

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
    """Cosine search over label embeddings (L, D), unit length."""

    def __init__(self, embeddings: FloatArray, frequency: Int64Array, config: ShortlistConfig) -> None:
        """``frequency`` (L,): training products of each label."""
        self._count, dimension = embeddings.shape
        head = frequency >= config.head_frequency
        if self._count <= config.exact_labels:
            head = np.ones(self._count, dtype=np.bool_)
        self._head = np.flatnonzero(head)
        self._tail = np.flatnonzero(~head)
        self._exact = faiss.IndexFlatIP(dimension)
        self._exact.add(embeddings[self._head])
        self._near: faiss.Index | None = None
        if len(self._tail):
            near = faiss.IndexHNSWFlat(dimension, _HNSW_NEIGHBOURS // 2, faiss.METRIC_INNER_PRODUCT)
            near.hnsw.efConstruction = near.hnsw.efSearch = max(300, config.size)
            _add_in_order(near, embeddings[self._tail])
            self._near = near

    def search(self, queries: FloatArray, k: int) -> tuple[Int64Array, FloatArray]:
        """Best k of each query (B, D): labels (B, k), -1 where there are fewer, and cosines; ties by label index."""
        parts = [
            self._search_block(queries[i : i + _QUERIES_AT_ONCE], k) for i in range(0, len(queries), _QUERIES_AT_ONCE)
        ]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _search_block(self, queries: FloatArray, k: int) -> tuple[Int64Array, FloatArray]:
        labels = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        if len(self._head):
            wanted = min(k, len(self._head))
            found_scores, found = self._exact.search(queries, wanted)
            labels[:, :wanted], scores[:, :wanted] = self._head[found], found_scores
        if self._near is not None:
            near_scores, near = self._near.search(queries, min(k, len(self._tail)))
            near_labels = np.where(near >= 0, self._tail[np.maximum(near, 0)], -1)
            labels = np.concatenate([labels, near_labels], axis=1)
            scores = np.concatenate([scores, np.where(near >= 0, near_scores, -np.inf)], axis=1)
        order = np.lexsort((labels, -scores))[:, :k]
        return np.take_along_axis(labels, order, 1), np.take_along_axis(scores, order, 1).astype(np.float32)
