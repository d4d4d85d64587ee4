"""The learned combination: features that say what they are called, arithmetic that is plain, files that are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mufin.candidate_arithmetic import arithmetic
from mufin.combination import (
    FEATURES,
    Combination,
    candidate_features,
    read_combination,
    write_combination,
)
from mufin.errors import BundleError
from mufin.evidence import ProductEvidence, Votes
from mufin.inputs import FloatArray, Int64Array
from mufin.related_labels import LabelNeighbours, RelatedLabels
from mufin.relevance import Relevance
from mufin.vector_rows import VectorRows

F = len(FEATURES)


def votes(best: float, near: dict[int, float], wide: dict[int, float]) -> Votes:
    """Votes for labels by their number."""
    labels = sorted(near | wide)
    of_near, of_wide = (np.array([own.get(label, 0.0) for label in labels], np.float32) for own in (near, wide))
    return Votes(np.array(labels, np.int64), of_near, of_wide, best, np.zeros(0, np.int64))


EVIDENCE = ProductEvidence(
    votes(0.7, {1: 0.9}, {1: 0.5, 4: 0.25}), votes(0.6, {}, {4: 1.0}), votes(0.65, {2: 0.75}, {2: 0.25, 4: 0.5}),
    np.array([0, 0, 0.5, 0, 1], np.float32), np.array([0, 0.3, 0.1, 0, -0.2], np.float32),
    np.array([0.6, 0.8], np.float32), VectorRows.of(np.array([[1, 0], [0, 1], [1, 0], [0, 0], [0.6, 0.8]])),
    np.array([0.9, 0.5, 0.1, 0.9], np.float32),
    Relevance.from_pairs(np.array([1, 1, 1, 4, 4, 4, 3]), np.array([0, 1, 2, 0, 3, 1, 2]), 5, 4),
    RelatedLabels(
        LabelNeighbours(np.array([[1], [4], [1], [1], [2]]), np.array([[1], [1], [0.5], [1], [0]], np.float32)),
        LabelNeighbours(np.array([[1], [2], [4], [1], [1]]), np.array([[1], [0.5], [1], [0], [1]], np.float32)),
    ),
    arithmetic("numba"),
)  # fmt: skip
LABELS = np.array([1, 2, 4], np.int64)
FREQUENCY = np.array([9, 3, 0, 1, 7], np.int64)


def features(labels: Int64Array = LABELS, order: Int64Array | None = None) -> FloatArray:
    """Of three candidates, in any order."""
    shortlist, classifier = np.array([0.9, 0.8, 0.1], np.float32), np.array([0.2, 0.2, 0.4], np.float32)
    chosen = np.arange(3) if order is None else order
    return candidate_features(
        labels[chosen], shortlist[chosen], classifier[chosen], EVIDENCE, FREQUENCY, True, False
    )  # fmt: skip


def column(name: str, matrix: FloatArray) -> list[float]:
    """One feature of all candidates."""
    return [round(float(v), 4) for v in matrix[:, FEATURES.index(name)]]


def test_features_are_what_their_names_say() -> None:
    """Scores, ratios to the best, places with ties shared, and the facts of label and product."""
    found = features()
    assert found.shape == (3, F) and found.dtype == np.float32
    assert column("shortlist.score", found) == [0.9, 0.8, 0.1]
    assert column("shortlist.ratio", found) == [1.0, 0.8889, 0.1111]
    assert column("classifier.place", found) == [0.7071, 0.7071, 1.0]
    assert column("products_near.score", found) == [0.9, 0.0, 0.0]
    assert column("words_wide.score", found) == [0.0, 0.0, 1.0]
    assert column("title_match.score", found) == [0.0, 0.5, 1.0]
    assert column("titles_near.score", found) == [0.0, 0.75, 0.0]
    assert column("titles_wide.ratio", found) == [0.0, 0.5, 1.0]
    assert column("sentence_match.score", found) == [0.8, 0.6, 0.9999]  # of what float16 makes of .6 and .8
    assert column("ridge.score", found) == [0.3, 0.1, -0.2]
    assert column("own_best.score", found) == [0.9, 0.0, 0.9]
    assert column("own_second.score", found) == [0.5, 0.0, 0.9]
    assert column("own_mean.score", found) == [0.5, 0.0, 0.7667]
    assert column("like_ridge.score", found) == [-0.2, 0.15, 0.0]
    assert column("like_titles.score", found) == [0.5, 0.0, 0.0]
    assert column("companions.score", found) == [0.125, 0.5, 0.0]
    assert column("log_frequency", found) == [round(float(np.log(4)), 4), 0.0, round(float(np.log(8)), 4)]
    assert column("never_trained", found) == [0.0, 1.0, 0.0]
    assert column("best_product", found) == [0.7] * 3 and column("best_title", found) == [0.65] * 3
    assert column("has_images", found) == [0.0] * 3


def test_the_order_of_candidates_says_nothing() -> None:
    """Features move with their label."""
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(features(order=order), features()[order], atol=1e-6)


def test_rounding_makes_no_place() -> None:
    """Scores that differ in the last bits share a place, those that differ do not."""
    shortlist = np.array([0.9, 0.9 - 2e-7, 0.8999], np.float32)
    found = candidate_features(LABELS, shortlist, shortlist, EVIDENCE, FREQUENCY, True, False)
    assert column("shortlist.place", found) == [1.0, 1.0, 0.5774]


def test_a_label_beyond_the_evidence_has_none() -> None:
    """Added since training: no frequency, no votes, no match."""
    found = features(np.array([1, 2, 5], np.int64))
    assert column("never_trained", found)[2] == 1.0
    scorers = ("title_match", "words_wide", "products_wide", "titles_near", "sentence_match", "ridge", "own_best", "own_mean",
               "like_ridge", "companions")  # fmt: skip
    assert [column(f"{name}.score", found)[2] for name in scorers] == [0.0] * len(scorers)


def network(hidden: int) -> Combination:
    """Random weights."""
    random = np.random.default_rng(hidden)
    return Combination(
        random.normal(size=F).astype(np.float32), random.uniform(1, 2, F).astype(np.float32),
        random.normal(size=(F, hidden)).astype(np.float32), random.normal(size=hidden).astype(np.float32),
        random.normal(size=hidden or F).astype(np.float32), 0.5,
    )  # fmt: skip


@pytest.mark.parametrize(("hidden", "tail"), [(0, 0.0), (4, 0.0), (4, -0.25)])
def test_scores_are_a_perceptron_of_standardised_features(hidden: int, tail: float, tmp_path: Path) -> None:
    """Against loops, and the same after a file, with and without a part for rare labels."""
    combination, matrix = replace(network(hidden), tail=tail), features()
    expected = []
    for row in matrix:
        x = [(v - m) / s for v, m, s in zip(row, combination.mean, combination.spread, strict=True)]
        if hidden:
            x = [
                max(0.0, sum(v * w for v, w in zip(x, combination.hidden_weight[:, unit], strict=True)) + b)
                for unit, b in enumerate(combination.hidden_bias)
            ]
        score = sum(v * w for v, w in zip(x, combination.output_weight, strict=True)) + 0.5
        expected.append(score + tail * row[FEATURES.index("log_frequency")])
    np.testing.assert_allclose(combination(matrix), expected, rtol=1e-4)
    write_combination(tmp_path / "c.npz", combination)
    with np.load(tmp_path / "c.npz") as arrays:
        assert ("tail" in arrays) == bool(tail)
    np.testing.assert_array_equal(read_combination(tmp_path / "c.npz")(matrix), combination(matrix))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("features", np.frombuffer(b"shortlist.score", np.uint8), "combines other features"),
        ("mean", np.zeros(3, np.float32), "shapes are"),
        ("output_bias", None, "cannot be read"),
    ],
)
def test_another_versions_file_is_refused(name: str, value: FloatArray | None, says: str, tmp_path: Path) -> None:
    """Features by other names, arrays of other shapes, arrays that are gone."""
    path = tmp_path / "c.npz"
    write_combination(path, network(4))
    with np.load(path) as arrays:
        values = dict(arrays)
    if value is None:
        del values[name]
    else:
        values[name] = value
    np.savez(path, **values)
    with pytest.raises(BundleError, match=says):
        read_combination(path)
