"""Head, torso and tail: what frequent and rare labels contribute to a figure.

Knows no model and no files; a label is rare by its training pairs alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mufin.inputs import Int64Array
from mufin.metrics import CUTS, RECALL_CUTS, Float64Array, RowScores, ranking_head, relevant, row_scores
from mufin.relevance import Relevance

BANDS = ("head", "torso", "tail")


@dataclass(frozen=True, slots=True, eq=False)
class LabelBands:
    """Which band each label belongs to."""

    of_label: Int64Array
    """(L,) index into ``BANDS``"""
    frequency: Int64Array
    """(L,) training pairs"""

    def describe(self) -> dict[str, dict[str, int]]:
        """Band -> labels, training pairs, and lowest and highest training frequency (0 for an empty band)."""
        facts = {}
        for number, name in enumerate(BANDS):
            own = self.frequency[self.of_label == number]
            facts[name] = {
                "labels": len(own),
                "train_pairs": int(own.sum()),
                "lowest_frequency": int(own.min(initial=own.max(initial=0))),
                "highest_frequency": int(own.max(initial=0)),
            }
        return facts


def label_bands(train_frequency: Int64Array) -> LabelBands:
    """Labels by falling frequency: those that begin in the first third of all training pairs are head, and so on.

    Labels of one frequency share a band: it is decided by the pairs of strictly more frequent labels. Labels
    without a training pair are tail.
    """
    total = int(train_frequency.sum())
    distinct, inverse = np.unique(train_frequency, return_inverse=True)
    pairs = np.bincount(inverse, weights=train_frequency.astype(np.float64), minlength=len(distinct))
    above = np.concatenate([np.cumsum(pairs[::-1])[::-1][1:], [0.0]])[: len(distinct)]
    # In thirds of pairs, as integers: 1/3 has no exact float.
    band = np.where(3 * above < total, 0, np.where(3 * above < 2 * total, 1, 2))
    band = np.where(distinct == 0, 2, band)
    return LabelBands(band[inverse].astype(np.int64), train_frequency)


def score_bands(labels: Int64Array, relevance: Relevance, bands: LabelBands) -> RowScores:
    """P@k and R@10 split by band, e.g. ``P@1 tail``: the three add up to ``P@1`` over all labels.

    ``relevant tail`` is the mean share of a product's relevant labels that are tail: what ``R@10 tail`` cannot exceed.
    """
    depth, wide = max(CUTS + RECALL_CUTS), max(RECALL_CUTS)
    ranked = ranking_head(labels, relevance, depth)
    rows = np.flatnonzero(relevance.row_sizes() > 0)
    hits, ranked = relevant(ranked, relevance)[rows], ranked[rows]
    count = relevance.row_sizes()[rows].astype(np.float64)
    of_ranked = np.where(ranked >= 0, bands.of_label[ranked], -1) if len(bands.of_label) else ranked
    own = relevance.select(rows)
    own_rows, own_labels = own.to_pairs()
    one = np.ones(len(rows))
    figures: dict[str, tuple[Float64Array, Float64Array]] = {}
    for number, name in enumerate(BANDS):
        found = np.cumsum(hits & (of_ranked == number), axis=1).astype(np.float64)
        for k in CUTS:
            figures[f"P@{k} {name}"] = found[:, k - 1] / k, one
        figures[f"R@{wide} {name}"] = found[:, wide - 1] / count, one
        in_band = np.bincount(own_rows[bands.of_label[own_labels] == number], minlength=len(rows))
        figures[f"relevant {name}"] = in_band / count, one
    return row_scores(figures, rows, len(labels))
