"""What is known of labels beside the network: training products like the one asked for, and titles.

Knows no network and how scores are joined (``mufin.combination``). Arrays in, arrays out; the same code in training,
export and service, and the same numbers whatever the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mufin.candidate_arithmetic import Arithmetic, arithmetic
from mufin.compilation import Kernel
from mufin.inputs import FloatArray, Int64Array
from mufin.related_labels import RelatedLabels
from mufin.relevance import Relevance
from mufin.title_ridge import TitleRidge
from mufin.title_words import Postings, SparseRow, SparseRows, TitleWords
from mufin.vector_rows import VectorRows

MOST_PRODUCTS = 100_000
"""Training products at the most: a request is compared with every one, some milliseconds at so many (docs/performance.md)."""
CANDIDATES = 50
NEAR, WIDE = (10, 20.0), (100, 10.0)
"""(neighbours, sharpness): a neighbour of cosine c votes exp(sharpness * (c - best)) for its labels. Soft
weights over many neighbours; the near ones beside them, as the combination may weigh both."""


@dataclass(frozen=True, slots=True)
class Votes:
    """What the nearest training products are relevant to."""

    labels: Int64Array
    """(n,) ascending"""
    near: FloatArray
    """(n,) weighted share of the ``NEAR`` neighbours that have the label, 0..1"""
    wide: FloatArray
    """(n,) the same of the ``WIDE`` ones"""
    best: float
    """Cosine of the nearest one"""

    def of(self, labels: Int64Array) -> tuple[FloatArray, FloatArray]:
        """Near and wide shares of (m,) labels; 0 for one without a vote."""
        if not len(self.labels):
            return np.zeros(len(labels), dtype=np.float32), np.zeros(len(labels), dtype=np.float32)
        place = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        known = self.labels[place] == labels
        return self.near[place] * known, self.wide[place] * known


_NO_VOTES = Votes(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32), 0.0)


@dataclass(frozen=True, slots=True)
class ProductEvidence:
    """All of one product."""

    by_embedding: Votes
    by_words: Votes
    """Nobody's when no word is known"""
    by_title: Votes
    """By words and sentence together; nobody's without a title"""
    title_cosines: FloatArray
    """(L,) of the product's title words with the labels'"""
    ridge: FloatArray
    """(L,) of the ridge classifiers on the title; 0 where there are none"""
    sentence: FloatArray | None
    """(W,) of the title"""
    label_sentences: VectorRows
    """(L, W) of the labels' titles"""
    title_products: FloatArray
    """(N,) cosines with the training products by words and sentence together; 0 without a title"""
    label_products: Relevance
    """(L, N) training products of each label"""
    related: RelatedLabels | None
    """None where there are too many labels for it"""
    arithmetic: Arithmetic
    """What computes with it"""

    def candidates(self) -> Int64Array:
        """Labels worth scoring beside the shortlist: the ``CANDIDATES`` best of each kind, ascending."""
        found = []
        for votes in (self.by_embedding, self.by_words, self.by_title):
            found.append(votes.labels[self.arithmetic.best(votes.wide, CANDIDATES, True)])
        found += [self.arithmetic.best(scores, CANDIDATES, True) for scores in (self.title_cosines, self.ridge)]
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
            found[known] = self.label_sentences.products_of(labels[known], self.sentence)
        return found

    def own_products(self, labels: Int64Array) -> FloatArray:
        """(3, m) best, second best and mean cosine of the title with the training products of (m,) labels.

        0 for a label that has none, and the second for one that has a single one.
        """
        own = self.label_products
        return self.arithmetic.own_products(labels, own.indptr, own.indices, self.title_products)

    def of_related(self, labels: Int64Array) -> FloatArray:
        """(3, m) what is said of the labels beside (m,) labels: ridge scores and title votes of those of like titles,
        title votes of those that share training products; 0 for a label added later."""
        found = np.zeros((3, len(labels)), dtype=np.float32)
        if self.related is None:
            return found
        like, companions = self.related.like, self.related.companions
        shares = np.zeros(len(like), dtype=np.float32)
        shares[self.by_title.labels] = self.by_title.wide
        for place, (scores, beside) in enumerate(((self.ridge, like), (shares, like), (shares, companions))):
            found[place] = self.arithmetic.spread(labels, scores, beside.labels, beside.weights)
        return found


def _of_known(scores: FloatArray, labels: Int64Array) -> FloatArray:
    known = np.minimum(labels, len(scores) - 1)
    return np.where(labels < len(scores), scores[known], np.float32(0)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _OfTitle:
    """What a title's sentence says."""

    sentence: FloatArray
    """(W,)"""
    products: FloatArray
    """(N,) cosines with the training products' sentences"""
    ridge: FloatArray | None
    """(L,) None where there are no ridge classifiers"""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Training products and titles. Thread-safe: nothing is written."""

    words: TitleWords
    products: VectorRows
    """(N, D) unit length: embeddings of the training products"""
    relevance: Relevance
    """(N, L)"""
    product_words: SparseRows
    """N titles"""
    label_words: SparseRows
    """L titles, fewer when labels were added since"""
    sentences: VectorRows
    """(N, W) what the title encoder says of the training products' titles, unit length; 0 without a title"""
    label_sentences: VectorRows
    """(L, W) the same of labels"""
    ridge: TitleRidge | None
    """None where the catalogue is too large for it"""
    related: RelatedLabels | None = None
    """The same"""

    @cached_property
    def _arithmetic(self) -> Arithmetic:
        return arithmetic(self.products.kernel)

    @cached_property
    def frequency(self) -> Int64Array:
        """(L,) training products of each label"""
        return self.relevance.label_frequency()

    @cached_property
    def _label_products(self) -> Relevance:
        rows, labels = self.relevance.to_pairs()
        return Relevance.from_pairs(labels, rows, self.relevance.label_count, self.relevance.row_count)

    @cached_property
    def _product_postings(self) -> Postings:
        return Postings.of(self.product_words, len(self.words))

    @cached_property
    def _label_postings(self) -> Postings:
        return Postings.of(self.label_words, len(self.words))

    def with_kernel(self, kernel: Kernel) -> Evidence:
        """The same, computed by ``kernel``."""
        ridge = self.ridge
        if ridge is not None:
            ridge = replace(ridge, sentences=replace(ridge.sentences, kernel=kernel))
        products, sentences, label_sentences = (
            replace(own, kernel=kernel) for own in (self.products, self.sentences, self.label_sentences)
        )
        return replace(self, products=products, sentences=sentences, label_sentences=label_sentences, ridge=ridge)

    def of(
        self, embeddings: FloatArray, titles: Sequence[SparseRow | None], sentences: Sequence[FloatArray | None]
    ) -> list[ProductEvidence]:
        """Evidence of B products: embeddings (B, D), the titles' words and sentences (W,), None without a title."""
        said = self._of_titles(titles, sentences)
        cosines = self.products.products(embeddings)
        return [self._of_one(*product) for product in zip(cosines, titles, said, strict=True)]

    def _of_titles(
        self, titles: Sequence[SparseRow | None], sentences: Sequence[FloatArray | None]
    ) -> list[_OfTitle | None]:
        rows = [row for row, sentence in enumerate(sentences) if sentence is not None]
        found: list[_OfTitle | None] = [None] * len(sentences)
        if not rows:
            return found
        stacked = np.stack([own for own in sentences if own is not None])
        products = self.sentences.products(stacked)
        ridge = None if self.ridge is None else self.ridge.scores([titles[row] for row in rows], stacked)
        for place, row in enumerate(rows):
            found[row] = _OfTitle(stacked[place], products[place], None if ridge is None else ridge[place])
        return found

    def _of_one(self, cosines: FloatArray, title: SparseRow | None, of_title: _OfTitle | None) -> ProductEvidence:
        """``cosines``: (N,) of its embedding with the training products'."""
        by_words = by_title = _NO_VOTES
        matches = ridge = np.zeros(len(self.label_words), dtype=np.float32)
        words = titles = np.zeros(len(self.products), dtype=np.float32)
        if title is not None and len(title.ids):
            words = self._product_postings.cosines(title)
            by_words = self._votes(words)
            matches = self._label_postings.cosines(title)
        if of_title is not None:
            titles = np.float32(0.5) * (words + of_title.products)
            by_title = self._votes(titles)
            ridge = ridge if of_title.ridge is None else of_title.ridge
        return ProductEvidence(
            self._votes(cosines), by_words, by_title, matches, ridge, None if of_title is None else of_title.sentence,
            self.label_sentences, titles, self._label_products, self.related, self._arithmetic,
        )  # fmt: skip

    def _votes(self, cosines: FloatArray) -> Votes:
        """Of training products with (N,) cosines."""
        (near, near_sharpness), (wide, wide_sharpness) = NEAR, WIDE
        nearest = self._arithmetic.best(cosines, wide, False)
        labels, near_shares, wide_shares = self._arithmetic.votes(
            nearest, cosines, self.relevance.indptr, self.relevance.indices, near, near_sharpness, wide_sharpness
        )
        return Votes(labels, near_shares, wide_shares, float(cosines[nearest[0]]))
