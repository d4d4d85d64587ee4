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
from mufin.vector_lists import VectorLists
from mufin.vector_rows import VectorRows

MOST_PRODUCTS = 500_000
"""Training products at the most: so many were measured (docs/performance.md), and what is known of each is in memory, some 2 KB."""
OWN_PRODUCTS = 16
"""Training products of a label that a title is compared with where there are lists, evenly spread over all of them."""
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
    nearest: Int64Array
    """(n,) the training products themselves, nearest first"""

    def of(self, labels: Int64Array) -> tuple[FloatArray, FloatArray]:
        """Near and wide shares of (m,) labels; 0 for one without a vote."""
        if not len(self.labels):
            return np.zeros(len(labels), dtype=np.float32), np.zeros(len(labels), dtype=np.float32)
        place = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        known = self.labels[place] == labels
        return self.near[place] * known, self.wide[place] * known


_NO_VOTES = Votes(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32), 0.0, np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class ProductLists:
    """Which of many training products are worth comparing with a product; without, it is compared with every one."""

    by_embedding: VectorLists
    by_sentence: VectorLists


@dataclass(frozen=True, slots=True)
class TitleCosines:
    """Cosines of a title with the training products, by words and sentence together, of those that are asked for."""

    words: FloatArray
    """(N,) of the words alone"""
    sentence: FloatArray
    """(W,)"""
    sentences: VectorRows
    """(N, W)"""

    def of(self, rows: Int64Array) -> FloatArray:
        """(n,) of (n,) training products."""
        said = self.sentences.products_of(rows, self.sentence)
        return np.asarray(np.float32(0.5) * (self.words[rows] + said), dtype=np.float32)


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
    title_products: FloatArray | TitleCosines
    """(N,) cosines with the training products by words and sentence together, 0 without a title; or what finds them"""
    label_products: Relevance
    """(L, N) training products of each label; ``OWN_PRODUCTS`` of them where there are lists"""
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
        own, cosines = self.label_products, self.title_products
        if not isinstance(cosines, TitleCosines):
            return self.arithmetic.own_products(labels, own.indptr, own.indices, cosines)
        known = np.flatnonzero(labels < own.row_count)
        part, found = own.select(labels[known]), np.zeros((3, len(labels)), dtype=np.float32)
        entries = np.arange(len(part.indices), dtype=np.int64)
        places = np.arange(len(known), dtype=np.int64)
        found[:, known] = self.arithmetic.own_products(places, part.indptr, entries, cosines.of(part.indices))
        return found

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
    lists: ProductLists | None = None
    """None: a product is compared with every training product"""

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
        found = Relevance.from_pairs(labels, rows, self.relevance.label_count, self.relevance.row_count)
        return found if self.lists is None else _thinned(found, OWN_PRODUCTS)

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
        lists = self.lists
        if lists is not None:
            lists = ProductLists(lists.by_embedding.with_kernel(kernel), lists.by_sentence.with_kernel(kernel))
        return replace(
            self, products=products, sentences=sentences, label_sentences=label_sentences, ridge=ridge, lists=lists
        )

    def of(
        self, embeddings: FloatArray, titles: Sequence[SparseRow | None], sentences: Sequence[FloatArray | None]
    ) -> list[ProductEvidence]:
        """Evidence of B products: embeddings (B, D), the titles' words and sentences (W,), None without a title."""
        ridge = self._ridge(titles, sentences)
        if self.lists is not None:
            asked = zip(embeddings, titles, sentences, ridge, strict=True)
            return [self._of_near(self.lists, *product) for product in asked]
        cosines = self.products.products(embeddings)
        rows = [row for row, sentence in enumerate(sentences) if sentence is not None]
        said = dict(zip(rows, self.sentences.products(_stacked(sentences, rows)), strict=True)) if rows else {}
        return [
            self._of_one(cosines[row], titles[row], sentences[row], said.get(row), ridge[row])
            for row in range(len(titles))
        ]

    def _ridge(self, titles: Sequence[SparseRow | None], sentences: Sequence[FloatArray | None]) -> list[FloatArray]:
        """(L,) of each product; 0 where there are no ridge classifiers, or no title."""
        nothing = np.zeros(len(self.label_words), dtype=np.float32)
        found = [nothing] * len(titles)
        rows = [row for row, sentence in enumerate(sentences) if sentence is not None]
        if self.ridge is not None and rows:
            scores = self.ridge.scores([titles[row] for row in rows], _stacked(sentences, rows))
            for row, own in zip(rows, scores, strict=True):
                found[row] = own
        return found

    def _of_one(
        self, cosines: FloatArray, title: SparseRow | None, sentence: FloatArray | None, said: FloatArray | None,
        ridge: FloatArray,
    ) -> ProductEvidence:  # fmt: skip
        """``cosines``, ``said``: (N,) of its embedding and its sentence with the training products'."""
        words, by_words, matches = self._of_words(title)
        titles, by_title = np.zeros(len(self.products), dtype=np.float32), _NO_VOTES
        if said is not None:
            titles = np.float32(0.5) * (words + said)
            by_title = self._votes(titles)
        return ProductEvidence(
            self._votes(cosines), by_words, by_title, matches, ridge, sentence, self.label_sentences, titles,
            self._label_products, self.related, self._arithmetic,
        )  # fmt: skip

    def _of_near(
        self, lists: ProductLists, embedding: FloatArray, title: SparseRow | None, sentence: FloatArray | None,
        ridge: FloatArray,
    ) -> ProductEvidence:  # fmt: skip
        """The same, compared with the training products of the lists nearest to it, and with those of like words."""
        words, by_words, matches = self._of_words(title)
        near = lists.by_embedding.near(embedding, self._arithmetic)
        titles: FloatArray | TitleCosines = np.zeros(len(self.products), dtype=np.float32)
        by_title = _NO_VOTES
        if sentence is not None:
            titles = TitleCosines(words, sentence, self.sentences)
            rows = np.union1d(lists.by_sentence.near(sentence, self._arithmetic), by_words.nearest)
            by_title = self._votes(titles.of(rows), rows)
        return ProductEvidence(
            self._votes(self.products.products_of(near, embedding), near), by_words, by_title, matches, ridge,
            sentence, self.label_sentences, titles, self._label_products, self.related, self._arithmetic,
        )  # fmt: skip

    def _of_words(self, title: SparseRow | None) -> tuple[FloatArray, Votes, FloatArray]:
        """(N,) cosines of a title's words with the training products', their votes, and (L,) those with the labels'."""
        if title is None or not len(title.ids):
            nothing = np.zeros(len(self.products), np.float32), np.zeros(len(self.label_words), np.float32)
            return nothing[0], _NO_VOTES, nothing[1]
        words = self._arithmetic.word_cosines(title, self._product_postings)
        return words, self._votes(words), self._arithmetic.word_cosines(title, self._label_postings)

    def _votes(self, cosines: FloatArray, rows: Int64Array | None = None) -> Votes:
        """Of training products ``rows`` (n,) with (n,) cosines; None: of all."""
        if not len(cosines):
            return _NO_VOTES
        (near, near_sharpness), (wide, wide_sharpness) = NEAR, WIDE
        places = self._arithmetic.best(cosines, wide, False)
        nearest = places if rows is None else rows[places]
        labels, near_shares, wide_shares = self._arithmetic.votes(
            nearest, cosines[places], self.relevance.indptr, self.relevance.indices, near, near_sharpness,
            wide_sharpness,
        )  # fmt: skip
        return Votes(labels, near_shares, wide_shares, float(cosines[places[0]]), nearest)


def _stacked(sentences: Sequence[FloatArray | None], rows: Sequence[int]) -> FloatArray:
    return np.stack([own for row in rows if (own := sentences[row]) is not None])


def _thinned(products: Relevance, most: int) -> Relevance:
    """At most ``most`` of each row, evenly spread."""
    sizes = products.row_sizes()
    kept = np.minimum(sizes, most)
    first = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    place = np.arange(first[-1]) - np.repeat(first[:-1], kept)
    entry = np.repeat(products.indptr[:-1], kept) + place * np.repeat(sizes, kept) // np.maximum(
        np.repeat(kept, kept), 1
    )
    return Relevance(first, products.indices[entry], products.label_count)
