"""Label embeddings to labels.faiss and head_labels.npy.

Knows neither the network nor the records. Exact search for small L; beyond it a graph whose effort is raised until
its recall against exact search, measured, reaches the target (performance.md, label search).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from mufin.bundle import HEAD_FILE, INDEX_FILE
from mufin.errors import ConfigError
from mufin.inputs import FloatArray, Int64Array

# FAISS's own stubs know neither its numpy overloads nor its search parameters.
faiss: Any = _faiss

_HNSW_NEIGHBOURS = 32
_HNSW_BUILD_EFFORT = 200
_EFFORTS = (1, 2, 3, 4, 6, 8)
_SAMPLED_QUERIES = 256
_SEED = 22


@dataclass(frozen=True)
class IndexSettings:
    """How the index is chosen."""

    exact_labels: int = 50_000
    """L up to which every label is compared with (4 ms at D = 384, one thread)."""
    target_recall: float = 0.95
    """Least share of the exact shortlist that an approximate index must find."""
    head_frequency: int = 1_000
    """Labels with at least so many training products are searched exactly (mufin.md Q4)."""

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise ConfigError(f"target_recall is {self.target_recall}, must lie in 0..1")
        if self.exact_labels < 0:
            raise ConfigError(f"exact_labels is {self.exact_labels}, needs 0 or more")


@dataclass(frozen=True)
class LabelIndex:
    """A finished index, and what was measured of it."""

    index: Any
    kind: str
    """exact, or hnsw-sq8"""
    head_labels: Int64Array
    """searched exactly beside it, ascending"""
    recall: float
    """Share of the exact shortlist found; 1 for exact"""
    curve: tuple[tuple[int, float], ...]
    """(effort, recall) tried, of an approximate index"""


def build_index(embeddings: FloatArray, frequency: Int64Array, shortlist: int, settings: IndexSettings) -> LabelIndex:
    """Choose and build the index of (L, D) unit-length embeddings. Deterministic: one thread, fixed seeds.

    ``frequency``: (L,) training products of each label.
    """
    count, dimension = embeddings.shape
    if count <= settings.exact_labels:
        index = faiss.IndexFlatIP(dimension)
        index.add(np.ascontiguousarray(embeddings, dtype=np.float32))
        return LabelIndex(index, "exact", np.zeros(0, dtype=np.int64), 1.0, ())
    head = np.flatnonzero(frequency >= settings.head_frequency).astype(np.int64)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # several threads insert in an order that differs from run to run
    try:
        index = faiss.IndexHNSWSQ(
            dimension, faiss.ScalarQuantizer.QT_8bit, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT
        )
        index.hnsw.efConstruction = _HNSW_BUILD_EFFORT
        index.train(embeddings)
        index.add(embeddings)
    finally:
        faiss.omp_set_num_threads(threads)
    curve = _tune(index, embeddings, min(shortlist, count), settings.target_recall)
    return LabelIndex(index, "hnsw-sq8", head, curve[-1][1], curve)


def _tune(index: Any, embeddings: FloatArray, shortlist: int, target: float) -> tuple[tuple[int, float], ...]:
    """Raise the search effort until the target is met; the last of the curve is kept in the index.

    Queries are label embeddings moved a little: products lie near the labels that they are relevant to.
    """
    random = np.random.default_rng(_SEED)
    rows = np.sort(random.choice(len(embeddings), min(_SAMPLED_QUERIES, len(embeddings)), replace=False))
    noise = random.standard_normal((len(rows), embeddings.shape[1])).astype(np.float32)
    queries = embeddings[rows] + 0.5 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    exact = faiss.IndexFlatIP(embeddings.shape[1])
    exact.add(embeddings)
    # A found label is right when it is no worse than the last of the exact shortlist: equal labels may swap.
    worst = exact.search(queries, shortlist)[0][:, -1] - 1e-6
    curve: list[tuple[int, float]] = []
    for factor in _EFFORTS:
        index.hnsw.efSearch = shortlist * factor
        found = index.search(queries, shortlist)[1]
        curve.append((shortlist * factor, _recall(queries, embeddings, found, worst)))
        if curve[-1][1] >= target:
            return tuple(curve)
    raise ConfigError(
        f"the approximate index finds {curve[-1][1]:.3f} of the exact shortlist at effort {curve[-1][0]}, the target is "
        f"{target}: lower target_recall, or raise exact_labels to {len(embeddings)}"
    )


def _recall(queries: FloatArray, embeddings: FloatArray, found: Int64Array, worst: FloatArray) -> float:
    right = 0
    for query, labels, least in zip(queries, found, worst, strict=True):
        right += int((embeddings[labels[labels >= 0]] @ query >= least).sum())
    return right / found.size


def write_index(folder: Path, labels: LabelIndex) -> None:
    """Write labels.faiss and head_labels.npy."""
    faiss.write_index(labels.index, str(folder / INDEX_FILE))
    np.save(folder / HEAD_FILE, labels.head_labels, allow_pickle=False)
