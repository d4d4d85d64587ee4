"""What is known of labels beside the network: training products like the one asked for, and titles.

Knows no network and how scores are joined (``mufin.combination``). Arrays in, arrays out; one product at a time, the
same code in training, export and service.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mufin.inputs import FloatArray, Int64Array
from mufin.relevance import Relevance
from mufin.title_ridge import TitleRidge
from mufin.title_words import Postings, SparseRow, SparseRows, TitleWords

MOST_PRODUCTS = 100_000
"""Training products at the most: a request is compared with every one, some 3 ms at so many (docs/experiments.md)."""
CANDIDATES = 50
NEAR, WIDE = (10, 20.0), (100, 10.0)
"""(neighbours, sharpness): a neighbour of cosine c votes exp(sharpness * (c - best)) for its labels. accuracy.md: soft
weights over many neighbours; the near ones beside them, as the combination may weigh both."""


@dataclass(frozen=True, slots=True)
class Votes:
    """What the nearest training products are relevant to."""

    labels: Int64Array
    """(n,) ascending"""
    shares: FloatArray
    """(n,) weighted share of the neighbours that have the label, 0..1"""

    def of(self, labels: Int64Array) -> FloatArray:
        """The shares of (m,) labels; 0 for one without a vote."""
        if not len(self.labels):
            return np.zeros(len(labels), dtype=np.float32)
        place = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[place] == labels, self.shares[place], np.float32(0)).astype(np.float32)


_NO_VOTES = Votes(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class ProductEvidence:
    """All of one product."""

    by_embedding_near: Votes
    by_embedding_wide: Votes
    by_words_near: Votes
    by_words_wide: Votes
    by_title_near: Votes
    by_title_wide: Votes
    title_cosines: FloatArray
    """(L,) of the product's title words with the labels'"""
    ridge: FloatArray
    """(L,) of the ridge classifiers on the title; 0 where there are none"""
    sentence: FloatArray | None
    """(W,) of the title"""
    label_sentences: FloatArray
    """(L, W) of the labels' titles"""
    best_embedding: float
    """Cosine of the nearest training product"""
    best_words: float
    """The same by words; 0 when no word is known"""
    best_title: float
    """The same by words and sentence together; 0 without a title"""

    def candidates(self) -> Int64Array:
        """Labels worth scoring beside the shortlist: the ``CANDIDATES`` best of each kind, ascending."""
        voted = self.by_embedding_wide, self.by_words_wide, self.by_title_wide
        found = [_best(own.labels, own.shares, CANDIDATES) for own in voted]
        for scores in (self.title_cosines, self.ridge):
            positive = np.flatnonzero(scores > 0)
            found.append(_best(positive, scores[positive], CANDIDATES))
        return np.unique(np.concatenate(found))

    def title_match(self, labels: Int64Array) -> FloatArray:
        """(m,) cosines of title words with those of (m,) labels; 0 for one added later."""
        return _of_known(self.title_cosines, labels)

    def ridge_of(self, labels: Int64Array) -> FloatArray:
        """(m,) ridge scores of (m,) labels; 0 for one added later."""
        return _of_known(self.ridge, labels)

    def sentence_match(self, labels: Int64Array) -> FloatArray:
        """(m,) cosines of the title's sentence with those of (m,) labels; 0 without a title and for one added later."""
        found = np.zeros(len(labels), dtype=np.float32)
        if self.sentence is not None:
            known = labels < len(self.label_sentences)
            found[known] = self.label_sentences[labels[known]] @ self.sentence
        return found


def _of_known(scores: FloatArray, labels: Int64Array) -> FloatArray:
    known = np.minimum(labels, len(scores) - 1)
    return np.where(labels < len(scores), scores[known], np.float32(0)).astype(np.float32)


def _best(labels: Int64Array, scores: FloatArray, most: int) -> Int64Array:
    """The ``most`` best labels, ties to the smaller."""
    return np.asarray(labels[np.lexsort((labels, -scores))[:most]], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Training products and titles. Thread-safe: nothing is written."""

    words: TitleWords
    products: FloatArray
    """(N, D) float32, unit length but for rounding to float16: embeddings of the training products"""
    relevance: Relevance
    """(N, L)"""
    product_words: SparseRows
    """N titles"""
    label_words: SparseRows
    """L titles, fewer when labels were added since"""
    sentences: FloatArray
    """(N, W) what the title encoder says of the training products' titles, unit length; 0 without a title"""
    label_sentences: FloatArray
    """(L, W) the same of labels"""
    ridge: TitleRidge | None
    """None where the catalogue is too large for it"""

    @cached_property
    def frequency(self) -> Int64Array:
        """(L,) training products of each label"""
        return self.relevance.label_frequency()

    @cached_property
    def _product_postings(self) -> Postings:
        return Postings.of(self.product_words, len(self.words))

    @cached_property
    def _label_postings(self) -> Postings:
        return Postings.of(self.label_words, len(self.words))

    def of(self, embedding: FloatArray, title: SparseRow | None, sentence: FloatArray | None) -> ProductEvidence:
        """Evidence of one product: its embedding (D,), its title's words and sentence (W,), None without a title."""
        near, wide, best = self._votes(self.products @ embedding)
        word_near = word_wide = title_near = title_wide = _NO_VOTES
        cosines = ridge = np.zeros(len(self.label_words), dtype=np.float32)
        best_words = best_title = 0.0
        words = np.zeros(len(self.products), dtype=np.float32)
        if title is not None and len(title.ids):
            words = self._product_postings.cosines(title)
            word_near, word_wide, best_words = self._votes(words)
            cosines = self._label_postings.cosines(title)
        if sentence is not None:
            title_near, title_wide, best_title = self._votes(np.float32(0.5) * (words + self.sentences @ sentence))
            ridge = ridge if self.ridge is None else self.ridge.scores(title, sentence)
        return ProductEvidence(
            near, wide, word_near, word_wide, title_near, title_wide, cosines, ridge, sentence, self.label_sentences,
            best, best_words, best_title,
        )  # fmt: skip

    def _votes(self, cosines: FloatArray) -> tuple[Votes, Votes, float]:
        """Near and wide votes of training products with (N,) cosines, and the highest cosine."""
        most = min(WIDE[0], len(cosines))
        nearest = np.argpartition(-cosines, most - 1)[:most]
        nearest = nearest[np.lexsort((nearest, -cosines[nearest]))]
        near, wide = (self._vote(nearest[:count], cosines, sharpness) for count, sharpness in (NEAR, WIDE))
        return near, wide, float(cosines[nearest[0]])

    def _vote(self, rows: Int64Array, cosines: FloatArray, sharpness: float) -> Votes:
        own = cosines[rows]
        weights = np.exp(np.float32(sharpness) * (own - own[0]))
        weights /= weights.sum()
        voted = self.relevance.select(rows)
        labels, place = np.unique(voted.indices, return_inverse=True)
        shares = np.bincount(place, weights=np.repeat(weights, voted.row_sizes()), minlength=len(labels))
        return Votes(labels.astype(np.int64), shares.astype(np.float32))
