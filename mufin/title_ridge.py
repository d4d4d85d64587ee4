"""Ridge classifiers on a title: one linear map from its words and its sentence to every label.

Knows no training: ``mufin.training.ridge`` fits it in its dual form, this is the primal one, which costs a request some
look-ups and one small matrix product. Source: kernel ridge on both features is the strongest plain method of
docs/experiments.md; beside the network it says what the network forgot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mufin.candidate_arithmetic import arithmetic
from mufin.inputs import FloatArray
from mufin.title_words import Postings, SparseRow, SparseRows
from mufin.vector_rows import VectorRows

MOST_PRODUCTS = 20_000
"""Training products at the most: the dual is solved whole."""
MOST_LABELS = 20_000
"""Labels at the most: a request is scored against all of them."""
WORDS_A_LABEL = 512
"""Weights kept of a label: the largest ones."""


@dataclass(frozen=True, eq=False)
class TitleRidge:
    """Weights of L labels. Thread-safe."""

    words: SparseRows
    """(L, V) sparse: the label's weight of each word"""
    sentences: VectorRows
    """(L, W)"""
    vocabulary: int
    """V"""

    @cached_property
    def _postings(self) -> Postings:
        return Postings.of(self.words, self.vocabulary)

    def scores(self, titles: Sequence[SparseRow | None], sentences: FloatArray) -> FloatArray:
        """(B, L) of B titles: their words, None for none, and their sentences (B, W)."""
        found, compare = self.sentences.products(sentences), arithmetic(self.sentences.kernel).word_cosines
        for own, title in zip(found, titles, strict=True):
            if title is not None:
                own += compare(title, self._postings)
        return found


def label_weights(dense: FloatArray, most: int = WORDS_A_LABEL) -> SparseRows:
    """(n, V) weights -> the ``most`` largest of each row by magnitude, by ascending word; zeros are left out."""
    rows = []
    for own in dense:
        kept = np.arange(len(own)) if len(own) <= most else np.argpartition(-np.abs(own), most - 1)[:most]
        kept = np.sort(kept[own[kept] != 0])
        rows.append(SparseRow(kept.astype(np.int64), own[kept].astype(np.float32)))
    return SparseRows.of(rows)
