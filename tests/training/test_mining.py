"""What a step trains on: clusters, draws and their reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mufin.catalogue import Relevance
from mufin.training.mining import (
    balanced_clusters,
    clustered_batches,
    draw_candidates,
    draw_hard_labels,
    draw_labels,
    random_batches,
    relevance_block,
)


def some_relevance(rows: int = 8, labels: int = 12, seed: int = 0) -> Relevance:
    """Every row has two to four labels."""
    random = np.random.default_rng(seed)
    own = [random.choice(labels, random.integers(2, 5), replace=False) for _ in range(rows)]
    return Relevance.from_pairs(
        np.repeat(np.arange(rows), [len(o) for o in own]), np.concatenate(own).astype(np.int64), rows, labels
    )


def nothing(rows: int, labels: int) -> Relevance:
    """No pairs."""
    none = np.zeros(0, dtype=np.int64)
    return Relevance.from_pairs(none, none, rows, labels)


@pytest.mark.parametrize(("count", "largest"), [(1, 4), (5, 4), (97, 8), (256, 32)])
def test_clusters_cover_every_row_once_and_differ_little_in_size(count: int, largest: int) -> None:
    """Balanced recursive 2-means: a partition, sizes within the bound and within one of each other's halving."""
    vectors = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    clusters = balanced_clusters(vectors, largest, np.random.default_rng(0))
    assert sorted(np.concatenate(clusters).tolist()) == list(range(count))
    sizes = [len(c) for c in clusters]
    assert max(sizes) <= largest
    assert max(sizes) - min(sizes) <= 1


def test_clusters_find_groups_that_are_there() -> None:
    """Two tight groups of equal size come apart exactly."""
    centre = torch.tensor([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 8)
    clusters = balanced_clusters(centre + 0.01 * torch.randn(16, 2), 8, np.random.default_rng(0))
    assert {tuple(sorted(c.tolist())) for c in clusters} == {tuple(range(8)), tuple(range(8, 16))}


def test_batches_keep_clusters_together_and_lose_nothing() -> None:
    """Whole clusters follow one another; a short rest joins the last batch."""
    clusters = [np.arange(i, i + 4) for i in range(0, 36, 4)]
    batches = clustered_batches(clusters, 16, np.random.default_rng(0))
    assert [len(b) for b in batches] == [16, 20]
    assert sorted(np.concatenate(batches).tolist()) == list(range(36))
    assert all(set(range(r - r % 4, r - r % 4 + 4)) <= set(b.tolist()) for b in batches for r in b.tolist())
    assert [len(b) for b in random_batches(10, 4, np.random.default_rng(0))] == [4, 4, 2]


def test_relevance_block_marks_every_relevant_pair_and_duplicates() -> None:
    """In-batch ground truth is the true one, for labels drawn twice, too."""
    relevance = some_relevance()
    rows, labels = np.array([3, 0, 5]), np.array([2, 7, 2, 11, 0])
    plain = [[label in relevance.row(row) for label in labels] for row in rows]
    assert relevance_block(relevance, rows, labels).tolist() == plain


def test_drawn_labels_are_relevant_and_uniform() -> None:
    """Each relevant label of a row comes up about equally often."""
    relevance = some_relevance()
    rows = np.zeros(4000, dtype=np.int64)
    drawn = draw_labels(relevance, rows, np.random.default_rng(0))
    labels, counts = np.unique(drawn, return_counts=True)
    assert labels.tolist() == relevance.row(0).tolist()
    assert counts.min() > 0.8 * 4000 / len(labels)


def test_hard_labels_prefer_far_positives() -> None:
    """Weight 1.01 - cosine: an opposite positive is drawn far more often than an equal one."""
    relevance = Relevance.from_pairs(np.zeros(2, np.int64), np.array([0, 1]), 1, 2)
    products = np.array([[1.0, 0.0]], np.float32)
    labels = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    drawn = [
        draw_hard_labels(relevance, np.array([0]), products, labels, 1, np.random.default_rng(i))[0, 0]
        for i in range(200)
    ]
    assert np.mean(drawn) > 0.95


def test_candidates_hold_what_they_say() -> None:
    """Negatives come from the shortlist without its hardest, positives from anywhere, nothing twice, masked never."""
    relevance, random = some_relevance(), np.random.default_rng(3)
    shortlists = np.stack([random.permutation(12)[:10] for _ in range(8)])
    rows = np.array([6, 1])
    masked = Relevance.from_pairs(np.array([0]), np.array([int(shortlists[6][5])]), 2, 12)
    labels, relevant, real = draw_candidates(
        relevance, masked, rows, shortlists, positives=3, negatives=4, random_negatives=2, drop_hardest=1, random=random
    )
    assert labels.shape == relevant.shape == real.shape == (2, 9)
    for position, row in enumerate(rows):
        own, short = set(relevance.row(row).tolist()), shortlists[row].tolist()
        wrong = [label for label in short if label not in own and label not in masked.row(position)]
        chosen = labels[position][:4][real[position][:4]].tolist()
        assert set(chosen) <= set(wrong[1:]) and len(set(chosen)) == len(chosen)
        right = labels[position][6:][real[position][6:]].tolist()
        assert set(right) <= own and len(right) == min(3, len(own)) == len(set(right))
        assert relevant[position].tolist() == [False] * 6 + real[position][6:].tolist()
        extra = labels[position][4:6][real[position][4:6]]
        assert not set(extra.tolist()) & (own | set(masked.row(position).tolist()))


def test_rows_short_of_material_are_left_out_of_the_loss() -> None:
    """Without wrong labels in the shortlist nothing is invented: the slots are not real."""
    relevance = some_relevance()
    own = relevance.row(2)
    shortlists = np.full((8, 6), -1)
    shortlists[2, : len(own)] = own
    _, relevant, real = draw_candidates(
        relevance, nothing(1, 12), np.array([2]), shortlists, positives=2, negatives=3, random_negatives=0,
        drop_hardest=0, random=np.random.default_rng(0),
    )  # fmt: skip
    assert real[0].tolist() == [False, False, False, True, True]
    assert relevant[0].tolist() == [False, False, False, True, True]
