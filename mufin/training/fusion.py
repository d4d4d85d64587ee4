"""Fusion weight and calibration, both fitted on the validation split alone.

Know no network: scored candidates and relevance in, numbers out. Source: mufin.md section 11.5.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from mufin.catalogue import Relevance
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.training.evaluation import Candidates, order_by

Float64Array = np.ndarray[tuple[int], np.dtype[np.float64]]
ALPHAS = tuple(round(0.05 * step, 2) for step in range(21))


def relevant_at(labels: Int64Array, relevance: Relevance) -> BoolArray:
    """(N, K) bool: whether each candidate is relevant to its product; padding is not."""
    return np.stack([np.isin(row, relevance.row(i)) & (row >= 0) for i, row in enumerate(labels)])


def choose_fusion_weight(candidates: Candidates, relevance: Relevance) -> tuple[float, dict[str, float]]:
    """alpha of the best P@1 + P@5; of equals, the one nearest to .5. Returns it and P@1 of every alpha tried."""
    curve, best = {}, (-1.0, 0.0, 0.5)
    for alpha in ALPHAS:
        with np.errstate(invalid="ignore"):
            fused = alpha * candidates.classifier_scores + (1 - alpha) * candidates.shortlist_scores
        hits = relevant_at(order_by(fused.astype(np.float32), candidates.labels)[0][:, :5], relevance)
        first, five = float(hits[:, 0].mean()), float(hits.sum(axis=1).mean() / 5)
        curve[str(alpha)] = first
        best = max(best, (round(first + five, 9), -abs(alpha - 0.5), alpha))
    return best[2], curve


def fit_calibration(scores: FloatArray, relevant: BoolArray) -> tuple[float, float]:
    """a, b of probability = sigmoid(a * score + b) by maximum likelihood with Platt's smoothed targets.

    scores, relevant: (N,), finite. A set with only one kind of outcome gives a flat curve at Platt's prior.
    """
    right, wrong = int(relevant.sum()), int((~relevant).sum())
    targets = np.where(relevant, (right + 1) / (right + 2), 1 / (wrong + 2))
    mean, spread = float(scores.mean()), float(scores.std())
    if spread < 1e-9 or right == 0 or wrong == 0:
        rate = float(targets.mean())
        return 0.0, float(np.log(rate / (1 - rate)))
    z = (scores.astype(np.float64) - mean) / spread

    def negative_log_likelihood(parameters: Float64Array) -> tuple[float, Float64Array]:
        logits = parameters[0] * z + parameters[1]
        loss = np.logaddexp(0.0, logits) - targets * logits
        difference = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - targets
        return float(loss.mean()), np.array([(difference * z).mean(), difference.mean()])

    found = minimize(negative_log_likelihood, np.array([1.0, 0.0]), jac=True, method="BFGS")
    slope, offset = (float(v) for v in found.x)
    return slope / spread, offset - slope * mean / spread
