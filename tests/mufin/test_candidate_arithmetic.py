"""Arithmetic over candidates: each function against its definition, by numpy and compiled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mufin.candidate_arithmetic import Arithmetic, arithmetic
from mufin.compilation import KERNELS
from mufin.relevance import Relevance

BOTH = [arithmetic(kernel) for kernel in KERNELS]
COSINES = st.lists(st.integers(-3, 3), min_size=1, max_size=40)
"""Many ties, zeros, and numbers below."""


@pytest.fixture(params=BOTH, ids=KERNELS)
def own(request: pytest.FixtureRequest) -> Arithmetic:
    """Each in turn."""
    found: Arithmetic = request.param
    return found


@settings(max_examples=200)
@given(COSINES, st.integers(1, 12))
def test_the_best_are_those_of_a_whole_sort(scores: list[int], most: int) -> None:
    """Ties to the first; fewer than are asked for where there are fewer."""
    given_scores = np.array(scores, np.float32)
    whole = np.lexsort((np.arange(len(scores)), -given_scores)).tolist()
    above = [row for row in whole if scores[row] > 0]
    for own in BOTH:
        assert own.best(given_scores, most, False).tolist() == whole[:most]
        assert own.best(given_scores, most, True).tolist() == above[:most]


def test_votes_are_weighted_shares(own: Arithmetic) -> None:
    """Label by label, near and wide; a row without labels votes for none, and its weight counts."""
    random = np.random.default_rng(0)
    relevance = Relevance.from_pairs(random.integers(0, 49, 160), random.integers(0, 30, 160), 50, 30)
    cosines = random.uniform(-1, 1, 50).astype(np.float32)
    rows = np.argsort(-cosines)[:20]
    rows[3] = 49  # without a label
    labels, near, wide = own.votes(rows, cosines[rows], relevance.indptr, relevance.indices, 5, 20.0, 10.0)
    assert labels.tolist() == sorted(set(np.concatenate([relevance.row(int(row)) for row in rows]).tolist()))
    for shares, count, sharpness in ((near, 5, 20.0), (wide, 20, 10.0)):
        weights = np.exp(sharpness * (cosines[rows[:count]].astype(np.float64) - cosines[rows[0]]))
        expected = np.zeros(30)
        for row, weight in zip(rows[:count], weights / weights.sum(), strict=True):
            expected[relevance.row(int(row))] += weight
        np.testing.assert_allclose(shares, expected[labels], rtol=1e-4, atol=1e-7)
    nobody = own.votes(np.array([49]), cosines[49:50], relevance.indptr, relevance.indices, 5, 20.0, 10.0)
    assert [len(part) for part in nobody] == [0, 0, 0]


def test_own_products_are_best_second_and_mean(own: Arithmetic) -> None:
    """Two that lead together; a single one; none; a label beyond; negative ones alone."""
    relevance = Relevance.from_pairs(np.array([0, 0, 0, 1, 3, 3]), np.array([0, 1, 2, 3, 4, 5]), 4, 6)
    cosines = np.array([0.5, 0.75, 0.75, 0.25, -0.5, -0.25], np.float32)
    found = own.own_products(np.array([3, 0, 1, 2, 9, 0]), relevance.indptr, relevance.indices, cosines)
    expected = [[-0.25, 0.75, 0.25, 0, 0, 0.75], [-0.5, 0.75, 0, 0, 0, 0.75], [-0.375, 2 / 3, 0.25, 0, 0, 2 / 3]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert own.own_products(np.array([9]), relevance.indptr, relevance.indices, cosines).tolist() == [[0], [0], [0]]


def test_scores_are_spread_over_neighbours(own: Arithmetic) -> None:
    """By weight; nothing for a label beyond."""
    neighbours, weights = np.array([[1, 2], [0, 0]]), np.array([[0.5, 0.25], [1, 0]], np.float32)
    found = own.spread(np.array([1, 0, 5]), np.array([1.0, -2.0, 4.0], np.float32), neighbours, weights)
    np.testing.assert_allclose(found, [1.0, 0.0, 0.0])


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(-5, 5), min_size=7, max_size=7), min_size=1, max_size=4))
def test_standings_are_score_ratio_place_and_distance(rows: list[list[int]]) -> None:
    """Number by number against the definition."""
    scores = (np.array(rows) / 4).astype(np.float32)
    for own in BOTH:
        found = own.standings(scores, np.sort(-scores, axis=1), 3, 2.0, 1e-5)
        assert found.shape == (7, 4 * len(rows))
        for scorer, values in enumerate(scores.astype(np.float64)):
            leading = np.sort(values)[::-1][:3]
            best = max(abs(leading[0]), 1e-6)
            for place, value in enumerate(values):
                before = sum(other > value + 1e-5 * best for other in values)
                distance = np.clip((value - leading.mean()) / (leading.std() + 1e-6), -2, 2)
                expected = [value, value / best, 1 / np.sqrt(1 + before), distance]
                np.testing.assert_allclose(found[place, 4 * scorer : 4 * scorer + 4], expected, rtol=1e-4, atol=1e-5)


def test_arrays_may_lie_anyhow_in_memory(own: Arithmetic) -> None:
    """Every other number of another type: what is meant is computed."""
    wide = np.arange(12, dtype=np.float64)[::-1]
    assert own.best(wide[::2], 2, False).tolist() == [0, 1]  # type: ignore[arg-type]
    assert own.best(np.ascontiguousarray(wide[::2], np.float32), 2, False).tolist() == [0, 1]
