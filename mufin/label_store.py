"""The bundle's labels behind the predictor: its FAISS index and its label files.

The only code of the serving half that knows FAISS. Not aware of products, graphs or fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from mufin.bundle import INDEX_FILE, Bundle
from mufin.errors import BundleError
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.label_files import Label
from mufin.scoring import LabelRecords

# FAISS's own stubs know neither its numpy overloads nor its search parameters.
faiss: Any = _faiss

_EXACT_ROWS_AT_ONCE = 8192
# Below this share of allowed labels a graph search meets mostly forbidden ones: comparing with each is cheaper.
_SELECTIVE_SHARE = 0.1


class BundleLabelStore:
    """LabelStore over an open bundle. Thread-safe: nothing is written."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """``threads``: FAISS threads of one search. Raises BundleError when the index is not these labels'."""
        self._bundle, self._threads = bundle, threads
        self.size = bundle.manifest.sizes.labels
        self._index = _read_index(bundle.path(INDEX_FILE))
        self._exact = isinstance(self._index, faiss.IndexFlat)
        _check_index(self._index, bundle)

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[Int64Array, FloatArray]:
        """Nearest labels by inner product: (B, k) labels, best first, padded with -1, and scores, padded with -inf.

        ``allowed`` (L,) bool lets only these through. Ties go to the smaller label. Fewer than k come back only
        when fewer exist.
        """
        faiss.omp_set_num_threads(self._threads)  # a setting of the calling thread, so it is made here
        available = self.size if allowed is None else int(np.count_nonzero(allowed))
        wanted = min(k, available)
        labels = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        if wanted == 0 or len(queries) == 0:
            return labels, scores
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found, found_scores = self._search(queries, wanted, available, allowed)
        order = np.lexsort((found, -found_scores))[:, :wanted]
        labels[:, :wanted] = np.take_along_axis(found, order, 1)
        scores[:, :wanted] = np.take_along_axis(found_scores, order, 1)
        return labels, scores

    def _search(
        self, queries: FloatArray, wanted: int, available: int, allowed: BoolArray | None
    ) -> tuple[Int64Array, FloatArray]:
        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self._exact:
            scores, labels = self._index.search(queries, wanted, params=faiss.SearchParameters(sel=selector))
            return labels, scores
        if available < max(_SELECTIVE_SHARE * self.size, wanted):
            return self._compare(queries, self._every(allowed), wanted)
        effort = max(self._index.hnsw.efSearch, wanted)
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
        _, labels = self._index.search(queries, wanted, params=parameters)
        scores = self._rescore(queries, labels)
        labels, scores = self._with_head(queries, labels, scores, wanted, allowed)
        short = np.flatnonzero((labels < 0).any(axis=1))
        if len(short):  # the graph ended early; k labels exist, so k are returned
            labels[short], scores[short] = self._compare(queries[short], self._every(allowed), wanted)
        return labels, scores

    def _every(self, allowed: BoolArray | None) -> Int64Array:
        return np.arange(self.size) if allowed is None else np.flatnonzero(allowed)

    def _rescore(self, queries: FloatArray, labels: Int64Array) -> FloatArray:
        """Exact cosines of (B, k) found labels, -inf where none: the index knows quantised vectors only."""
        vectors = self.embeddings(np.maximum(labels, 0).ravel()).reshape(*labels.shape, -1)
        scores = np.einsum("bd,bkd->bk", queries, vectors)
        return np.asarray(np.where(labels >= 0, scores, -np.inf), dtype=np.float32)

    def _with_head(
        self, queries: FloatArray, labels: Int64Array, scores: FloatArray, wanted: int, allowed: BoolArray | None
    ) -> tuple[Int64Array, FloatArray]:
        """Replace the index's opinion of head labels by exact comparison (mufin.md Q4)."""
        head = self._bundle.head_labels
        head = head if allowed is None else head[allowed[head]]
        if len(head) == 0:
            return labels, scores
        head_labels, head_scores = self._compare(queries, head, min(wanted, len(head)))
        scores = np.where(np.isin(labels, head), -np.inf, scores)
        labels = np.where(np.isin(labels, head), -1, labels)
        labels, scores = np.concatenate([labels, head_labels], 1), np.concatenate([scores, head_scores], 1)
        order = np.lexsort((labels, -scores))[:, :wanted]
        return np.take_along_axis(labels, order, 1), np.take_along_axis(scores, order, 1)

    def _compare(self, queries: FloatArray, candidates: Int64Array, k: int) -> tuple[Int64Array, FloatArray]:
        """Exact search among ``candidates``, which are at least k."""
        best_labels = np.full((len(queries), 0), -1, dtype=np.int64)
        best_scores = np.zeros((len(queries), 0), dtype=np.float32)
        for start in range(0, len(candidates), _EXACT_ROWS_AT_ONCE):
            block = candidates[start : start + _EXACT_ROWS_AT_ONCE]
            scores = queries @ self.embeddings(block).T
            labels = np.concatenate([best_labels, np.broadcast_to(block, scores.shape)], axis=1)
            scores = np.concatenate([best_scores, scores], axis=1)
            order = np.lexsort((labels, -scores))[:, :k]
            best_labels, best_scores = np.take_along_axis(labels, order, 1), np.take_along_axis(scores, order, 1)
        return best_labels, best_scores

    def records(self, labels: Int64Array) -> LabelRecords:
        """What reranking needs of (N,) labels, in their order."""
        return self._bundle.records.gather(labels)

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) unit length, in the order of ``labels``."""
        return self._bundle.records.embeddings(labels)

    def bag_layout(self, index: int) -> tuple[int, bool]:
        """Images in a label's bag, and whether its title follows them."""
        return self._bundle.records.layout(index)

    def label(self, index: int) -> Label:
        """What an answer says of a label."""
        identifier, title, images, metadata = self._bundle.labels.fields(index)
        return Label(index, identifier, title, images, metadata, self._bundle.records.source(index))

    def index_of(self, label_id: str) -> int | None:
        """Position of a label, or None when there is no such id."""
        return self._bundle.labels.index_of(label_id)

    def excluded(self, product_id: str) -> Int64Array:
        """Labels never recommended to a product: its exclude pairs, and the label with the same id. Ascending."""
        pairs, own = self._bundle.exclusions.of(product_id), self.index_of(product_id)
        return pairs if own is None else np.union1d(pairs, np.asarray([own], dtype=np.int64))

    @property
    def filter_keys(self) -> tuple[str, ...]:
        """Metadata keys that ``allowed_by`` takes."""
        return self._bundle.filters.keys

    def allowed_by(self, filters: Mapping[str, Any]) -> BoolArray:
        """(L,) bool: labels that a filter on metadata lets through. Raises InputError for an unknown key."""
        return self._bundle.filters.allowed_by(filters)


def _read_index(path: Path) -> Any:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise BundleError(f"{path}: is no FAISS index ({str(error)[:200]}): run mufin-export again") from error


def _check_index(index: Any, bundle: Bundle) -> None:
    sizes, path = bundle.manifest.sizes, bundle.path(INDEX_FILE)
    kind = {"exact": faiss.IndexFlat, "hnsw-sq8": faiss.IndexHNSWSQ}.get(sizes.index)
    if kind is None or not isinstance(index, kind):
        raise BundleError(
            f"{path}: is {type(index).__name__}, the manifest says {sizes.index!r}: run mufin-export again"
        )
    if index.ntotal != sizes.labels or index.d != sizes.dimension:
        raise BundleError(
            f"{path}: index has {index.ntotal} labels of {index.d} numbers, bundle has {sizes.labels} of "
            f"{sizes.dimension}: run mufin-export again"
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise BundleError(f"{path}: metric is {index.metric_type}, needs inner product: run mufin-export again")
