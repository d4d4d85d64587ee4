"""Arithmetic over one product's candidates: plain numpy, which is the reference, or the same compiled.

Arrays in, arrays out; but for titles' words it knows nothing of what they are of. ``arithmetic(kernel)`` gives either;
both have the functions of ``Arithmetic``. numba is imported only when it is asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol, cast

import numpy as np

from mufin.compilation import Kernel, begin, compile_only, kept
from mufin.inputs import FloatArray, Int64Array
from mufin.title_words import Postings, SparseRow


class Arithmetic(Protocol):
    """Thread-safe. Float arrays are float32 but where it is said otherwise."""

    def best(self, scores: FloatArray, most: int, above_zero: bool) -> Int64Array:
        """Where the ``most`` highest of (n,) scores stand, falling, ties to the first; those above 0 alone where asked."""

    def word_cosines(self, title: SparseRow, postings: Postings) -> FloatArray:
        """(N,) cosines of a title with those of ``postings``."""

    def votes(
        self, rows: Int64Array, cosines: FloatArray, first: Int64Array, labels: Int64Array, near: int,
        near_sharpness: float, wide_sharpness: float,
    ) -> tuple[Int64Array, FloatArray, FloatArray]:  # fmt: skip
        """What (n,) ``rows``, nearest first, vote for: labels, ascending, and their shares of near and of wide votes.

        ``cosines``: (n,) theirs. A row of cosine c votes exp(sharpness * (c - best)); the first ``near`` rows for the
        former, all for the latter.
        ``first``, ``labels``: the rows' labels in CSR form.
        """

    def own_products(self, labels: Int64Array, first: Int64Array, rows: Int64Array, cosines: FloatArray) -> FloatArray:
        """(3, m) best, second best and mean cosine of the rows of (m,) labels; 0 where there is none.

        ``first``, ``rows``: those of L labels in CSR form; labels beyond L have none.
        """

    def spread(self, labels: Int64Array, scores: FloatArray, neighbours: Int64Array, weights: FloatArray) -> FloatArray:
        """(m,) what (L,) scores say of the (L, R) weighted neighbours of (m,) labels; 0 for labels beyond L."""

    def standings(
        self, scores: FloatArray, falling: FloatArray, leading: int, widest: float, same: float
    ) -> FloatArray:
        """(S, n) scores of S scorers -> (n, 4 S): each score, its ratio to the scorer's best, its place, 1 / sqrt of it
        counted from 1, and its distance from the mean of the ``leading`` best in their deviations, ``widest`` at most.

        ``falling``: (S, n) -scores sorted along n. Scores that differ by at most the share ``same`` of the best have one
        place. n is 1 at least.
        """


class _Numpy:
    def word_cosines(self, title: SparseRow, postings: Postings) -> FloatArray:
        scores = np.zeros(postings.count, dtype=np.float32)
        for word, weight in zip(title.ids.tolist(), title.weights.tolist(), strict=True):
            own = slice(postings.indptr[word], postings.indptr[word + 1])
            scores[postings.rows[own]] += weight * postings.weights[own]  # a title has a word once: no row repeats
        return scores

    def best(self, scores: FloatArray, most: int, above_zero: bool) -> Int64Array:
        # Not by argpartition, which chooses among ties by the processor. Scores above 0 apart from the others: few
        # among many zeros, as words give them, are what a partition is slowest with.
        rows = np.flatnonzero(scores > 0)
        if above_zero or len(rows) >= most:
            rows = _highest(scores, rows, most)
        else:
            rows = np.concatenate([rows, _highest(scores, np.flatnonzero(scores <= 0), most - len(rows))])
        return np.asarray(rows[np.argsort(-scores[rows], kind="stable")], dtype=np.int64)

    def votes(
        self, rows: Int64Array, cosines: FloatArray, first: Int64Array, labels: Int64Array, near: int,
        near_sharpness: float, wide_sharpness: float,
    ) -> tuple[Int64Array, FloatArray, FloatArray]:  # fmt: skip
        sizes = first[rows + 1] - first[rows]
        found, place = np.unique(labels[_entries(first[rows], sizes)], return_inverse=True)
        shares = []
        for count, sharpness in ((near, near_sharpness), (len(rows), wide_sharpness)):
            weights = np.exp(np.float32(sharpness) * (cosines[:count] - cosines[0]))
            each = np.repeat(weights / weights.sum(), sizes[:count])
            counted = np.bincount(place[: len(each)], weights=each, minlength=len(found))
            shares.append(counted.astype(np.float32))
        return found, shares[0], shares[1]

    def own_products(self, labels: Int64Array, first: Int64Array, rows: Int64Array, cosines: FloatArray) -> FloatArray:
        found = np.zeros((3, len(labels)), dtype=np.float32)
        known = np.flatnonzero(labels < len(first) - 1)
        sizes = first[labels[known] + 1] - first[labels[known]]
        known, sizes = known[sizes > 0], sizes[sizes > 0]
        if not len(known):
            return found
        own = cosines[rows[_entries(first[labels[known]], sizes)]]
        starts = np.cumsum(sizes) - sizes
        highest = np.maximum.reduceat(own, starts)
        leads = own == np.repeat(highest, sizes)
        following = np.maximum.reduceat(np.where(leads, np.float32(-2), own), starts)
        # Two products of one title lead together.
        second = np.where(np.add.reduceat(leads.astype(np.int64), starts) > 1, highest, following)
        found[0, known], found[1, known] = highest, np.where(sizes > 1, second, 0)
        found[2, known] = np.add.reduceat(own, starts) / sizes
        return found

    def spread(self, labels: Int64Array, scores: FloatArray, neighbours: Int64Array, weights: FloatArray) -> FloatArray:
        found = np.zeros(len(labels), dtype=np.float32)
        known = np.flatnonzero(labels < len(neighbours))
        own = labels[known]
        found[known] = (weights[own] * scores[neighbours[own]]).sum(axis=1)
        return found

    def standings(
        self, scores: FloatArray, falling: FloatArray, leading: int, widest: float, same: float
    ) -> FloatArray:
        ahead = -falling[:, :leading]
        mean, deviation = ahead.mean(axis=1, keepdims=True), ahead.std(axis=1, keepdims=True)
        best = np.maximum(np.abs(falling[:, :1]), np.float32(1e-6))
        distance = np.clip((scores - mean) / (deviation + np.float32(1e-6)), -widest, widest)
        wanted = -scores - np.float32(same) * best
        before = np.stack([own.searchsorted(places) for own, places in zip(falling, wanted, strict=True)])
        place = (1.0 / np.sqrt(1.0 + before)).astype(np.float32)
        views = np.stack([scores, scores / best, place, distance], axis=1)
        return np.asarray(views.reshape(-1, scores.shape[1]).T, dtype=np.float32)


def _highest(scores: FloatArray, rows: Int64Array, most: int) -> Int64Array:
    """Of ascending ``rows`` the ``most`` with the highest scores: those above the least, then the first of those at it."""
    if len(rows) <= most:
        return rows
    own = scores[rows]
    least = np.partition(own, len(own) - most)[len(own) - most]
    above = rows[own > least]
    return np.concatenate([above, rows[own == least][: most - len(above)]])


def _entries(starts: Int64Array, sizes: Int64Array) -> Int64Array:
    """Where the entries of CSR rows lie, row after row."""
    ends = np.cumsum(sizes)
    return np.asarray(np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes), dtype=np.int64)


class _Compiled:
    """Takes arrays as they come, hands them on as the kernels were compiled for."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def word_cosines(self, title: SparseRow, postings: Postings) -> FloatArray:
        scores = np.zeros(postings.count, dtype=np.float32)
        self._kernels.add_weights(
            _whole(title.ids), _floats(title.weights), _whole(postings.indptr), _whole(postings.rows),
            _floats(postings.weights), scores,
        )  # fmt: skip
        return scores

    def best(self, scores: FloatArray, most: int, above_zero: bool) -> Int64Array:
        return cast(Int64Array, self._kernels.best(_floats(scores), most, above_zero))

    def votes(
        self, rows: Int64Array, cosines: FloatArray, first: Int64Array, labels: Int64Array, near: int,
        near_sharpness: float, wide_sharpness: float,
    ) -> tuple[Int64Array, FloatArray, FloatArray]:  # fmt: skip
        found: tuple[Int64Array, FloatArray, FloatArray] = self._kernels.votes(
            _whole(rows), _floats(cosines), _whole(first), _whole(labels), near, np.float32(near_sharpness),
            np.float32(wide_sharpness),
        )  # fmt: skip
        return found

    def own_products(self, labels: Int64Array, first: Int64Array, rows: Int64Array, cosines: FloatArray) -> FloatArray:
        found = self._kernels.own_products(_whole(labels), _whole(first), _whole(rows), _floats(cosines))
        return cast(FloatArray, found)

    def spread(self, labels: Int64Array, scores: FloatArray, neighbours: Int64Array, weights: FloatArray) -> FloatArray:
        found = self._kernels.spread(_whole(labels), _floats(scores), _whole(neighbours), _floats(weights))
        return cast(FloatArray, found)

    def standings(
        self, scores: FloatArray, falling: FloatArray, leading: int, widest: float, same: float
    ) -> FloatArray:
        found = self._kernels.standings(
            _floats(scores), _floats(falling), leading, np.float32(widest), np.float32(same)
        )  # fmt: skip
        return cast(FloatArray, found)


def _floats(array: FloatArray) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _whole(array: Int64Array) -> Int64Array:
    return np.ascontiguousarray(array, dtype=np.int64)


@cache
def arithmetic(kernel: Kernel) -> Arithmetic:
    """By ``kernel``. Raises ConfigError when numba is asked for and cannot be imported."""
    return _Compiled(_kernels()) if kernel == "numba" else _Numpy()


def compile_here() -> None:
    """Compile for the CPU that numba is set to, without running it."""
    own = _Compiled(compile_only(_kernels()))
    floats, whole = np.zeros(2, dtype=np.float32), np.zeros(2, dtype=np.int64)
    own.best(floats, 1, True)
    own.word_cosines(SparseRow(whole, floats), Postings(whole, whole, floats, 2))
    own.votes(whole, floats, whole, whole, 1, 1.0, 1.0)
    own.own_products(whole, whole, whole, floats)
    own.spread(whole, floats, whole[None], floats[None])
    own.standings(floats[None], floats[None], 1, 1.0, 1.0)


def _kernels() -> Any:
    begin("install it, or open the bundle with kernel='numpy'")
    from mufin import candidate_kernels

    return kept(candidate_kernels)
