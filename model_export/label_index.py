"""Label embeddings to labels.faiss, label_vectors.npy and head_labels.npy.

Knows neither the network nor the records. Exact search for small L; beyond it the cheapest kind of index whose recall
against exact search, measured, reaches the target (docs/performance.md, Label search).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from model_export.index_kinds import APPROXIMATE_KINDS, ApproximateKind, list_count
from model_export.index_tuning import ExactShortlists, Point, Tuned, exact_shortlists, moved_labels, tune
from mufin.bundle import HEAD_FILE, INDEX_FILE, VECTORS_FILE
from mufin.errors import ConfigError
from mufin.inputs import FloatArray, Int64Array
from mufin.label_search import EXACT
from mufin.label_vectors import VECTOR_UNIT

# FAISS's own stubs know neither its numpy overloads nor its search parameters.
faiss: Any = _faiss

_ROWS_AT_ONCE = 65_536
_SEED = 23


@dataclass(frozen=True)
class IndexSettings:
    """How the index is chosen."""

    exact_labels: int = 50_000
    """L up to which every label is compared with (4 ms at D = 384, one thread)."""
    target_recall: float = 0.95
    """Least share of the exact shortlist that an approximate index must find."""
    head_frequency: int = 1_000
    """Labels with at least so many training products are searched exactly (docs/network.md)."""
    kinds: tuple[str, ...] = tuple(APPROXIMATE_KINDS)
    """Approximate kinds to choose from; one: that one."""
    max_bytes_a_label: int = 2_048
    """Largest labels.faiss, in bytes a label; D = 192: hnsw-sq8 takes 470, ivf-sq8 200, ivf-pq 66, ivf-rabitq 47."""
    max_build_seconds: float = 3_600.0
    """Longest building of the index, as estimated for one thread of the machine of docs/performance.md."""
    sample_labels: int = 100_000
    """Labels that kinds are compared on; the chosen one is tuned on all."""
    threads: int = 0
    """Threads of building and of measuring recall; 0: FAISS's own number. The index does not depend on it."""

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise ConfigError(f"target_recall is {self.target_recall}, must lie in 0..1")
        for name, least in (("exact_labels", 0), ("threads", 0), ("sample_labels", 1), ("max_bytes_a_label", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, needs {least} or more")
        if not self.max_build_seconds > 0:
            raise ConfigError(f"max_build_seconds is {self.max_build_seconds}, must be above 0")
        unknown = sorted(set(self.kinds) - set(APPROXIMATE_KINDS))
        if unknown or not self.kinds:
            raise ConfigError(f"kinds are {list(self.kinds)}, must be some of {', '.join(APPROXIMATE_KINDS)}")


@dataclass(frozen=True)
class LabelIndex:
    """A finished index, and what was measured of it."""

    index: Any
    kind: str
    """exact, or a name of APPROXIMATE_KINDS"""
    head_labels: Int64Array
    """searched exactly beside it, ascending"""
    recall: float
    """Share of the exact shortlist found; 1 for exact"""
    curve: tuple[Mapping[str, Any], ...]
    """What was tried on all labels with the chosen kind: parameters, recall, ms a query"""
    build_seconds: float
    vectors: FloatArray
    """(L, D) that were indexed"""
    candidates: float = 1.0
    """Labels the index is asked for, per label wanted"""
    compared: tuple[Mapping[str, Any], ...] = ()
    """Kinds that were compared on a sample: the setting that reached the target, its recall, ms and estimate for L"""


def build_index(
    embeddings: FloatArray, frequency: Int64Array, shortlist: int, settings: IndexSettings,
    queries: FloatArray | None = None,
) -> LabelIndex:  # fmt: skip
    """Choose and build the index of (L, D) unit-length embeddings, which may be a map. Deterministic.

    ``frequency``: (L,) training products of each label. ``queries``: (Q, D) that the recall is measured with; None:
    label embeddings moved a little. Raises ConfigError when no kind is within the limits or reaches the target.
    """
    count, dimension = embeddings.shape
    if count <= settings.exact_labels:
        index = faiss.IndexFlatIP(dimension)
        index.add(np.ascontiguousarray(embeddings, dtype=np.float32))
        return LabelIndex(index, EXACT, np.zeros(0, dtype=np.int64), 1.0, (), 0.0, embeddings)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(settings.threads or threads)
    try:
        return _Choice(embeddings, frequency, shortlist, settings, queries).made()
    finally:
        faiss.omp_set_num_threads(threads)


class _Choice:
    """The cheapest kind that reaches the target: compared on a sample, built and tuned on all."""

    def __init__(
        self, embeddings: FloatArray, frequency: Int64Array, shortlist: int, settings: IndexSettings,
        queries: FloatArray | None,
    ) -> None:  # fmt: skip
        self._embeddings, self._settings = embeddings, settings
        self._count, self._dimension = embeddings.shape
        self._shortlist = min(shortlist, self._count)
        self._queries = moved_labels(embeddings) if queries is None else queries
        self._head = np.flatnonzero(frequency >= settings.head_frequency).astype(np.int64)

    def made(self) -> LabelIndex:
        """Kinds in the order of their estimated cost, until one reaches the target."""
        kinds, compared = self._in_order(self._permitted())
        exact = exact_shortlists(self._embeddings, self._queries, self._shortlist)
        failed = []
        for kind in kinds:
            index, tuned, seconds = self._tuned(kind, self._embeddings, self._head, exact)
            if tuned.best is not None:
                curve = tuple(point.to_json(kind) for point in tuned.points)
                return LabelIndex(
                    index, kind.name, self._head, tuned.best.recall, curve, seconds, self._embeddings,
                    tuned.best.candidates, compared,
                )  # fmt: skip
            failed.append((kind, tuned.highest))
        kind, point = max(failed, key=lambda own: own[1].recall)
        raise ConfigError(
            f"no approximate index finds enough: {kind.name} finds {point.recall:.3f} of the exact shortlist at "
            f"{point.to_json(kind)['parameters']}, the target is {self._settings.target_recall}: lower target_recall, "
            f"or raise exact_labels to {self._count}"
        )

    def _permitted(self) -> list[ApproximateKind]:
        """Kinds within the limits."""
        settings, refused = self._settings, []
        permitted = []
        for name in settings.kinds:
            kind = APPROXIMATE_KINDS[name]
            size = kind.bytes_a_label(self._count, self._dimension)
            seconds = kind.build_seconds(self._count, self._dimension)
            if not kind.fits(self._dimension):
                refused.append(f"{name} needs a dimension divisible by {kind.even}, it is {self._dimension}")
            elif size > settings.max_bytes_a_label:
                refused.append(
                    f"{name} takes {size:.0f} bytes a label, max_bytes_a_label is {settings.max_bytes_a_label}"
                )
            elif seconds > settings.max_build_seconds:
                refused.append(
                    f"{name} takes some {seconds:.0f} s, max_build_seconds is {settings.max_build_seconds:g}"
                )
            else:
                permitted.append(kind)
        if not permitted:
            raise ConfigError(f"no kind of index may be built of {self._count} labels: {'; '.join(refused)}")
        return permitted

    def _in_order(
        self, kinds: Sequence[ApproximateKind]
    ) -> tuple[Sequence[ApproximateKind], tuple[Mapping[str, Any], ...]]:
        """By what a query costs at the target on a sample, as estimated for all; those that miss it last."""
        if len(kinds) == 1:
            return kinds, ()
        sample = self._sample()
        exact = exact_shortlists(sample, self._queries, min(self._shortlist, len(sample)))
        nobody = np.zeros(0, dtype=np.int64)
        tuned = {kind.name: self._tuned(kind, sample, nobody, exact)[1] for kind in kinds}
        costs = {kind.name: self._cost(kind, tuned[kind.name], len(sample)) for kind in kinds}
        compared = tuple(_comparison(kind, tuned[kind.name], costs[kind.name]) for kind in kinds)
        return sorted(kinds, key=lambda kind: costs[kind.name]), compared

    def _sample(self) -> FloatArray:
        wanted = self._settings.sample_labels
        if self._count <= wanted:
            return self._embeddings
        rows = np.sort(np.random.default_rng(_SEED).choice(self._count, wanted, replace=False))
        return np.ascontiguousarray(self._embeddings[rows], dtype=np.float32)

    def _cost(self, kind: ApproximateKind, tuned: Tuned, sampled: int) -> float:
        """Microseconds a query among all labels: as many lists are visited, but fuller ones; a graph grows by layers."""
        if tuned.best is None:
            return float("inf")
        work = tuned.best.work
        if kind.lists:
            lists = list_count(self._count)
            growth = (self._count / lists) / (sampled / list_count(sampled))
            work = replace(work, lists=lists, codes=work.codes * growth)
        else:
            work = replace(work, codes=work.codes * log2(self._count) / log2(sampled))
        return kind.cost.microseconds(work, self._dimension)

    def _tuned(
        self, kind: ApproximateKind, embeddings: FloatArray, head: Int64Array, exact: ExactShortlists
    ) -> tuple[Any, Tuned, float]:
        began = time.monotonic()
        index = kind.build(embeddings, self._settings.threads)
        seconds = time.monotonic() - began
        return index, tune(index, kind, embeddings, head, exact, self._settings.target_recall), seconds


def _comparison(kind: ApproximateKind, tuned: Tuned, cost: float) -> Mapping[str, Any]:
    point: Point = tuned.best or tuned.highest
    estimate = {"estimated_ms": round(cost / 1000, 4)} if tuned.best is not None else {}
    return {**point.to_json(kind), **estimate}


def write_index(folder: Path, labels: LabelIndex) -> None:
    """Write labels.faiss and head_labels.npy, and label_vectors.npy beside an approximate index."""
    faiss.write_index(labels.index, str(folder / INDEX_FILE))
    np.save(folder / HEAD_FILE, labels.head_labels, allow_pickle=False)
    if labels.kind != EXACT:
        write_vectors(folder / VECTORS_FILE, labels.vectors)


def write_vectors(path: Path, vectors: FloatArray, before: npt.NDArray[np.int16] | None = None) -> None:
    """(L, D) vectors as int16, behind those that are stored already. In blocks: memory does not grow with L."""
    first = 0 if before is None else len(before)
    shape = (first + len(vectors), vectors.shape[1])
    with path.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "<i2", "fortran_order": False, "shape": shape})
        for start in range(0, first, _ROWS_AT_ONCE):
            assert before is not None
            handle.write(before[start : start + _ROWS_AT_ONCE].tobytes())
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            block = np.clip(vectors[start : start + _ROWS_AT_ONCE], -1, 1)
            handle.write(np.rint(block * VECTOR_UNIT).astype("<i2").tobytes())
