"""Evidence of a bundle whose labels came or went: the same training products, other labels.

Knows no file and no encoder; what a new label's title says is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mufin.candidate_arithmetic import arithmetic
from mufin.evidence import Evidence
from mufin.inputs import FloatArray, Int64Array
from mufin.related_labels import NEIGHBOURS, LabelNeighbours, RelatedLabels, by_title, nearest_labels
from mufin.relevance import Relevance
from mufin.title_words import Postings, SparseRow, SparseRows
from mufin.vector_rows import HalfArray, VectorRows

_NO_WORDS = SparseRow(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
_LABELS_AT_ONCE = 256


def with_labels(evidence: Evidence, titles: Sequence[SparseRow | None], sentences: FloatArray) -> Evidence:
    """``evidence`` with n further labels behind the others, which no training product speaks for.

    ``titles``: words of each, None without a title; ``sentences``: (n, W), 0 without. Their words and sentences are
    compared with a product's title as those of any label, and what is said of labels of like titles is said of them,
    too. Ridge classifiers and shared training products say nothing of them.
    """
    rows = SparseRows.of([_NO_WORDS if title is None else title for title in titles])
    before = evidence.relevance
    ridge, related = evidence.ridge, evidence.related
    if ridge is not None:
        silent = np.zeros((len(rows), ridge.sentences.dimension), dtype=np.float16)
        ridge = replace(
            ridge, words=ridge.words.followed_by(SparseRows.of([_NO_WORDS] * len(rows))),
            sentences=_followed_by(ridge.sentences, silent),
        )  # fmt: skip
    if related is not None:
        nobody = LabelNeighbours(
            np.zeros((len(rows), NEIGHBOURS), np.int64), np.zeros((len(rows), NEIGHBOURS), np.float32)
        )
        related = RelatedLabels(
            related.like.followed_by(_like(evidence, rows, sentences)), related.companions.followed_by(nobody)
        )
    return replace(
        evidence, relevance=Relevance(before.indptr, before.indices, before.label_count + len(rows)),
        label_words=evidence.label_words.followed_by(rows),
        label_sentences=_followed_by(evidence.label_sentences, sentences.astype(np.float16)), ridge=ridge,
        related=related,
    )  # fmt: skip


def _followed_by(before: VectorRows, more: HalfArray) -> VectorRows:
    return VectorRows.of(np.concatenate([before.values, more]), before.kernel)


def _like(evidence: Evidence, titles: SparseRows, sentences: FloatArray) -> LabelNeighbours:
    """Those of the labels before whose titles are most like each new one's."""
    compare = arithmetic(evidence.products.kernel).word_cosines
    postings, count = Postings.of(evidence.label_words, len(evidence.words)), len(evidence.label_words)
    labels = np.zeros((len(titles), NEIGHBOURS), dtype=np.int64)
    weights = np.zeros((len(titles), NEIGHBOURS), dtype=np.float32)
    for start in range(0, len(titles), _LABELS_AT_ONCE):
        said = evidence.label_sentences.products(sentences[start : start + _LABELS_AT_ONCE])
        for row, own in enumerate(said, start):
            similar = by_title(np.float32(0.5) * (compare(titles.row(row), postings) + own))
            near = nearest_labels(similar, min(NEIGHBOURS, count))
            labels[row, : len(near)], weights[row, : len(near)] = near, similar[near]
    return LabelNeighbours(labels, weights).shares()


def without_labels(evidence: Evidence, kept: Int64Array) -> Evidence:
    """``evidence`` of the ``kept`` labels (ascending) alone, renumbered by their place.

    Training products stay, also those that are relevant to none of them: as neighbours they still take their share of
    the votes. What the others said to their neighbours is gone.
    """
    new = np.full(evidence.relevance.label_count, -1, dtype=np.int64)
    new[kept] = np.arange(len(kept))
    rows, labels = evidence.relevance.to_pairs()
    stay = new[labels] >= 0
    relevance = Relevance.from_pairs(rows[stay], new[labels[stay]], evidence.relevance.row_count, len(kept))
    ridge, related = evidence.ridge, evidence.related
    if ridge is not None:
        ridge = replace(ridge, words=ridge.words.select(kept), sentences=_selected(ridge.sentences, kept))
    if related is not None:
        related = RelatedLabels(_renumbered(related.like, new, kept), _renumbered(related.companions, new, kept))
    return replace(
        evidence, relevance=relevance, label_words=evidence.label_words.select(kept),
        label_sentences=_selected(evidence.label_sentences, kept), ridge=ridge, related=related,
    )  # fmt: skip


def _selected(before: VectorRows, kept: Int64Array) -> VectorRows:
    return VectorRows.of(before.values[kept], before.kernel)


def _renumbered(before: LabelNeighbours, new: Int64Array, kept: Int64Array) -> LabelNeighbours:
    labels = new[before.labels[kept]]
    gone = labels < 0
    return LabelNeighbours(np.where(gone, 0, labels), np.where(gone, np.float32(0), before.weights[kept]))
