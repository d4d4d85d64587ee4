"""Polyvore's two tasks on plain scores: fill in the blank, and outfit compatibility.

Knows no outfits and no model; whoever scores candidates or outfits gets the figure.
Source: Han et al. 2017, Learning Fashion Compatibility with Bidirectional LSTMs.
"""

from __future__ import annotations

import numpy as np

from mufin.inputs import BoolArray, Int64Array
from mufin.metrics import Float64Array


def fill_in_the_blank_accuracy(scores: Float64Array, answers: Int64Array) -> float:
    """Share of questions whose answer scores best of its candidates. scores (N, C), answers (N,) columns.

    Candidates that tie for the best share the point: the data set lists the answer first, so that any rule by
    position would be a gift. -inf pads questions with fewer candidates. NaN for no question at all.
    """
    if scores.ndim != 2 or answers.shape != scores.shape[:1]:
        raise ValueError(f"scores are {scores.shape}, answers {answers.shape}: need (N, C) and (N,)")
    if np.isnan(scores).any():
        raise ValueError(f"question {int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])} has a score that is NaN")
    if len(answers) == 0:
        return float("nan")
    if answers.min() < 0 or answers.max() >= scores.shape[1]:
        raise ValueError(f"answers are {answers.min()}..{answers.max()}, there are {scores.shape[1]} candidates")
    own = scores[np.arange(len(answers)), answers]
    if (own == -np.inf).any():
        raise ValueError(f"the answer of question {int(np.flatnonzero(own == -np.inf)[0])} is padding (-inf)")
    best = scores == scores.max(axis=1, keepdims=True)
    return float((best[np.arange(len(answers)), answers] / best.sum(axis=1)).mean())


def compatibility_auc(scores: Float64Array, compatible: BoolArray) -> float:
    """Chance that a compatible outfit scores above an incompatible one, ties counting half. scores, compatible (N,).

    By the rank sum, tied scores sharing their mean rank. NaN when there is only one kind of outfit.
    """
    if scores.ndim != 1 or compatible.shape != scores.shape or compatible.dtype != np.bool_:
        raise ValueError(
            f"scores are {scores.shape}, compatible {compatible.shape} of {compatible.dtype}: need (N,) and (N,) bool"
        )
    if np.isnan(scores).any():
        raise ValueError(f"outfit {int(np.flatnonzero(np.isnan(scores))[0])} has a score that is NaN")
    good = int(compatible.sum())
    bad = len(scores) - good
    if good == 0 or bad == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = float(mean_rank[inverse][compatible].sum())
    return (rank_sum - good * (good + 1) / 2.0) / (good * bad)
