"""The bundle's labels behind the predictor: search, records and texts joined.

Not aware of products, graphs or fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mufin.bundle import INDEX_FILE, VECTORS_FILE, Bundle
from mufin.compilation import Kernel
from mufin.evidence_file import EVIDENCE_FILE
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.label_files import LABELS_FILE, LOOKUP_FILE, OFFSETS_FILE, Label
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE
from mufin.label_records_file import RECORDS_FILE
from mufin.label_search import LabelSearch
from mufin.reranking import Reranker, make_reranker
from mufin.scoring import CrossAttention, LabelRecords

_MAPPED = (VECTORS_FILE, LABELS_FILE, OFFSETS_FILE, LOOKUP_FILE)
_READ = (FILTERS_FILE, EXCLUDED_FILE, EVIDENCE_FILE)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """How a part of the bundle is held."""

    resident_bytes: int
    """In the process's own memory"""
    mapped_bytes: int
    """In a mapped file: the page cache holds what was touched and gives it up when memory is short"""


class BundleLabelStore:
    """LabelStore over an open bundle. Thread-safe: nothing is written."""

    def __init__(self, bundle: Bundle, threads: int = 1, kernel: Kernel = "numba", resident: bool = False) -> None:
        """``threads``: FAISS threads of one search. Raises BundleError when the index is not these labels'.

        ``kernel``: what orders and reranks. ``resident``: label records copied to memory instead of left to the page cache.
        """
        self._bundle, self._kernel = bundle, kernel
        if resident:
            bundle.records.make_resident()
        self.size = bundle.manifest.sizes.labels
        self._search = LabelSearch.open(bundle, threads, bundle.removed, kernel)

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[Int64Array, FloatArray]:
        """Nearest labels, (B, k), and their cosines: LabelSearch.search."""
        return self._search.search(queries, k, allowed)

    def records(self, labels: Int64Array) -> LabelRecords:
        """What reranking needs of (N,) labels, in their order."""
        return self._bundle.records.gather(labels)

    def reranker(self, attention: CrossAttention | None) -> Reranker:
        """Compiled over the record file in place, or numpy over ``records`` where that was chosen or heads are several."""
        return make_reranker(self._bundle.records, attention, self._kernel, self.records)

    def untrained(self, labels: Int64Array) -> BoolArray | None:
        """(N,) bool of (N,) labels: which were added without training; None: the bundle has no such label."""
        if self._bundle.manifest.sizes.untrained == 0:
            return None
        return self._bundle.records.untrained(labels)

    def removed(self, labels: Int64Array) -> BoolArray:
        """(N,) bool of (N,) labels: which have a tombstone."""
        return np.asarray(np.isin(labels, self._bundle.removed), dtype=np.bool_)

    def memory(self) -> dict[str, MemoryUse]:
        """Bytes of each large part of the label side, by its file's name."""
        bundle, records = self._bundle, self._bundle.records
        files = bundle.manifest.files
        index = (
            MemoryUse(files[INDEX_FILE].size_bytes, 0)
            if self._search.copied
            else MemoryUse(0, files[INDEX_FILE].size_bytes)
        )
        parts = {RECORDS_FILE: MemoryUse(records.resident_bytes, records.mapped_bytes), INDEX_FILE: index}
        parts |= {name: MemoryUse(0, files[name].size_bytes) for name in _MAPPED if name in files}
        # Read whole: filters, exclude pairs, and what a learned combination knows.
        return parts | {name: MemoryUse(files[name].size_bytes, 0) for name in _READ if name in files}

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) unit length, in the order of ``labels``."""
        return self._search.embeddings(labels)

    def bag_layout(self, index: int) -> tuple[int, bool]:
        """Images in a label's bag, and whether its title follows them."""
        return self._bundle.records.layout(index)

    def describe(self, labels: Int64Array) -> list[Label]:
        """What an answer says of (N,) labels, in their order."""
        found = zip(
            labels.tolist(), self._bundle.labels.read(labels), self._bundle.records.sources(labels), strict=True
        )
        return [Label(index, *fields, source) for index, fields, source in found]

    def index_of(self, label_id: str) -> int | None:
        """Position of a label, or None when there is no such id, or its label was removed."""
        return self._bundle.labels.index_of(label_id, self._bundle.removed)

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
