"""What turns scores into an answer, and how it travels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mufin.errors import ConfigError
from mufin.manifest import EncoderPrecision, Encoders
from mufin.scoring import Calibration, ScoreSpec, as_trained, top_k

SPEC = ScoreSpec(50, 0.7, Calibration(4.0, -1.0), Calibration(3.0, -0.5), Calibration(0.0, 0.25))


def test_a_score_spec_survives_json() -> None:
    """Through text and back, each modality with its own calibration."""
    again = ScoreSpec.from_json(json.loads(json.dumps(SPEC.to_json())))
    assert again == SPEC
    assert [again.calibration(m).scale for m in ("both", "title", "images")] == [4.0, 3.0, 0.0]


def test_fields_of_another_version_are_refused() -> None:
    """One pair for all products is what an older run holds; both lists of fields and the remedy are named."""
    old = {"shortlist_size": 50, "fusion_weight": 0.7, "calibration_scale": 4.0, "calibration_offset": -1.0}
    with pytest.raises(ConfigError, match=r"calibration_both.*got.*calibration_scale.*train into a new folder"):
        ScoreSpec.from_json(old)


def test_probabilities_are_the_sigmoid_and_never_overflow() -> None:
    """By hand at 0 and 1; extreme scores end at 0 and 1 without a warning."""
    found = Calibration(4.0, -1.0).probability(np.array([0.0, 1.0, 1e6, -1e6], dtype=np.float32))
    np.testing.assert_allclose(found, [1 / (1 + np.e), 1 / (1 + np.exp(-3)), 1, 0], atol=1e-6)
    assert found.dtype == np.float32
    flat = Calibration(0.0, 0.25).probability(np.array([-0.5, 0.5], dtype=np.float32))
    assert flat[0] == flat[1]


def test_a_label_without_training_lands_where_a_trained_one_of_its_probability_lies() -> None:
    """Trained labels keep their scores; equal probability means equal score; the product itself keeps its own."""
    own = Calibration(2.0, -1.5)
    spec = ScoreSpec(50, 0.7, calibration_both=Calibration(10.0, -6.0), calibration_untrained_both=own)
    fused = np.array([0.7, 0.7, 0.9, 0.99], dtype=np.float32)
    cosines = np.array([0.5, 0.5, 0.8, 0.9995], dtype=np.float32)
    untrained = np.array([False, True, True, True])
    moved = as_trained(spec, "both", fused, cosines, untrained)
    assert moved[0] == fused[0]
    np.testing.assert_allclose(
        spec.calibration("both").probability(moved[1:3]), own.probability(fused[1:3]), atol=1e-6
    )  # fmt: skip
    assert moved[1] < moved[2] < fused[0]
    assert moved[3] == fused[3]


def test_a_flat_curve_moves_nothing() -> None:
    """No score of a trained label has the wanted probability then."""
    spec = ScoreSpec(
        50, 0.7, calibration_title=Calibration(0.0, 0.3), calibration_untrained_title=Calibration(2.0, 1.0)
    )
    fused, cosines = np.array([0.2, 0.9], dtype=np.float32), np.array([0.1, 0.8], dtype=np.float32)
    assert as_trained(spec, "title", fused, cosines, np.array([True, True])).tolist() == fused.tolist()


def test_int8_encoders_know_an_item_again_by_less() -> None:
    """A product's own label has a cosine of .99 with it there, and keeps its score as it does in fp32."""
    spec = ScoreSpec(
        50, 0.7, calibration_title=Calibration(4.0, 0.0), calibration_untrained_title=Calibration(2.0, 3.0)
    )
    fused, untrained = np.full(3, 0.5, dtype=np.float32), np.array([True, True, True])
    cosines = np.array([0.9995, 0.99, 0.97], dtype=np.float32)
    for encoders, expected in (
        (Encoders(), [0.5, 1.0, 1.0]),
        (Encoders(text=EncoderPrecision("int8")), [0.5, 0.5, 1.0]),
    ):
        found = as_trained(spec, "title", fused, cosines, untrained, encoders.same_item)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_differences_of_untrained_scores_are_stretched_by_the_steepest_calibration() -> None:
    """As ``as_trained`` stretches them; a modality whose trained curve is flat moves nothing."""
    spec = ScoreSpec(
        50, 0.7, calibration_both=Calibration(4.0, -1.0), calibration_untrained_both=Calibration(6.0, 1.0),
        calibration_title=Calibration(0.0, 0.3), calibration_untrained_title=Calibration(9.0, 1.0),
        calibration_images=Calibration(2.0, 0.0), calibration_untrained_images=Calibration(5.0, 0.0),
    )  # fmt: skip
    assert spec.untrained_stretch == 2.5
    assert (
        ScoreSpec(calibration_both=Calibration(4.0), calibration_untrained_both=Calibration(2.0)).untrained_stretch == 1
    )
    scores, cosines = np.array([0.1, 0.3], dtype=np.float32), np.zeros(2, dtype=np.float32)
    moved = as_trained(spec, "images", scores, cosines, np.array([True, True]))
    assert moved[1] - moved[0] == pytest.approx(2.5 * 0.2, abs=1e-6)


@pytest.mark.parametrize("k", [0, 1, 3, 7, 39, 40, 41])
def test_the_best_k_are_the_head_of_all_in_order(k: int) -> None:
    """Equal scores by ascending label, also where the cut falls among them; what is no number comes last."""
    random = np.random.default_rng(k)
    for numbers in (3, 1000):
        scores = random.integers(0, numbers, 40).astype(np.float32)
        labels = random.permutation(40).astype(np.int64)
        expected = sorted(range(40), key=lambda place: (-scores[place], labels[place]))
        assert top_k(scores, labels, k).tolist() == expected[:k]
        scores[expected[:2]] = np.nan
        kept = [place for place in expected if place not in expected[:2]]
        assert top_k(scores, labels, k).tolist()[:38] == kept[:k]
