"""P@k, nDCG@k, PSP@k, PSnDCG@k and recall@k of ranked labels, product by product.

Knows no model, no ids and no files. Every figure is a ratio of two sums over products, kept apart until the end, so
that the bootstrap of ``mufin.significance`` can weigh products anew. Definitions and rules: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.relevance import Relevance

Float64Array = npt.NDArray[np.float64]

CUTS = (1, 3, 5)
RECALL_CUTS = (1, 3, 5, 10)
DEPTH = max(CUTS + RECALL_CUTS)
"""Labels of a ranking that any figure looks at."""


@dataclass(frozen=True, slots=True)
class Propensity:
    """How likely a relevant pair was recorded, by its label's training frequency (Jain et al. 2016)."""

    a: float = 0.55
    b: float = 1.5

    def __post_init__(self) -> None:
        if self.a < 0 or self.b <= 0:
            raise ValueError(f"propensity is A={self.a}, B={self.b}: A must not be negative, B must be positive")


AMAZON_PROPENSITY = Propensity(0.6, 2.6)


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """n scored products x m figures, each figure the ratio of two sums over products."""

    names: tuple[str, ...]
    """(m,) such as ``P@1``"""
    numerators: Float64Array
    """(n, m)"""
    denominators: Float64Array
    """(n, m)"""
    rows: Int64Array
    """(n,) which rows of the ranking were scored: those with a relevant label"""
    row_count: int
    """N, rows of the ranking"""

    def values(self) -> dict[str, float]:
        """Every figure; NaN where nothing was scored."""
        return dict(zip(self.names, ratio(self.numerators.sum(0), self.denominators.sum(0)).tolist(), strict=True))

    def attainable(self) -> dict[str, float]:
        """The highest value of each figure F that has an ``F/max`` beside it: the mean of what that divides by."""
        means = self.denominators.sum(0) / max(1, len(self.rows))
        by_name = dict(zip(self.names, means.tolist(), strict=True))
        return {name.removesuffix("/max"): value for name, value in by_name.items() if name.endswith("/max")}

    def joined(self, other: RowScores) -> RowScores:
        """Both sets of figures, of the same products."""
        if not np.array_equal(self.rows, other.rows):
            raise ValueError(f"figures of {len(self.rows)} and of {len(other.rows)} products are not of the same ones")
        return RowScores(
            self.names + other.names,
            np.concatenate([self.numerators, other.numerators], axis=1),
            np.concatenate([self.denominators, other.denominators], axis=1),
            self.rows,
            self.row_count,
        )


def ratio(numerators: Float64Array, denominators: Float64Array) -> Float64Array:
    """Elementwise; 0 / 0 is NaN, silently."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerators / denominators, dtype=np.float64)


def inverse_propensities(
    train_frequency: Int64Array, train_products: int, propensity: Propensity | None = None
) -> Float64Array:
    """(L,) 1 + C (n_l + B)^-A with C = (log N - 1)(B + 1)^A, from the training pairs alone.

    C is not let below 0: a propensity is a probability, and fewer than three training products would give more than 1.
    """
    model = propensity or Propensity()
    scale = max(0.0, np.log(max(1, train_products)) - 1.0) * (model.b + 1.0) ** model.a
    return np.asarray(1.0 + scale * (train_frequency + model.b) ** -model.a, dtype=np.float64)


def order_by_score(scores: FloatArray, labels: Int64Array) -> Int64Array:
    """Candidates (N, K), padded with -1, best first: by falling score, ties to the smaller label, padding last."""
    real = labels >= 0
    if np.isnan(np.where(real, scores, 0)).any():
        row = int(np.flatnonzero(np.isnan(np.where(real, scores, 0)).any(axis=1))[0])
        raise ValueError(f"row {row} has a score that is NaN: it cannot be ranked")
    order = np.lexsort((labels, -np.where(real, scores, -np.inf), ~real))
    return np.take_along_axis(labels, order, axis=1)


def remove_from_ranking(labels: Int64Array, excluded: Relevance) -> Int64Array:
    """Excluded pairs (N x L) taken out of a ranking (N, K); what was ranked behind them moves up."""
    _check_shapes(labels, excluded)
    kept = np.where(relevant(labels, excluded), -1, labels)
    return np.take_along_axis(kept, np.argsort(kept < 0, axis=1, kind="stable"), axis=1)


def remove_from_relevance(relevance: Relevance, excluded: Relevance) -> Relevance:
    """Excluded pairs (N x L) taken out of what counts as relevant."""
    shapes = [(pairs.row_count, pairs.label_count) for pairs in (relevance, excluded)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"relevance is {shapes[0]}, the excluded pairs are {shapes[1]}: need the same (N, L)")
    rows, labels = relevance.to_pairs()
    stays = ~np.isin(_keys(rows, labels, relevance), _keys(*excluded.to_pairs(), relevance))
    return Relevance.from_pairs(rows[stays], labels[stays], *shapes[0])


def relevant(labels: Int64Array, relevance: Relevance) -> BoolArray:
    """(N, K) bool: which ranked labels are relevant to their row; padding is not."""
    pairs = _keys(*relevance.to_pairs(), relevance)
    if not len(pairs):
        return np.zeros(labels.shape, dtype=np.bool_)
    wanted = _keys(np.arange(len(labels))[:, None], labels, relevance)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.asarray((pairs[place] == wanted) & (labels >= 0), dtype=np.bool_)


def score_rows(
    labels: Int64Array, relevance: Relevance, weights: Float64Array | None = None,
    cuts: Sequence[int] = CUTS, recall_cuts: Sequence[int] = RECALL_CUTS,
) -> RowScores:  # fmt: skip
    """All figures of a ranking (N, K), padded with -1 at the end, which may be shorter than a cut.

    ``weights``: (L,) inverse propensities; without them there are no PSP and PSnDCG. Rows without a relevant label
    are left out of every mean: nothing could be right there. Raises ValueError for what is no ranking.
    """
    depth = max((*cuts, *recall_cuts))
    ranked = ranking_head(labels, relevance, depth)
    rows = np.flatnonzero(relevance.row_sizes() > 0)
    hits = relevant(ranked, relevance)[rows].astype(np.float64)
    count = relevance.row_sizes()[rows].astype(np.float64)
    found = np.cumsum(hits, axis=1)
    discounts = 1.0 / np.log2(np.arange(depth) + 2.0)
    gained = np.cumsum(hits * discounts, axis=1)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    one = np.ones(len(rows))
    figures: dict[str, tuple[Float64Array, Float64Array]] = {}
    for k in cuts:
        figures[f"P@{k}"] = found[:, k - 1] / k, one
    for k in cuts:
        figures[f"nDCG@{k}"] = gained[:, k - 1] / ideal[np.minimum(k, count).astype(int)], one
    if weights is not None:
        figures |= _propensity_scored(ranked[rows], hits, relevance.select(rows), weights, cuts, ideal)
    for k in recall_cuts:
        figures[f"R@{k}"] = found[:, k - 1] / count, one
    deep, wide = max(cuts), max(recall_cuts)
    figures[f"P@{deep}/max"] = found[:, deep - 1] / deep, np.minimum(deep, count) / deep
    figures[f"R@{wide}/max"] = found[:, wide - 1] / count, np.minimum(wide, count) / count
    return row_scores(figures, rows, len(labels))


def _propensity_scored(
    ranked: Int64Array, hits: Float64Array, relevance: Relevance, weights: Float64Array, cuts: Sequence[int],
    ideal: Float64Array,
) -> dict[str, tuple[Float64Array, Float64Array]]:  # fmt: skip
    """PSP and PSnDCG as pyxclib has them: the mean over products, divided by the mean of the best attainable."""
    if weights.shape != (relevance.label_count,):
        raise ValueError(
            f"there are {weights.shape} inverse propensities, relevance has {relevance.label_count} labels"
        )
    depth = ranked.shape[1]
    discounts = np.diff(ideal)
    own = hits * np.where(ranked >= 0, weights[ranked], 0.0) if len(weights) else hits
    best = _heaviest(relevance, weights, depth)
    sums, best_sums = np.cumsum(own, axis=1), np.cumsum(best, axis=1)
    gains, best_gains = np.cumsum(own * discounts, axis=1), np.cumsum(best * discounts, axis=1)
    figures = {f"PSP@{k}": (sums[:, k - 1] / k, best_sums[:, k - 1] / k) for k in cuts}
    for k in cuts:
        norm = ideal[np.minimum(k, relevance.row_sizes())]
        figures[f"PSnDCG@{k}"] = gains[:, k - 1] / norm, best_gains[:, k - 1] / norm
    return figures


def _heaviest(relevance: Relevance, weights: Float64Array, depth: int) -> Float64Array:
    """(n, depth): the largest weights of each row's relevant labels, falling, then zeros."""
    rows, indices = relevance.to_pairs()
    order = np.lexsort((-weights[indices], rows))
    place = np.arange(len(rows)) - relevance.indptr[rows]
    best = np.zeros((relevance.row_count, depth))
    kept = place < depth
    best[rows[kept], place[kept]] = weights[indices[order]][kept]
    return best


def row_scores(figures: Mapping[str, tuple[Float64Array, Float64Array]], rows: Int64Array, row_count: int) -> RowScores:
    """Columns (numerator, denominator) by name, put together."""
    numerators, denominators = (np.stack([pair[side] for pair in figures.values()], axis=1) for side in (0, 1))
    return RowScores(tuple(figures), numerators, denominators, rows, row_count)


def ranking_head(labels: Int64Array, relevance: Relevance, depth: int) -> Int64Array:
    """The first ``depth`` columns, padded to that many, after checking that they are a ranking."""
    _check_shapes(labels, relevance)
    head = np.full((len(labels), depth), -1, dtype=np.int64)
    head[:, : min(depth, labels.shape[1])] = labels[:, :depth]
    if head.size and (head.min() < -1 or head.max() >= relevance.label_count):
        raise ValueError(f"ranked labels are {head.min()}..{head.max()}, must lie in -1..{relevance.label_count - 1}")
    gaps = np.flatnonzero(((head[:, :-1] < 0) & (head[:, 1:] >= 0)).any(axis=1))
    if len(gaps):
        raise ValueError(f"row {gaps[0]} of the ranking has a label behind its padding: move -1 to the end")
    ordered = np.sort(head, axis=1)
    repeats = np.flatnonzero(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1))
    if len(repeats):
        raise ValueError(f"row {repeats[0]} of the ranking names a label twice: it would count twice")
    return head


def _check_shapes(labels: Int64Array, relevance: Relevance) -> None:
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"a ranking is (N, K) of integers, got {labels.shape} of {labels.dtype}")
    if len(labels) != relevance.row_count:
        raise ValueError(f"the ranking has {len(labels)} rows, relevance has {relevance.row_count}")


def _keys(rows: Int64Array, labels: Int64Array, relevance: Relevance) -> Int64Array:
    """One number a pair; rising, as ``to_pairs`` gives pairs in order."""
    return np.asarray(rows * max(1, relevance.label_count) + labels, dtype=np.int64)
