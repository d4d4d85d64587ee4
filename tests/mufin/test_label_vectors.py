"""Labels put in order by their vectors: compiled and by numpy, alike."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mufin.compilation import Kernel
from mufin.errors import InputError
from mufin.inputs import FloatArray
from mufin.label_vectors import VECTOR_UNIT, LabelVectors

LABELS, DIMENSION = 500, 24
KINDS = ("float32", "int16")
BOTH: tuple[Kernel, ...] = ("numpy", "numba")


def unit(random: np.random.Generator, count: int) -> FloatArray:
    """(count, D)"""
    vectors = random.standard_normal((count, DIMENSION)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def stored(kind: str) -> Any:
    """With labels 7, 8 and 300 alike, 20 opposite to them, and 30 of nothing."""
    vectors = unit(np.random.default_rng(0), LABELS)
    vectors[[8, 300]], vectors[20], vectors[30] = vectors[7], -vectors[7], 0
    return vectors if kind == "float32" else np.rint(vectors * VECTOR_UNIT).astype(np.int16)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_numpy_order_alike(kind: str) -> None:
    """Ties, scores of 0 and below, places without a label, and all numbers wanted."""
    random = np.random.default_rng(1)
    plain, compiled = (LabelVectors(stored(kind), kernel) for kernel in BOTH)
    queries = np.concatenate([unit(random, 5), plain.embeddings(np.array([7]))])
    found = np.stack([random.permutation(LABELS)[:60] for _ in queries]).astype(np.int64)
    found[:, :5] = [300, 20, 8, 7, 30]
    found[:, 9], found[2, 20:40] = -1, -1
    best = np.zeros(0, np.int64)
    for wanted in (80, 60, 30, 3):
        (labels, scores), (own, own_scores) = (each.ordered(queries, found, wanted) for each in (plain, compiled))
        assert own.shape == (6, min(wanted, 60))
        assert np.array_equal(labels, own)
        assert np.array_equal(np.isneginf(scores), np.isneginf(own_scores))
        assert np.array_equal(own < 0, np.isneginf(own_scores))
        assert np.abs(scores[labels >= 0] - own_scores[labels >= 0]).max() < 1e-6
        best = own[5, :3]
    assert best.tolist() == [7, 8, 300]


@pytest.mark.parametrize(("kind", "kernel"), list(itertools.product(KINDS, BOTH)))
def test_scores_are_inner_products_that_fall_and_do_not_depend_on_company(kind: str, kernel: Kernel) -> None:
    """To the bit, wherever a label stands."""
    random = np.random.default_rng(2)
    vectors, queries = LabelVectors(stored(kind), kernel), unit(random, 40)
    found = np.stack([random.permutation(LABELS)[:300] for _ in queries]).astype(np.int64)
    labels, scores = vectors.ordered(queries, found, 300)
    assert np.all(np.diff(scores, axis=1) <= 0)
    for row in range(0, len(queries), 7):
        assert np.allclose(scores[row], vectors.embeddings(labels[row]) @ queries[row], atol=1e-6)
        alone = vectors.ordered(queries[row : row + 1], found[row : row + 1, ::-1], 300)
        assert np.array_equal(alone[0][0], labels[row])
        assert np.array_equal(alone[1][0], scores[row])
        short = vectors.ordered(queries[row : row + 1], labels[row : row + 1, :1], 1)
        assert short[1][0, 0] == scores[row, 0]


@pytest.mark.parametrize("kernel", BOTH)
def test_numbers_that_are_none_come_last(kernel: Kernel) -> None:
    """Of a model that is broken; no label is lost or doubled."""
    vectors = stored("float32")
    vectors[3] = np.nan
    labels, scores = LabelVectors(vectors, kernel).ordered(
        unit(np.random.default_rng(3), 1), np.array([[3, -1, 1, 2]], dtype=np.int64), 4
    )
    assert sorted(labels[0, :2].tolist()) == [1, 2]
    assert labels[0, 2:].tolist() == [3, -1]
    assert np.isnan(scores[0, 2])
    assert np.isneginf(scores[0, 3])


@pytest.mark.parametrize("kernel", BOTH)
def test_nothing_found_is_no_label(kernel: Kernel) -> None:
    """Neither of no candidates nor of no queries."""
    vectors = LabelVectors(stored("int16"), kernel)
    for shape in ((2, 0), (0, 3), (0, 0)):
        labels, scores = vectors.ordered(np.zeros((shape[0], DIMENSION), np.float32), np.zeros(shape, np.int64), 3)
        assert labels.shape == scores.shape == shape


def test_nothing_is_read_outside_the_vectors() -> None:
    """Compiled code reads wherever it is told to."""
    compiled, query = LabelVectors(stored("int16"), "numba"), unit(np.random.default_rng(4), 1)
    for beyond in ([[1, LABELS]], [[LABELS, 1]], [[*range(10), LABELS + 10**9]]):
        with pytest.raises(InputError, match=r"there are 500"):
            compiled.ordered(query, np.array(beyond, dtype=np.int64), 1)
    for kernel in BOTH:
        with pytest.raises(InputError, match=r"have dimension 24"):
            LabelVectors(stored("int16"), kernel).ordered(query[:, 1:], np.array([[1]], dtype=np.int64), 1)
        with pytest.raises(InputError, match=r"1 queries have labels of shape \(50, 1\)"):
            LabelVectors(stored("int16"), kernel).ordered(query, np.ones((50, 1), dtype=np.int64), 1)


def test_what_was_stored_stays_writable() -> None:
    """Only the view that compiled code reads is closed."""
    vectors = stored("float32")
    LabelVectors(vectors, "numba")
    assert vectors.flags.writeable
