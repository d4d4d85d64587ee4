"""Titles as sparse TF-IDF vectors of their words and word pairs.

Knows no labels and no network. Weights: (1 + ln count) * idf with idf = 1 + ln((1 + N) / (1 + df)), unit length
(Salton and Buckley 1988, as in the field's usual library). Words are what the title encoder may never have seen: brand
and type names decide which products are alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, pairwise

import numpy as np

from mufin.inputs import FloatArray, Int64Array, Uint8Array, normalise_title

_WORD = re.compile(r"\w+")
# Written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han. Each character is a word, and pairs do what words do elsewhere.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Where vowel signs and accents lie that NFKC joins to no letter; regular expressions take none of them for part of a word.
_MARKS_LIE = ((0x0300, 0x1E00), (0x20D0, 0x2100), (0xA66F, 0xAC00), (0xFB1E, 0xFB1F), (0x11000, 0x12000))
MOST_WORDS = 1_000_000
"""Words and pairs kept; the most frequent ones."""


@dataclass(frozen=True, slots=True)
class SparseRow:
    """One title."""

    ids: Int64Array
    """(n,) ascending"""
    weights: FloatArray
    """(n,) unit length; empty when no word is known"""


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """N titles in CSR form."""

    indptr: Int64Array
    """(N + 1,)"""
    ids: Int64Array
    """(nnz,)"""
    weights: FloatArray
    """(nnz,)"""

    @classmethod
    def of(cls, rows: Iterable[SparseRow]) -> SparseRows:
        """Rows put one after the other."""
        own = list(rows)
        indptr = np.concatenate([[0], np.cumsum([len(r.ids) for r in own])]).astype(np.int64)
        ids = np.concatenate([r.ids for r in own]) if own else np.zeros(0, dtype=np.int64)
        weights = np.concatenate([r.weights for r in own]) if own else np.zeros(0, dtype=np.float32)
        return cls(indptr, ids.astype(np.int64), weights.astype(np.float32))

    def row(self, index: int) -> SparseRow:
        """One title; views."""
        own = slice(self.indptr[index], self.indptr[index + 1])
        return SparseRow(self.ids[own], self.weights[own])

    def followed_by(self, more: SparseRows) -> SparseRows:
        """Further titles behind these."""
        indptr = np.concatenate([self.indptr, self.indptr[-1] + more.indptr[1:]])
        ids, weights = np.concatenate([self.ids, more.ids]), np.concatenate([self.weights, more.weights])
        return SparseRows(indptr, ids, weights)

    def select(self, rows: Int64Array) -> SparseRows:
        """The given rows in the given order."""
        return SparseRows.of(self.row(int(row)) for row in rows)

    def __len__(self) -> int:
        return len(self.indptr) - 1


@dataclass(frozen=True, eq=False)
class Postings:
    """N titles by word: which of them have it, and with what weight; ``candidate_arithmetic`` compares a title by them."""

    indptr: Int64Array
    """(V + 1,)"""
    rows: Int64Array
    """(nnz,) ascending within a word"""
    weights: FloatArray
    """(nnz,)"""
    count: int
    """N"""

    @classmethod
    def of(cls, titles: SparseRows, vocabulary: int) -> Postings:
        """The transpose of ``titles``."""
        rows = np.repeat(np.arange(len(titles), dtype=np.int64), np.diff(titles.indptr))
        order = np.argsort(titles.ids, kind="stable")
        counts = np.bincount(titles.ids, minlength=vocabulary)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(indptr, rows[order], titles.weights[order], len(titles))


@dataclass(frozen=True, eq=False)
class TitleWords:
    """The vocabulary. Thread-safe."""

    words: tuple[str, ...]
    """(V,) sorted"""
    idf: FloatArray
    """(V,)"""

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def row(self, title: str) -> SparseRow:
        """One title, normalised as the encoder's are."""
        known = self._ids
        counts = Counter(known[term] for term in terms(title) if term in known)
        ids = np.asarray(sorted(counts), dtype=np.int64)
        raw = np.asarray([counts[int(i)] for i in ids], dtype=np.float64)
        weights = (1.0 + np.log(raw)) * self.idf[ids] if len(ids) else raw
        length = float(np.sqrt((weights * weights).sum()))
        return SparseRow(ids, np.asarray(weights / max(length, 1e-12), dtype=np.float32))

    def rows(self, titles: Sequence[str]) -> SparseRows:
        """Many titles."""
        return SparseRows.of(self.row(title) for title in titles)

    def pack(self) -> Uint8Array:
        """The words as bytes, for an array file."""
        return np.frombuffer("\n".join(self.words).encode("utf-8"), dtype=np.uint8)

    @classmethod
    def unpack(cls, packed: Uint8Array, idf: FloatArray) -> TitleWords:
        """The inverse of ``pack``. Raises ValueError when the numbers differ."""
        text = packed.tobytes().decode("utf-8")
        words = tuple(text.split("\n")) if text else ()
        if len(words) != len(idf):
            raise ValueError(f"{len(words)} words have {len(idf)} weights")
        return cls(words, idf)


@cache
def _word_of_any_script() -> re.Pattern[str]:
    places = chain.from_iterable(range(*own) for own in _MARKS_LIE)
    marks = "".join(chr(own) for own in places if unicodedata.category(chr(own)) in ("Mn", "Mc"))
    return re.compile(f"[{_UNSPACED}][{marks}]*|[^\\W{_UNSPACED}](?:[^\\W{_UNSPACED}]|[{marks}])*")


def terms(title: str) -> list[str]:
    """Words and pairs of neighbouring words of a title, in lower case; repeats stay.

    A word is a run of letters, digits and _ with the marks on them; in scripts without spaces, one character.
    """
    text = normalise_title(title).lower()
    words = (_WORD if text.isascii() else _word_of_any_script()).findall(text)
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def fit_title_words(titles: Iterable[str], least: int = 2, most: int = MOST_WORDS) -> TitleWords:
    """Vocabulary of words and pairs that stand in at least ``least`` titles; of more than ``most``, the frequent ones."""
    seen: Counter[str] = Counter()
    count = 0
    for title in titles:
        seen.update(set(terms(title)))
        count += 1
    kept = sorted((term for term, n in seen.items() if n >= least), key=lambda term: (-seen[term], term))[:most]
    words = tuple(sorted(kept))
    frequency = np.asarray([seen[word] for word in words], dtype=np.float64)
    return TitleWords(words, np.asarray(1.0 + np.log((1.0 + count) / (1.0 + frequency)), dtype=np.float32))
