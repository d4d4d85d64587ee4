"""Bootstrap intervals and paired comparison, against plain loops and known cases; Polyvore's tasks likewise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mufin import significance
from mufin.metrics import RowScores, row_scores, score_rows
from mufin.polyvore_tasks import compatibility_auc, fill_in_the_blank_accuracy
from mufin.relevance import Relevance
from mufin.significance import Bootstrap, compare, intervals


def made_scores(seed: int, products: int = 40) -> RowScores:
    """One mean and one ratio of sums over random products."""
    random = np.random.default_rng(seed)
    hits = (random.random(products) < 0.4).astype(np.float64)
    best = random.integers(1, 5, products).astype(np.float64)
    return row_scores({"P@1": (hits, np.ones(products)), "PSP@1": (hits * 0.5, best)}, np.arange(products), products)


def test_intervals_equal_a_plain_loop_over_the_same_draws() -> None:
    """Products are drawn with replacement and the ratio is taken after summing, replicate by replicate."""
    scores, how = made_scores(1), Bootstrap(replicates=60, seed=5)
    random = np.random.default_rng(5)
    drawn: dict[str, list[float]] = {"P@1": [], "PSP@1": []}
    for _ in range(60):
        picked = random.integers(0, 40, 40)
        for column, name in enumerate(scores.names):
            above = sum(scores.numerators[row, column] for row in picked)
            drawn[name].append(above / sum(scores.denominators[row, column] for row in picked))
    found = intervals(scores, how)
    for name, values in drawn.items():
        assert found[name].low == pytest.approx(np.quantile(values, 0.025))
        assert found[name].high == pytest.approx(np.quantile(values, 0.975))
        assert found[name].value == scores.values()[name]
        assert found[name].low <= found[name].value <= found[name].high


def test_a_seed_gives_the_same_interval_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory bound on blocks is no part of the result; another seed is another draw."""
    scores = made_scores(2)
    whole = intervals(scores, Bootstrap(50, 3))
    monkeypatch.setattr(significance, "_BLOCK_BYTES", 8 * 40 * 7)
    pieces = intervals(scores, Bootstrap(50, 3))
    for name, own in whole.items():
        assert (pieces[name].low, pieces[name].high) == pytest.approx((own.low, own.high))
    assert intervals(scores, Bootstrap(50, 4)) != whole


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """95 % intervals of 60 products hold the true rate in 85 to 100 of 100 worlds."""
    held = 0
    for seed in range(100):
        hits = (np.random.default_rng(1000 + seed).random(60) < 0.5).astype(np.float64)
        own = intervals(row_scores({"P@1": (hits, np.ones(60))}, np.arange(60), 60), Bootstrap(200, seed))["P@1"]
        held += own.low <= 0.5 <= own.high
    assert 85 <= held <= 100


def test_degenerate_sets_have_degenerate_intervals() -> None:
    """One product: no width. No product: not a number, and no crash."""
    one = intervals(row_scores({"P@1": (np.array([1.0]), np.ones(1))}, np.array([0]), 1))["P@1"]
    assert (one.value, one.low, one.high) == (1.0, 1.0, 1.0)
    none = score_rows(np.zeros((1, 1), np.int64), Relevance(np.array([0, 0]), np.zeros(0, np.int64), 1), np.ones(1))
    assert all(math.isnan(own.value) and math.isnan(own.low) for own in intervals(none, Bootstrap(10)).values())
    assert all(math.isnan(own.share_above_zero) for own in compare(none, none, Bootstrap(10)).values())


def test_a_ranking_against_itself_has_no_difference() -> None:
    """Both are scored on the same draws, so that nothing is left but zero."""
    for own in compare(made_scores(3), made_scores(3)).values():
        assert (own.difference, own.low, own.high, own.share_above_zero) == (0.0, 0.0, 0.0, 0.0)


def test_pairing_sees_a_difference_that_two_intervals_hide() -> None:
    """A gain on 6 of 100 products is certain when paired, while the two intervals overlap."""
    ours = np.concatenate([np.ones(50), np.zeros(50)])
    theirs = ours.copy()
    theirs[:6] = 0
    scores = [row_scores({"P@1": (hits, np.ones(100))}, np.arange(100), 100) for hits in (ours, theirs)]
    difference = compare(scores[0], scores[1])["P@1"]
    assert difference.difference == pytest.approx(0.06)
    assert difference.low > 0
    assert difference.share_above_zero > 0.99
    assert compare(scores[1], scores[0])["P@1"].high == pytest.approx(-difference.low)
    assert intervals(scores[1])["P@1"].high > intervals(scores[0])["P@1"].low


def test_only_shared_figures_are_compared() -> None:
    """A bundle without propensities can be compared with one that has them; columns are matched by name."""
    both = made_scores(4)
    swapped = RowScores(both.names[::-1], both.numerators[:, ::-1], both.denominators[:, ::-1], both.rows, 40)
    assert all(own.difference == 0 for own in compare(both, swapped).values())
    single = row_scores({"P@1": (both.numerators[:, 0], both.denominators[:, 0])}, both.rows, 40)
    assert list(compare(both, single)) == ["P@1"]


def test_other_products_are_refused() -> None:
    """A paired comparison of different products is none."""
    with pytest.raises(ValueError, match="40 of 40 products were scored here, 39 of 39 there"):
        compare(made_scores(1), made_scores(1, products=39))


@pytest.mark.parametrize(("replicates", "confidence"), [(0, 0.95), (10, 1.0), (10, 0.0)])
def test_impossible_bootstraps_are_refused(replicates: int, confidence: float) -> None:
    """Settings are checked where they are made."""
    with pytest.raises(ValueError, match=r"replicates|confidence"):
        Bootstrap(replicates=replicates, confidence=confidence)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), max_size=25))
def test_auc_equals_counting_every_pair(outfits: list[tuple[int, bool]]) -> None:
    """The rank sum with shared ranks is the share of pairs in the right order, ties half."""
    scores = np.array([score for score, _ in outfits], dtype=np.float64)
    compatible = np.array([good for _, good in outfits], dtype=np.bool_)
    pairs = [(a, b) for a, good in outfits if good for b, other in outfits if not other]
    found = compatibility_auc(scores, compatible)
    if not pairs:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))


@settings(max_examples=150)
@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 3)), max_size=12))
def test_fill_in_the_blank_equals_asking_question_by_question(questions: list[tuple[list[int], int]]) -> None:
    """Accuracy with the point shared among candidates that tie."""
    scores = np.array([own for own, _ in questions], dtype=np.float64).reshape(-1, 4)
    answers = np.array([answer for _, answer in questions], dtype=np.int64)
    points = [(1 / own.count(max(own)) if own[answer] == max(own) else 0.0) for own, answer in questions]
    found = fill_in_the_blank_accuracy(scores, answers)
    assert math.isnan(found) if not questions else found == pytest.approx(sum(points) / len(points))


def test_a_constant_scorer_gets_no_gift_for_the_answers_position() -> None:
    """Polyvore lists the answer first; a model that says nothing is at chance."""
    assert fill_in_the_blank_accuracy(np.zeros((8, 4)), np.zeros(8, np.int64)) == 0.25
    padded = np.array([[0.0, 0.0, -np.inf, -np.inf]])
    assert fill_in_the_blank_accuracy(padded, np.array([0])) == 0.5
    assert compatibility_auc(np.zeros(4), np.array([True, True, False, False])) == 0.5


def test_broken_polyvore_input_is_refused() -> None:
    """NaN scores, answers outside the candidates and shapes that do not match."""
    with pytest.raises(ValueError, match="question 0 has a score that is NaN"):
        fill_in_the_blank_accuracy(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(ValueError, match=r"answers are 2\.\.2, there are 2 candidates"):
        fill_in_the_blank_accuracy(np.zeros((1, 2)), np.array([2]))
    with pytest.raises(ValueError, match="answer of question 0 is padding"):
        fill_in_the_blank_accuracy(np.array([[-np.inf, 1.0]]), np.array([0]))
    with pytest.raises(ValueError, match=r"need \(N, C\) and \(N,\)"):
        fill_in_the_blank_accuracy(np.zeros((1, 2)), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="outfit 1 has a score that is NaN"):
        compatibility_auc(np.array([0.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="need"):
        compatibility_auc(np.zeros(2), np.zeros(2))  # type: ignore[arg-type]
