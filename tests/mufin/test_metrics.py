"""Metrics against a second implementation in plain loops, and their stated rules one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mufin.inputs import Int64Array
from mufin.label_bands import BANDS, label_bands, score_bands
from mufin.metrics import (
    AMAZON_PROPENSITY,
    CUTS,
    RECALL_CUTS,
    Propensity,
    inverse_propensities,
    order_by_score,
    relevant,
    remove_from_ranking,
    remove_from_relevance,
    score_rows,
)
from mufin.relevance import Relevance

TOLERANCE = 1e-12
Sets = list[set[int]]


def to_relevance(sets: Sets, label_count: int) -> Relevance:
    pairs = np.array([(row, label) for row, own in enumerate(sets) for label in own], dtype=np.int64).reshape(-1, 2)
    return Relevance.from_pairs(pairs[:, 0], pairs[:, 1], len(sets), label_count)


def to_ranking(rows: list[list[int]], width: int) -> Int64Array:
    ranking = np.full((len(rows), width), -1, dtype=np.int64)
    for row, own in enumerate(rows):
        ranking[row, : len(own)] = own
    return ranking


def plain_figures(ranking: list[list[int]], sets: Sets, weights: list[float]) -> dict[str, float]:
    """The definitions of docs/evaluation.md, product by product and label by label."""
    sums: dict[str, list[float]] = {}

    def add(name: str, above: float, below: float = 1.0) -> None:
        total = sums.setdefault(name, [0.0, 0.0])
        total[0] += above
        total[1] += below

    for ranked, right in zip(ranking, sets, strict=True):
        if not right:
            continue
        best = sorted((weights[label] for label in right), reverse=True)
        for k in CUTS:
            hits = gain = heavy = heavy_gain = 0.0
            for place, label in enumerate(ranked[:k]):
                if label in right:
                    hits += 1
                    gain += 1 / math.log2(place + 2)
                    heavy += weights[label]
                    heavy_gain += weights[label] / math.log2(place + 2)
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(right))))
            add(f"P@{k}", hits / k)
            add(f"nDCG@{k}", gain / ideal)
            add(f"PSP@{k}", heavy / k, sum(best[:k]) / k)
            best_gain = sum(weight / math.log2(place + 2) for place, weight in enumerate(best[:k]))
            add(f"PSnDCG@{k}", heavy_gain / ideal, best_gain / ideal)
        for k in RECALL_CUTS:
            add(f"R@{k}", len(right & set(ranked[:k])) / len(right))
        add("P@5/max", len(right & set(ranked[:5])) / 5, min(5, len(right)) / 5)
        add("R@10/max", len(right & set(ranked[:10])) / len(right), min(10, len(right)) / len(right))
    return {name: above / below if below else math.nan for name, (above, below) in sums.items()}


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], Sets, int, int]:
    """Rankings of any length, relevance of any size, few or many labels; often degenerate."""
    label_count = draw(st.sampled_from([1, 2, 4, 7, 25]))
    row_count = draw(st.integers(0, 6))
    width = draw(st.integers(0, 14))
    label = st.integers(0, label_count - 1)
    rows = [draw(st.lists(label, unique=True, max_size=min(width, label_count))) for _ in range(row_count)]
    sets = [draw(st.sets(label, max_size=13)) for _ in range(row_count)]
    return rows, sets, label_count, width


@settings(max_examples=300)
@given(cases(), st.integers(0, 2**31))
def test_every_figure_equals_the_plain_implementation(case: tuple[list[list[int]], Sets, int, int], seed: int) -> None:
    """Vectorised sums are the definitions, also for no relevant label, k > K, all padding, L = 1 and no row."""
    rows, sets, label_count, width = case
    weights = np.random.default_rng(seed).uniform(1, 9, label_count)
    weights[np.random.default_rng(seed).random(label_count) < 0.3] = 2.0
    found = score_rows(to_ranking(rows, width), to_relevance(sets, label_count), weights).values()
    expected = plain_figures(rows, sets, weights.tolist())
    if not any(sets):
        assert all(math.isnan(value) for value in found.values())
        return
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=TOLERANCE), name


@settings(max_examples=100)
@given(cases())
def test_a_perfect_ranking_reaches_one(case: tuple[list[list[int]], Sets, int, int]) -> None:
    """Normalised figures have 1 as their ceiling, and it is reached by ranking the relevant labels by weight."""
    _, sets, label_count, _ = case
    if not any(sets):
        return
    weights = np.linspace(1, 5, label_count)
    best = [sorted(own, key=lambda label: -label) for own in sets]
    found = score_rows(to_ranking(best, 25), to_relevance(sets, label_count), weights)
    values = found.values()
    for name in ("nDCG@1", "nDCG@3", "nDCG@5", "PSP@1", "PSP@3", "PSP@5", "PSnDCG@5", "P@5/max", "R@10/max"):
        assert values[name] == pytest.approx(1.0), name
    assert found.attainable()["P@5"] == pytest.approx(values["P@5"])
    assert found.attainable()["R@10"] == pytest.approx(values["R@10"])


def test_a_worked_example_by_hand() -> None:
    """Numbers that can be checked with a pencil."""
    values = score_rows(np.array([[3, 0, 1]]), to_relevance([{0, 2}], 4), np.array([1.0, 1.0, 4.0, 1.0])).values()
    assert values["P@1"] == 0
    assert values["P@3"] == pytest.approx(1 / 3)
    assert values["P@5"] == pytest.approx(1 / 5)
    assert values["nDCG@3"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert values["PSP@3"] == pytest.approx(1 / 5)
    assert values["R@3"] == pytest.approx(1 / 2)
    assert values["P@5/max"] == pytest.approx(1 / 2)


def test_rows_without_a_relevant_label_leave_every_mean() -> None:
    """Where nothing could be right, nothing is counted; which rows were scored is said."""
    scores = score_rows(np.array([[0], [1]]), to_relevance([{0}, set()], 2))
    assert scores.values()["P@1"] == 1
    assert scores.rows.tolist() == [0]
    assert scores.row_count == 2


def test_without_weights_there_is_no_propensity_scored_figure() -> None:
    """PSP is absent, not wrong, when no training pairs are known."""
    assert not [name for name in score_rows(np.array([[0]]), to_relevance([{0}], 1)).names if name.startswith("PS")]


@settings(max_examples=200)
@given(cases(), st.data())
def test_excluded_pairs_leave_ranking_and_relevance(
    case: tuple[list[list[int]], Sets, int, int], data: st.DataObject
) -> None:
    """Labels behind an excluded one move up, and it is no longer to be found."""
    rows, sets, label_count, width = case
    excluded = [data.draw(st.sets(st.integers(0, label_count - 1), max_size=4)) for _ in rows]
    taken = to_relevance(excluded, label_count)
    kept = remove_from_ranking(to_ranking(rows, width), taken)
    left = remove_from_relevance(to_relevance(sets, label_count), taken)
    plain = [[label for label in row if label not in own] for row, own in zip(rows, excluded, strict=True)]
    assert kept.tolist() == to_ranking(plain, width).tolist()
    assert [set(left.row(i).tolist()) for i in range(len(rows))] == [
        own - out for own, out in zip(sets, excluded, strict=True)
    ]


def test_ties_go_to_the_smaller_label_and_padding_goes_last() -> None:
    """The order of equal scores is stated, so that figures can be repeated; a label may even score -inf."""
    labels = np.array([[5, 2, -1, 9, 1]])
    scores = np.array([[0.5, 0.5, np.nan, 0.7, -np.inf]], dtype=np.float32)
    assert order_by_score(scores, labels).tolist() == [[9, 2, 5, 1, -1]]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 30)), min_size=1, max_size=12, unique_by=lambda p: p[1]))
def test_order_equals_a_plain_sort(pairs: list[tuple[int, int]]) -> None:
    """Many ties: the vectorised order is Python's sort by (falling score, label)."""
    scores = np.array([[score for score, _ in pairs]], dtype=np.float32)
    labels = np.array([[label for _, label in pairs]], dtype=np.int64)
    real = sorted((p for p in pairs if p[1] >= 0), key=lambda p: (-p[0], p[1]))
    expected = [label for _, label in real] + [-1] * (len(pairs) - len(real))
    assert order_by_score(scores, labels)[0].tolist() == expected


def test_a_score_that_is_nan_is_refused() -> None:
    """A broken network must not be ranked silently."""
    with pytest.raises(ValueError, match="row 1 has a score that is NaN"):
        order_by_score(np.array([[0.0], [np.nan]], dtype=np.float32), np.array([[0], [0]]))


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([[0, 0]], "names a label twice"),
        ([[-1, 0]], "behind its padding"),
        ([[2, 0]], r"must lie in -1\.\.1"),
        ([[0], [1]], "has 2 rows, relevance has 1"),
        ([[0.0]], "of integers"),
    ],
)
def test_what_is_no_ranking_is_refused(ranking: list[list[int]], message: str) -> None:
    """Each fault that would inflate or shift figures has its message."""
    with pytest.raises(ValueError, match=message):
        score_rows(np.array(ranking), to_relevance([{0}], 2))


def test_weights_of_another_label_set_are_refused() -> None:
    """Propensities are those of the same labels."""
    with pytest.raises(ValueError, match="inverse propensities"):
        score_rows(np.array([[0]]), to_relevance([{0}], 2), np.ones(3))


@pytest.mark.parametrize("propensity", [Propensity(), AMAZON_PROPENSITY])
def test_inverse_propensities_follow_the_formula(propensity: Propensity) -> None:
    """Jain et al. 2016, number by number; a rare label weighs more."""
    frequency = np.array([0, 1, 7, 1000])
    found = inverse_propensities(frequency, 5000, propensity)
    scale = (math.log(5000) - 1) * (propensity.b + 1) ** propensity.a
    for value, count in zip(found, frequency.tolist(), strict=True):
        assert value == pytest.approx(1 + scale * (count + propensity.b) ** -propensity.a)
    assert (np.diff(found) < 0).all()


@pytest.mark.parametrize("train_products", [0, 1, 2])
def test_inverse_propensities_are_never_below_one(train_products: int) -> None:
    """A probability above 1 does not exist, however small the catalogue."""
    assert inverse_propensities(np.array([0, 1, 2]), train_products).tolist() == [1.0, 1.0, 1.0]


def test_a_propensity_that_is_none_is_refused() -> None:
    """B = 0 would divide by zero for labels never seen."""
    with pytest.raises(ValueError, match=r"A=0\.5, B=0"):
        Propensity(0.5, 0)


@settings(max_examples=150)
@given(cases(), st.data())
def test_bands_add_up_and_equal_the_plain_implementation(
    case: tuple[list[list[int]], Sets, int, int], data: st.DataObject
) -> None:
    """Head, torso and tail are parts of P@k and R@10, found by counting."""
    rows, sets, label_count, width = case
    frequency = np.array(data.draw(st.lists(st.integers(0, 9), min_size=label_count, max_size=label_count)))
    bands = label_bands(frequency)
    ranking, relevance = to_ranking(rows, width), to_relevance(sets, label_count)
    parts, whole = score_bands(ranking, relevance, bands).values(), score_rows(ranking, relevance).values()
    scored = [(row, own) for row, own in zip(rows, sets, strict=True) if own]
    if not scored:
        assert all(math.isnan(value) for value in parts.values())
        return
    for figure in ("P@1", "P@3", "P@5", "R@10"):
        assert sum(parts[f"{figure} {band}"] for band in BANDS) == pytest.approx(whole[figure], abs=TOLERANCE)
    assert sum(parts[f"relevant {band}"] for band in BANDS) == pytest.approx(1.0)
    for number, band in enumerate(BANDS):
        own = {label for label in range(label_count) if bands.of_label[label] == number}
        expected = sum(len(right & own & set(row[:3])) / 3 for row, right in scored) / len(scored)
        assert parts[f"P@3 {band}"] == pytest.approx(expected, abs=TOLERANCE)
        most = sum(len(right & own) / len(right) for _, right in scored) / len(scored)
        assert parts[f"relevant {band}"] == pytest.approx(most, abs=TOLERANCE)


def test_bands_are_thirds_of_the_training_pairs_and_do_not_split_a_frequency() -> None:
    """Equal frequencies share a band; the cut is where a third of all pairs is passed; unseen labels are tail."""
    assert label_bands(np.array([10, 10, 10])).of_label.tolist() == [0, 0, 0]
    assert label_bands(np.array([6, 3, 2, 1, 0])).of_label.tolist() == [0, 1, 2, 2, 2]
    assert label_bands(np.array([2, 1, 1, 1, 1])).of_label.tolist() == [0, 1, 1, 1, 1]
    assert label_bands(np.array([4, 1, 1])).of_label.tolist() == [0, 2, 2]
    assert label_bands(np.array([90, 5, 5])).of_label.tolist() == [0, 2, 2]
    assert label_bands(np.array([0, 0])).of_label.tolist() == [2, 2]
    assert label_bands(np.zeros(0, dtype=np.int64)).of_label.tolist() == []
    facts = label_bands(np.array([6, 3, 2, 1, 0])).describe()
    assert facts["head"] == {"labels": 1, "train_pairs": 6, "lowest_frequency": 6, "highest_frequency": 6}
    assert facts["tail"] == {"labels": 3, "train_pairs": 3, "lowest_frequency": 0, "highest_frequency": 2}
    assert label_bands(np.array([1])).describe()["torso"]["labels"] == 0


def test_relevant_of_padding_and_of_an_empty_matrix_is_false() -> None:
    """-1 of one row must not be taken for the last label of the row before."""
    assert relevant(np.array([[-1, 1], [-1, 0]]), to_relevance([{1}, {1}], 2)).tolist() == [
        [False, True],
        [False, False],
    ]
    assert not relevant(np.array([[0]]), to_relevance([set()], 1)).any()


def test_figures_of_other_products_cannot_be_joined() -> None:
    """Joined figures share their bootstrap draws, so they must be of the same products."""
    first = score_rows(np.array([[0], [0]]), to_relevance([{0}, set()], 1))
    second = score_rows(np.array([[0], [0]]), to_relevance([set(), {0}], 1))
    with pytest.raises(ValueError, match="not of the same"):
        first.joined(second)
