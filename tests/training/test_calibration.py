"""Probabilities fitted for each modality subset, and the figures that say how well they hold."""

from __future__ import annotations

import numpy as np
import pytest

from mufin.catalogue import Relevance
from mufin.inputs import BoolArray, FloatArray
from mufin.scoring import Calibration
from mufin.training.calibration import (
    LEAST_OUTCOMES,
    Outcomes,
    calibrate,
    calibration_error,
    fit_calibration,
    outcomes_of,
    reliability_curve,
)


def drawn(scale: float, offset: float, products: int, results: int = 20, seed: int = 0) -> Outcomes:
    """Falling scores of every product, outcomes drawn from a logistic curve."""
    random = np.random.default_rng(seed)
    scores = -np.sort(-random.uniform(-1, 1, (products, results))).astype(np.float32)
    relevant = random.random(scores.shape) < 1 / (1 + np.exp(-(scale * scores + offset)))
    return Outcomes(np.arange(products), scores, relevant, np.ones(scores.shape, np.bool_))


def column(*values: float) -> FloatArray:
    """float32 of some numbers."""
    return np.array(values, dtype=np.float32)


def flags(*values: int) -> BoolArray:
    """bool of some numbers."""
    return np.array(values, dtype=np.bool_)


def test_a_fit_recovers_known_probabilities() -> None:
    """Outcomes drawn from a logistic curve give that curve back."""
    scores, relevant = drawn(6, -2, 1000).flat(20)
    found = fit_calibration(scores, relevant)
    assert found.scale == pytest.approx(6, rel=0.05) and found.offset == pytest.approx(-2, rel=0.08)
    truth = 1 / (1 + np.exp(-(6 * scores - 2)))
    assert np.abs(found.probability(scores) - truth).max() < 0.03


def test_probabilities_rise_with_the_score() -> None:
    """A better score is never less probable, so that the order of an answer stays."""
    found = fit_calibration(*drawn(3, -1, 100).flat(20))
    probabilities = found.probability(np.linspace(-1, 1, 50, dtype=np.float32))
    assert (np.diff(probabilities) > 0).all() and probabilities[0] > 0 and probabilities[-1] < 1


@pytest.mark.parametrize("outcome", [True, False])
def test_one_kind_of_outcome_gives_a_flat_and_finite_curve(outcome: bool) -> None:
    """Without contrast nothing can be learned about the score: one probability for all."""
    found = fit_calibration(np.linspace(0, 1, 10, dtype=np.float32), np.full(10, outcome))
    assert found.scale == 0.0 and np.isfinite(found.offset)
    assert (found.offset > 0) == outcome
    empty = fit_calibration(column(), flags())
    assert empty == Calibration(0.0, 0.0)


def test_equal_scores_give_the_smoothed_share() -> None:
    """Three of four right at one score: Platt's prior, (3 + 1) / (4 + 2)."""
    found = fit_calibration(column(0.5, 0.5, 0.5, 0.5), flags(1, 1, 1, 0))
    np.testing.assert_allclose(found.probability(column(0.5)), [4 / 6], atol=1e-6)


def test_calibration_error_by_hand() -> None:
    """Two bins of two: |.2 - 0| and |.8 - .5|, each half of the results; unequal bins weigh by their results."""
    curve = reliability_curve(column(0.9, 0.1, 0.3, 0.7), flags(1, 0, 0, 0), bins=2)
    np.testing.assert_allclose(curve, [[0.2, 0.0, 2], [0.8, 0.5, 2]], atol=1e-6)
    assert calibration_error(curve) == pytest.approx((2 * 0.2 + 2 * 0.3) / 4)
    uneven = reliability_curve(column(0.0, 0.0, 1.0), flags(1, 1, 1), bins=2)
    assert [count for _, _, count in uneven] == [2, 1]
    assert calibration_error(uneven) == pytest.approx(2 / 3)
    assert calibration_error(reliability_curve(column(0.0, 1.0), flags(0, 1))) == 0.0
    assert reliability_curve(column(), flags()) == [] and calibration_error([]) == 0.0


def test_outcomes_follow_the_ranking_and_leave_padding_out() -> None:
    """Position 1 of the relevance, best first; -1 is no result."""
    relevance = Relevance.from_pairs(np.array([0, 1, 1]), np.array([5, 2, 7]), 2, 9)
    own = outcomes_of(np.array([[7, 5, -1]]), column(0.9, 0.2, -np.inf)[None], relevance, np.array([1]))
    scores, relevant = own.flat(10)
    assert scores.tolist() == column(0.9, 0.2).tolist() and relevant.tolist() == [True, False]
    assert own.flat(1)[1].tolist() == [True]


def test_every_subset_has_a_fit_of_its_own() -> None:
    """Scores that mean something else without a title get another curve, and the figures show what that is worth."""
    both, images = drawn(6, 0, 400), drawn(6, -5, 400, seed=1)
    said: list[str] = []
    fits, figures = calibrate(both, {"both": both, "title": both, "images": images}, said.append)
    assert said == []
    assert fits["both"] == fits["title"] == fit_calibration(*both.flat(100))
    assert fits["images"] == fit_calibration(*images.flat(100)) and fits["images"].offset < fits["both"].offset - 3
    ece = figures["subsets"]["images"]["ece"]
    assert ece["fitted"] < 0.05 < ece["shared"]
    assert figures["subsets"]["both"]["ece"]["fitted"] == figures["subsets"]["both"]["ece"]["shared"]
    assert figures["subsets"]["both"] | {"curve": 0, "ece": 0} == {
        "own_fit": True, "products": 400, "right": int(both.relevant.sum()), "wrong": int((~both.relevant).sum()),
        "scale": round(fits["both"].scale, 6), "offset": round(fits["both"].offset, 6), "curve": 0, "ece": 0,
    }  # fmt: skip


def test_a_subset_with_little_material_takes_the_overall_fit_and_says_so() -> None:
    """Absent, or with too few right results; one more right result is enough."""
    both = drawn(6, 0, 400)
    few = drawn(6, 0, 100)
    few.relevant[:] = False
    few.relevant[: LEAST_OUTCOMES - 1, 0] = True
    said: list[str] = []
    fits, figures = calibrate(both, {"both": both, "title": few}, said.append)
    assert fits["title"] == fits["images"] == fits["both"]
    assert [line.split(":")[0] for line in said] == ["calibration of title", "calibration of images"]
    assert "49 right" in said[0]
    assert figures["subsets"]["images"]["products"] == 0 and "ece" not in figures["subsets"]["images"]
    few.relevant[LEAST_OUTCOMES, 0] = True
    assert calibrate(both, {"both": both, "title": few}, said.append)[0]["title"] != fits["title"]


def test_figures_are_of_products_that_the_fit_did_not_see() -> None:
    """Outcomes that follow each product, not the score: a fit on the same products would look perfect."""
    random = np.random.default_rng(3)
    products = 40
    scores = np.linspace(0, 1, products, dtype=np.float32)[:, None].repeat(10, axis=1)
    relevant = (random.random(products) < 0.5)[:, None].repeat(10, axis=1)
    noise = Outcomes(np.arange(products), scores, relevant, np.ones(scores.shape, np.bool_))
    _, figures = calibrate(noise, {"both": noise}, lambda text: None)
    seen = fit_calibration(*noise.flat(100)).probability(noise.flat(100)[0])
    assert figures["subsets"]["both"]["ece"]["fitted"] != pytest.approx(
        calibration_error(reliability_curve(seen, noise.flat(100)[1])), abs=1e-4
    )
    assert sum(count for _, _, count in figures["subsets"]["both"]["curve"]["fitted"]) == products * 10
