"""The sparse relevance matrix against plain sets of pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mufin.relevance import Relevance

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=40)


def _matrix(pairs: list[tuple[int, int]]) -> Relevance:
    rows, labels = (np.array([p[i] for p in pairs], dtype=np.int64) for i in range(2))
    return Relevance.from_pairs(rows, labels, 6, 8)


@given(PAIRS)
def test_pairs_come_back_sorted_and_once(pairs: list[tuple[int, int]]) -> None:
    """from_pairs and to_pairs are inverse up to order and repeats."""
    rows, labels = _matrix(pairs).to_pairs()
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == sorted(set(pairs))


@given(PAIRS, st.lists(st.integers(0, 5), max_size=9))
def test_select_and_frequency_agree_with_sets(pairs: list[tuple[int, int]], rows: list[int]) -> None:
    """select keeps order and repeats of rows; label_frequency counts the rows of every label."""
    matrix = _matrix(pairs)
    chosen = matrix.select(np.array(rows, dtype=np.int64))
    assert chosen.row_count == len(rows)
    for place, row in enumerate(rows):
        assert chosen.row(place).tolist() == sorted({label for r, label in pairs if r == row})
    assert matrix.label_frequency().tolist() == [len({r for r, label in pairs if label == w}) for w in range(8)]


def test_values_outside_the_matrix_are_refused() -> None:
    """A label or a row beyond the stated size, or pairs of unequal length, raise ValueError with the values."""
    one, two = np.array([1]), np.array([0, 1])
    with pytest.raises(ValueError, match=r"label 1\.\.1 does not lie in 0\.\.0"):
        Relevance.from_pairs(one, one, 2, 1)
    with pytest.raises(ValueError, match=r"row 1\.\.1"):
        Relevance.from_pairs(one, one, 1, 2)
    with pytest.raises(ValueError, match="do not match"):
        Relevance.from_pairs(one, two, 9, 9)
    with pytest.raises(ValueError, match="indptr ends at 3"):
        Relevance(np.array([0, 3]), two, 2)
