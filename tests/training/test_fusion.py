"""The fusion weight from the validation split."""

from __future__ import annotations

import numpy as np

from mufin.catalogue import Relevance
from mufin.scoring import ScoreSpec
from mufin.training.evaluation import Candidates, order_by, rank_candidates
from mufin.training.fusion import choose_fusion_weight


def candidates(shortlist: list[list[float]], classifier: list[list[float]]) -> Candidates:
    """Labels 0..K-1 for every product."""
    labels = np.tile(np.arange(len(shortlist[0])), (len(shortlist), 1))
    return Candidates(labels, np.array(shortlist, np.float32), np.array(classifier, np.float32))


def test_the_better_scorer_gets_the_weight() -> None:
    """With only one scorer right, the fusion weight goes to its side."""
    relevance = Relevance.from_pairs(np.arange(2), np.array([1, 0]), 2, 2)
    right, wrong = [[0.1, 0.9], [0.9, 0.1]], [[0.9, 0.1], [0.1, 0.9]]
    assert choose_fusion_weight(candidates(wrong, right), relevance)[0] > 0.5
    assert choose_fusion_weight(candidates(right, wrong), relevance)[0] < 0.5
    assert choose_fusion_weight(candidates(right, right), relevance)[0] == 0.5


def test_padding_is_ranked_last_whatever_the_weight() -> None:
    """-1 with -inf on both sides never comes before a label, at alpha 0 and 1 neither."""
    padded = Candidates(
        np.array([[3, -1]]), np.array([[-0.5, -np.inf]], np.float32), np.array([[-0.9, -np.inf]], np.float32)
    )
    for alpha in (0.0, 0.4, 1.0):
        ranked = rank_candidates(padded, np.array([0]), ScoreSpec(fusion_weight=alpha))
        assert all(rows.tolist() == [[3, -1]] for rows in ranked.rows.values())


def test_ties_go_to_the_smaller_label() -> None:
    """The stated rule."""
    labels, _ = order_by(np.array([[0.5, 0.5, 0.9]], np.float32), np.array([[7, 2, 9]]))
    assert labels.tolist() == [[9, 2, 7]]
