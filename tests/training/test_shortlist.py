"""Module 2's search: exact for small label sets, HNSW with exact head labels beyond."""

from __future__ import annotations

import numpy as np

from mufin.inputs import FloatArray
from mufin.scoring import l2_normalise
from mufin.training.config import ShortlistConfig
from mufin.training.label_vectors import LabelVectors
from mufin.training.shortlist import LabelSearch


def vectors(count: int, seed: int) -> FloatArray:
    """Unit vectors (count, 12)."""
    return l2_normalise(np.random.default_rng(seed).normal(size=(count, 12)).astype(np.float32))


def plain(queries: FloatArray, labels: FloatArray, k: int) -> list[set[int]]:
    """The best k by sorting everything."""
    return [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in queries @ labels.T]


def test_small_label_sets_are_searched_exactly() -> None:
    """The same labels and cosines as sorting; fewer labels than asked are padded."""
    labels, queries = vectors(50, 0), vectors(9, 1)
    found, scores = LabelSearch(LabelVectors.own(labels), np.ones(50, np.int64), ShortlistConfig(size=7)).search(
        queries, 7
    )
    assert [set(row.tolist()) for row in found] == plain(queries, labels, 7)
    assert np.allclose(scores, np.take_along_axis(queries @ labels.T, found, 1), atol=1e-6)
    few, few_scores = LabelSearch(LabelVectors.own(labels[:3]), np.ones(3, np.int64), ShortlistConfig(size=7)).search(
        queries, 7
    )
    assert (few[:, 3:] == -1).all() and np.isneginf(few_scores[:, 3:]).all()


def test_large_label_sets_are_near_exact_and_head_labels_are_never_missed() -> None:
    """HNSW finds nearly all; labels of high training frequency are found always (Q4)."""
    labels, queries = vectors(3000, 2), vectors(40, 3)
    frequency = np.where(np.arange(3000) % 100 == 0, 5000, 1)
    search = LabelSearch(
        LabelVectors.own(labels), frequency, ShortlistConfig(size=30, exact_labels=100, head_frequency=1000)
    )
    found, scores = search.search(queries, 30)
    best = plain(queries, labels, 30)
    overlap = [len(set(row.tolist()) & truth) / 30 for row, truth in zip(found, best, strict=True)]
    assert np.mean(overlap) > 0.95
    for row, truth in zip(found, best, strict=True):
        assert {label for label in truth if label % 100 == 0} <= set(row.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
