"""Choosing among ranked labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mufin.scoring import l2_normalise
from service.answers import Ranked
from service.ranking import diversify
from tests.service.memory_model import TITLES, shop


def _slow_mmr(scores: list[float], similarity: list[list[float]], k: int, diversity: float) -> list[int]:
    """Maximal marginal relevance as the paper writes it."""
    picks: list[int] = []
    while len(picks) < min(k, len(scores)):
        left = [i for i in range(len(scores)) if i not in picks]
        worth = {
            i: (1 - diversity) * scores[i] - diversity * (max(similarity[i][j] for j in picks) if picks else 0.0)
            for i in left
        }
        picks.append(max(left, key=lambda i: (worth[i], -i)))
    return picks


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 15), st.floats(0, 1))
def test_diversify_equals_the_plain_slow_version(seed: int, count: int, k: int, diversity: float) -> None:
    """Tolerance: picks may differ only where the two worths are closer than 1e-5."""
    random = np.random.default_rng(seed)
    scores = np.sort(random.random(count).astype(np.float32))[::-1].copy()
    embeddings = l2_normalise(random.normal(size=(count, 4)).astype(np.float32))
    found = diversify(scores, embeddings, k, diversity).tolist()
    similarity = (embeddings @ embeddings.T).tolist()
    expected = _slow_mmr(scores.tolist(), similarity, k, diversity)
    assert sorted(set(found)) == sorted(found)
    assert len(found) == min(k, count)
    for position, (own, other) in enumerate(zip(found, expected, strict=True)):
        if own == other:
            continue
        before = found[:position]

        def worth(i: int, before: list[int] = before) -> float:
            closest = max(similarity[i][j] for j in before) if before else 0.0
            return (1 - diversity) * float(scores[i]) - diversity * closest

        assert abs(worth(own) - worth(other)) < 1e-5
        break


def test_labels_with_the_same_words_collapse_into_the_best_one() -> None:
    """Order of words and case do not count; the first of a group stays, in its place."""
    ranked = Ranked(
        "shortlist",
        np.array([7, 2, 6, 3]),
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        np.zeros(4, np.float32),
        None,
        None,
    )
    assert [TITLES[7], TITLES[6]] == ["jersey cotton blue", "blue cotton jersey"]
    assert ranked.distinct(shop(), None).labels.tolist() == [7, 2, 3]
    assert ranked.distinct(shop(), 2).labels.tolist() == [7, 2]
