"""What is known of labels beside the network: training products like the one asked for, and words of titles.

Knows no network and how scores are joined (``mufin.combination``). Arrays in, arrays out; one product at a time, the
same code in training, export and service.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mufin.errors import BundleError
from mufin.inputs import FloatArray, Int64Array
from mufin.label_filters import write_arrays
from mufin.relevance import Relevance
from mufin.title_words import Postings, SparseRow, SparseRows, TitleWords

EVIDENCE_FILE = "evidence.npz"

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


@dataclass(frozen=True, slots=True)
class ProductEvidence:
    """All of one product."""

    by_embedding_near: Votes
    by_embedding_wide: Votes
    by_words_near: Votes
    by_words_wide: Votes
    title_cosines: FloatArray
    """(L,) of the product's title words with the labels'"""
    best_embedding: float
    """Cosine of the nearest training product"""
    best_words: float
    """The same by words; 0 when no word is known"""

    def candidates(self) -> Int64Array:
        """Labels worth scoring beside the shortlist: the ``CANDIDATES`` best of each kind, ascending."""
        found = [_best(own.labels, own.shares, CANDIDATES) for own in (self.by_embedding_wide, self.by_words_wide)]
        matching = np.flatnonzero(self.title_cosines > 0)
        found.append(_best(matching, self.title_cosines[matching], CANDIDATES))
        return np.unique(np.concatenate(found))


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

    def of(self, embedding: FloatArray, title: SparseRow | None) -> ProductEvidence:
        """Evidence of one product: its embedding (D,) and its title's words, None for a product without a title."""
        near, wide, best = self._votes(self.products @ embedding)
        if title is None or not len(title.ids):
            none = Votes(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
            nothing = np.zeros(len(self.label_words), dtype=np.float32)
            return ProductEvidence(near, wide, none, none, nothing, best, 0.0)
        word_near, word_wide, best_words = self._votes(self._product_postings.cosines(title))
        cosines = self._label_postings.cosines(title)
        return ProductEvidence(near, wide, word_near, word_wide, cosines, best, best_words)

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


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write evidence.npz. Embeddings are kept as float16, which moves a cosine by some 1e-4."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "words": evidence.words.pack(), "idf": evidence.words.idf,
        "products": evidence.products.astype(np.float16),
        "relevance_indptr": evidence.relevance.indptr, "relevance_indices": evidence.relevance.indices.astype(np.int32),
        "labels": np.asarray(evidence.relevance.label_count, dtype=np.int64),
    }  # fmt: skip
    for name, rows in (("product_words", evidence.product_words), ("label_words", evidence.label_words)):
        arrays |= {f"{name}_indptr": rows.indptr, f"{name}_ids": rows.ids.astype(np.int32)}
        arrays[f"{name}_weights"] = rows.weights
    write_arrays(path, arrays)


def read_evidence(path: Path, dimension: int, labels: int) -> Evidence:
    """Read evidence.npz of a bundle with (L,) ``labels``, at least as many as it had when trained.

    Raises BundleError naming both values when it cannot be read or does not belong to the bundle.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            known = int(arrays["labels"])
            if known > labels or arrays["products"].shape[1] != dimension:
                raise BundleError(
                    f"{path}: is of {known} labels and dimension {arrays['products'].shape[1]}, the bundle has "
                    f"{labels} and {dimension}: export again"
                )
            indices = arrays["relevance_indices"].astype(np.int64)
            relevance = Relevance(arrays["relevance_indptr"], indices, labels)
            if len(indices) and (indices.min() < 0 or indices.max() >= known):
                raise BundleError(f"{path}: names label {indices.max()}, it was made for {known}: export again")
            words = TitleWords.unpack(arrays["words"], arrays["idf"])
            products = np.ascontiguousarray(arrays["products"], dtype=np.float32)
            rows = [
                SparseRows(arrays[f"{n}_indptr"], arrays[f"{n}_ids"].astype(np.int64), arrays[f"{n}_weights"])
                for n in ("product_words", "label_words")
            ]
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read ({error}): export again") from error
    if not (len(products) == relevance.row_count == len(rows[0])) or len(rows[1]) != known or not len(products):
        raise BundleError(
            f"{path}: has {len(products)} embeddings, {relevance.row_count} rows of relevance, {len(rows[0])} product "
            f"titles and {len(rows[1])} label titles of {known}: export again"
        )
    highest = max((int(r.ids.max(initial=-1)) for r in rows), default=-1)
    if highest >= len(words):
        raise BundleError(f"{path}: names word {highest} of {len(words)}: export again")
    return Evidence(words, products, relevance, rows[0], rows[1])


def stored(evidence: Evidence) -> Evidence:
    """As it would be read back: embeddings through float16, so that training and serving see the same numbers."""
    return Evidence(
        evidence.words, evidence.products.astype(np.float16).astype(np.float32), evidence.relevance,
        evidence.product_words, evidence.label_words,
    )  # fmt: skip
