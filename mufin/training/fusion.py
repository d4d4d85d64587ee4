"""The fusion weight, chosen on the validation split alone.

Knows no network: scored candidates and relevance in, numbers out. docs/network.md tells how the release fuses.
"""

from __future__ import annotations

import numpy as np

from mufin.catalogue import Relevance
from mufin.inputs import BoolArray, Int64Array
from mufin.training.evaluation import Candidates, order_by

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
