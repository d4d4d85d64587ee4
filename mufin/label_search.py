"""The nearest labels of a product's embedding: a bundle's FAISS index, opened, checked and searched.

The only code of the serving half that knows FAISS. Not aware of titles, records or fusion. Every score that is
returned is computed from the stored vectors, in one way for any index and any batch, so that equal vectors have equal
scores and a product's answer does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from mufin.bundle import INDEX_FILE, VECTORS_FILE, Bundle
from mufin.compilation import Kernel
from mufin.errors import BundleError
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.label_vectors import LabelVectors

# FAISS's own stubs know neither its numpy overloads nor its search parameters.
faiss: Any = _faiss

EXACT = "exact"
_AGAIN = "run mufin-export again"
_ROWS_AT_ONCE = 8192
_SCORES_AT_ONCE = 1 << 22
# Sums in another order differ by some 1e-7 of a unit query's scores: what is closer may be a tie.
_ROUNDING = 1e-6
# More than asked for of an exact search, so that ties at the cut are seen.
_BEYOND_CUT = 16
# Below these, comparing with each allowed label is cheaper than an index that meets mostly forbidden ones: lists with a
# selector answer in a millisecond whatever the share, a graph must keep all that it meets.
_FEW_LABELS = 1_000
_SELECTIVE_SHARE = 0.1
_WIDENING = 8


@dataclass(frozen=True, slots=True)
class IndexKind:
    """How an index of one kind is recognised and opened."""

    type: Any
    """FAISS's class"""
    flag: int
    """How it is read: mapped wherever FAISS can"""
    lists: bool
    """Labels lie in lists of which some are visited; else in a graph"""


KINDS: dict[str, IndexKind] = {
    EXACT: IndexKind(faiss.IndexFlat, faiss.IO_FLAG_MMAP_IFC, False),
    "hnsw-sq8": IndexKind(faiss.IndexHNSWSQ, faiss.IO_FLAG_MMAP_IFC, False),
    "ivf-sq8": IndexKind(faiss.IndexIVFScalarQuantizer, faiss.IO_FLAG_MMAP, True),
    # FastScan repacks its codes: they are copied into memory in any case.
    "ivf-pq": IndexKind(faiss.IndexIVFPQFastScan, 0, True),
    "ivf-rabitq": IndexKind(faiss.IndexIVFRaBitQFastScan, 0, True),
}
"""Kinds of labels.faiss by their names in the manifest; all but the first are approximate."""


class LabelSearch:
    """Search over the embeddings of L labels. Thread-safe: nothing is written."""

    def __init__(
        self, index: Any, kind: str, vectors: npt.NDArray[Any], *, head: Int64Array | None = None,
        candidates: float = 1.0, shortlist: int = 0, removed: Int64Array | BoolArray | None = None, threads: int = 1,
        kernel: Kernel = "numpy",
    ) -> None:  # fmt: skip
        """``vectors``: those of ``LabelVectors``; rows are read when they are needed. ``kernel``: what orders by them.

        ``head``: labels compared exactly beside an approximate index, ascending. ``candidates``: labels that the index
        is asked for, per label wanted. ``shortlist``: labels wanted that it was tuned with; fewer are chosen from as
        many. ``removed``: (L,) bool, or labels, that are never returned. ``threads``: of one search. How many lists a
        search visits is read from the index here, once.
        """
        self.kind = kind
        self.size = len(vectors)
        self._index, self._threads, self._candidates = index, threads, candidates
        self._vectors = LabelVectors(vectors, kernel)
        self._shortlist = shortlist
        self._lists = KINDS[kind].lists
        self.copied = KINDS[kind].flag == 0
        """Whether the index lies in the process's own memory, instead of a mapped file"""
        self._kept = _kept(removed, self.size)
        self._every = _Allowed(self._kept, self.size)
        # Made once: a search only reads them, and to make them takes twenty calls.
        self._usual = self._visits(self._every) if self._lists and self._every.count else None
        head = np.zeros(0, dtype=np.int64) if head is None else head
        self._head = head if self._kept is None else head[self._kept[head]]
        self._head_vectors = self._vectors.embeddings(self._head)

    @classmethod
    def open(
        cls, bundle: Bundle, threads: int = 1, removed: Int64Array | BoolArray | None = None, kernel: Kernel = "numpy"
    ) -> LabelSearch:
        """A bundle's index, mapped where FAISS can. Raises BundleError when it is not these labels'."""
        sizes, path = bundle.manifest.sizes, bundle.path(INDEX_FILE)
        index = _read_index(path, sizes.index)
        _check_index(index, bundle)
        if sizes.index == EXACT:
            vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        else:
            vectors = _read_vectors(bundle)
        return cls(
            index, sizes.index, vectors, head=bundle.head_labels, candidates=sizes.index_candidates,
            shortlist=bundle.manifest.score_spec.shortlist_size, removed=removed, threads=threads,
            kernel=kernel,
        )  # fmt: skip

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) of unit length, in the order of ``labels``, as they are compared."""
        return self._vectors.embeddings(labels)

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[Int64Array, FloatArray]:
        """Nearest labels by inner product: (B, k) labels, best first, padded with -1, and scores, padded with -inf.

        ``allowed`` (L,) bool lets only these through. Equal scores come by ascending label. With an exact index the
        smaller of equal labels are also the ones returned at the cut; an approximate one may know others. Fewer than
        k come back only when fewer exist.
        """
        permitted = self._every if allowed is None else _Allowed(_both(allowed, self._kept), self.size)
        wanted = min(k, permitted.count)
        if wanted == 0 or len(queries) == 0:
            return _padded((len(queries), k))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        # A setting of the calling thread, so it is made here; torch reads the same one, so it is put back.
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self._threads)
        try:
            found = self._found(queries, wanted, permitted)
        finally:
            faiss.omp_set_num_threads(before)
        if wanted == k:
            return found
        labels, scores = _padded((len(queries), k))
        labels[:, :wanted], scores[:, :wanted] = found
        return labels, scores

    def _found(self, queries: FloatArray, wanted: int, permitted: _Allowed) -> tuple[Int64Array, FloatArray]:
        if self.kind == EXACT:
            return self._search_exact(queries, wanted, permitted)
        if permitted.count <= max(wanted, self._fewest()):
            return self._compare(queries, permitted.labels(), wanted)
        return self._search_near(queries, wanted, permitted)

    def _fewest(self) -> float:
        """Allowed labels below which each is compared with. A graph search strays where few nodes are allowed."""
        few = min(_FEW_LABELS, _SELECTIVE_SHARE * self.size)
        return few if self._lists else max(few, _SELECTIVE_SHARE * self.size)

    def _search_exact(self, queries: FloatArray, wanted: int, allowed: _Allowed) -> tuple[Int64Array, FloatArray]:
        number = min(allowed.count, wanted + _BEYOND_CUT)
        parameters = faiss.SearchParameters(sel=allowed.selector())
        found = self._index.search(queries, number, params=parameters)[1]
        labels, scores = self._vectors.ordered(queries, found, number)
        if number < allowed.count:  # labels as good as the last wanted may lie beyond those seen
            tied = scores[:, wanted - 1] - scores[:, -1] <= _ROUNDING * np.linalg.norm(queries, axis=1)
            if tied.any():
                labels[tied, :wanted], scores[tied, :wanted] = self._compare(queries[tied], allowed.labels(), wanted)
        return labels[:, :wanted], scores[:, :wanted]

    def _search_near(self, queries: FloatArray, wanted: int, allowed: _Allowed) -> tuple[Int64Array, FloatArray]:
        number = min(allowed.count, int(np.ceil(max(wanted, self._shortlist) * self._candidates)))
        found = self._index.search(queries, number, params=self._parameters(number, allowed))[1]
        labels, scores = self._with_head(queries, found, wanted, allowed)
        effort = 1
        while len(short := np.flatnonzero(labels[:, -1] < 0)):  # the index ended early, and k labels exist
            if not self._lists or effort * self._index.nprobe >= self._index.nlist:
                labels[short], scores[short] = self._compare(queries[short], allowed.labels(), wanted)
                break
            effort *= _WIDENING
            found = self._index.search(queries[short], number, params=self._parameters(number, allowed, effort))[1]
            labels[short], scores[short] = self._with_head(queries[short], found, wanted, allowed)
        return labels, scores

    def _parameters(self, number: int, allowed: _Allowed, effort: int = 1) -> Any:
        """What the index was tuned to, wider where fewer labels are allowed: theirs lie further apart."""
        if not self._lists:
            # A graph search keeps forbidden nodes, too.
            nodes = max(self._index.hnsw.efSearch, number) * self.size / allowed.count
            return faiss.SearchParametersHNSW(sel=allowed.selector(), efSearch=int(np.ceil(nodes)))
        if effort == 1 and allowed is self._every:
            return self._usual
        return self._visits(allowed, effort)

    def _visits(self, allowed: _Allowed, effort: int = 1) -> Any:
        lists = int(np.ceil(self._index.nprobe * effort * self.size / allowed.count))
        return faiss.SearchParametersIVF(sel=allowed.selector(), nprobe=min(self._index.nlist, lists))

    def _with_head(
        self, queries: FloatArray, found: Int64Array, wanted: int, allowed: _Allowed
    ) -> tuple[Int64Array, FloatArray]:
        """What the index found, scored and in order, its opinion of head labels replaced by comparison (docs/network.md)."""
        mask = None if allowed.mask is None else allowed.mask[self._head]
        head = self._head if mask is None else self._head[mask]
        if len(head) == 0:
            return self._vectors.ordered(queries, found, wanted)
        vectors = self._head_vectors if mask is None else self._head_vectors[mask]
        own, _ = self._compare(queries, head, min(wanted, len(head)), vectors)
        place = np.minimum(np.searchsorted(head, found), len(head) - 1)
        found = np.where(head[place] == found, -1, found)
        return self._vectors.ordered(queries, np.concatenate([found, own], axis=1), wanted)

    def _compare(
        self, queries: FloatArray, candidates: Int64Array, k: int, vectors: FloatArray | None = None
    ) -> tuple[Int64Array, FloatArray]:
        """Exact search among ``candidates``, which are at least k; ``vectors``: theirs, where they are at hand."""
        labels = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        step = max(1, _SCORES_AT_ONCE // len(candidates))
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            near = np.concatenate([block @ rows.T for rows in self._blocks(candidates, vectors)], axis=1)
            cut = np.partition(near, near.shape[1] - k, axis=1)[:, -k] - _ROUNDING * np.linalg.norm(block, axis=1)
            for row, query in enumerate(block):
                own = candidates[near[row] >= cut[row]]
                (labels[start + row],), (scores[start + row],) = self._vectors.ordered(query[None], own[None], k)
        return labels, scores

    def _blocks(self, candidates: Int64Array, vectors: FloatArray | None) -> Iterator[FloatArray]:
        if vectors is not None:
            yield vectors
            return
        for start in range(0, len(candidates), _ROWS_AT_ONCE):
            yield self._vectors.embeddings(candidates[start : start + _ROWS_AT_ONCE])


class _Allowed:
    """Labels that may be returned."""

    def __init__(self, mask: BoolArray | None, size: int) -> None:
        self.mask = mask
        """(L,); None: all"""
        self.count = size if mask is None else int(np.count_nonzero(mask))
        self._size = size
        self._selector: Any = None

    def labels(self) -> Int64Array:
        """Ascending."""
        return np.arange(self._size) if self.mask is None else np.flatnonzero(self.mask)

    def selector(self) -> Any:
        """The same for FAISS; None: all."""
        if self._selector is None and self.mask is not None:
            self._selector = faiss.IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))
        return self._selector


def _padded(shape: tuple[int, int]) -> tuple[Int64Array, FloatArray]:
    """Nothing found: -1 and -inf."""
    return np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)


def _kept(removed: Int64Array | BoolArray | None, size: int) -> BoolArray | None:
    """(L,) bool of labels that are not removed; None: all are kept."""
    if removed is None:
        return None
    kept = np.ones(size, dtype=np.bool_)
    kept[removed] = False
    return None if kept.all() else kept


def _both(allowed: BoolArray, kept: BoolArray | None) -> BoolArray:
    return allowed if kept is None else allowed & kept


def _read_index(path: Path, kind: str) -> Any:
    known = KINDS.get(kind)
    if known is None:
        raise BundleError(f"{path}: the manifest says {kind!r}, this mufin knows {', '.join(KINDS)}: {_AGAIN}")
    try:
        index = read_mapped(path, known.flag)
    except RuntimeError as error:
        raise BundleError(f"{path}: is no FAISS index ({str(error)[:200]}): {_AGAIN}") from error
    if not isinstance(index, known.type):
        raise BundleError(f"{path}: is {type(index).__name__}, the manifest says {kind!r}: {_AGAIN}")
    return index


def read_mapped(path: Path, flag: int) -> Any:
    """An index, mapped as far as FAISS can; ``flag``: that of its kind."""
    index = faiss.read_index(str(path), flag)
    if flag == faiss.IO_FLAG_MMAP and isinstance(index, faiss.IndexIVF):
        # FAISS would start 32 threads in every search to fetch lists ahead: 3.8 ms instead of 0.13 at 10,000 labels.
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    return index


def _check_index(index: Any, bundle: Bundle) -> None:
    sizes, path = bundle.manifest.sizes, bundle.path(INDEX_FILE)
    if index.ntotal != sizes.labels or index.d != sizes.dimension:
        raise BundleError(
            f"{path}: index has {index.ntotal} labels of {index.d} numbers, bundle has {sizes.labels} of "
            f"{sizes.dimension}: {_AGAIN}"
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise BundleError(f"{path}: metric is {index.metric_type}, needs inner product: {_AGAIN}")


def _read_vectors(bundle: Bundle) -> npt.NDArray[np.int16]:
    sizes, path = bundle.manifest.sizes, bundle.path(VECTORS_FILE)
    vectors: npt.NDArray[np.int16] = np.load(path, mmap_mode="r", allow_pickle=False)
    expected = (sizes.labels, sizes.dimension)
    if vectors.shape != expected or vectors.dtype != np.int16:
        raise BundleError(f"{path}: holds {vectors.shape} {vectors.dtype}, needs {expected} int16: {_AGAIN}")
    return np.asarray(vectors)  # the map as a plain array: memmap's own indexing costs 10 microseconds a call
