"""Finding the neighbours of ``mufin.related_labels``.

Knows no network: label titles as words and as sentences, and which labels go with which training products.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse

from mufin.inputs import FloatArray
from mufin.related_labels import NEIGHBOURS, LabelNeighbours, RelatedLabels, by_title, nearest_labels
from mufin.relevance import Relevance
from mufin.title_ridge import MOST_LABELS
from mufin.title_words import SparseRows

_LABELS_AT_ONCE = 512


def related_labels(
    words: SparseRows, sentences: FloatArray, vocabulary: int, relevance: Relevance
) -> RelatedLabels | None:
    """Neighbours of L labels by their titles' words and sentences (L, W), and by relevance (N, L).

    None where there are more labels than every pair is compared of.
    """
    count = relevance.label_count
    if count > MOST_LABELS:
        return None
    titles = scipy.sparse.csr_matrix((words.weights, words.ids, words.indptr), shape=(count, vocabulary))
    ones = np.ones(len(relevance.indices), dtype=np.float32)
    pairs = scipy.sparse.csr_matrix((ones, relevance.indices, relevance.indptr), shape=(relevance.row_count, count))
    by_label = pairs.T.tocsr()
    frequency = np.maximum(relevance.label_frequency(), 1).astype(np.float32)

    def like(block: slice) -> FloatArray:
        return by_title(np.float32(0.5) * ((titles[block] @ titles.T).toarray() + sentences[block] @ sentences.T))

    def shared(block: slice) -> FloatArray:
        return np.asarray((by_label[block] @ pairs).toarray() / frequency[block, None], dtype=np.float32)

    return RelatedLabels(_nearest(count, like).shares(), _nearest(count, shared))


def _nearest(count: int, similarity: Callable[[slice], FloatArray]) -> LabelNeighbours:
    """The most similar others of each label; ``similarity``: block of labels -> (block, L) at least 0."""
    most = min(NEIGHBOURS, count - 1)
    labels = np.zeros((count, NEIGHBOURS), dtype=np.int64)
    weights = np.zeros((count, NEIGHBOURS), dtype=np.float32)
    for start in range(0, count if most else 0, _LABELS_AT_ONCE):
        block = slice(start, min(start + _LABELS_AT_ONCE, count))
        own = similarity(block)
        own[np.arange(len(own)), np.arange(block.start, block.stop)] = -1  # nobody is beside itself
        for row, similar in enumerate(own):
            near = nearest_labels(similar, most)
            labels[start + row, : len(near)] = near
            weights[start + row, : len(near)] = similar[near]
    return LabelNeighbours(labels, weights)
