"""The parity table tells agreement from disagreement, ties and broken numbers included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mufin.golden import Golden, GoldenResults, Parity, Ranked, agreement, compare
from mufin.manifest import EncoderPrecision, Encoders, Tolerances


def golden() -> Golden:
    """One product, two labels."""
    one = np.ones((1, 2), np.float32)
    return Golden(
        titles=["a"],
        has_title=np.array([True]),
        token_ids=np.array([[2, 4, 3]]),
        image_offsets=np.array([0, 0]),
        pixels=np.zeros((0, 8, 8, 3), np.uint8),
        title_vectors=one,
        image_vectors=np.zeros((0, 2), np.float32),
        slots=one[None],
        slot_mask=np.array([[True]]),
        embeddings=one,
        shortlist=(np.array([[5, 7]]), np.array([[0.9, 0.8]], np.float32)),
        classifier=np.array([[0.1, 0.6]], np.float32),
        fused=np.array([[0.5, 0.7]], np.float32),
        k=1,
    )


def results(expected: Golden) -> GoldenResults:
    """What a faultless predictor gives."""
    return GoldenResults(
        token_ids=expected.token_ids,
        title_vectors=expected.title_vectors,
        image_vectors=expected.image_vectors,
        slots=[expected.slots[0]],
        embeddings=expected.embeddings,
        shortlists=[Ranked(np.array([5, 7]), np.array([0.9, 0.8], np.float32))],
        classifier=[np.array([0.1, 0.6], np.float32)],
        rankings=[Ranked(np.array([7, 5]), np.array([0.7, 0.5], np.float32))],
    )


def failed(parity: Parity) -> list[str]:
    """Stages outside their tolerance."""
    return [stage.stage for stage in parity.stages if not stage.passed]


def test_equal_results_pass_and_read_as_a_table() -> None:
    """All eight stages are listed."""
    parity = compare(golden(), results(golden()), Tolerances())
    assert parity.passed
    assert parity.table().count("  ok") == len(parity.stages) == 8


def test_each_deviation_is_found_in_its_own_stage() -> None:
    """A wrong vector, a NaN, a wrong shape, a wrong token, a wrong first label."""
    good = results(golden())
    nan = np.full((1, 2), np.nan, np.float32)
    deviations = {
        "tokens": replace(good, token_ids=np.array([[2, 9, 3]])),
        "title": replace(good, title_vectors=good.title_vectors + 1e-3),
        "image": replace(good, image_vectors=np.zeros((1, 2), np.float32)),
        "bag": replace(good, slots=[nan]),
        "embedding": replace(good, embeddings=nan),
        "shortlist": replace(good, shortlists=[Ranked(np.array([7, 5]), np.array([0.8, 0.9], np.float32))]),
        "classifier": replace(good, classifier=[np.array([0.1, 0.5], np.float32)]),
        "ranking": replace(good, rankings=[Ranked(np.array([5]), np.array([0.5], np.float32))]),
    }
    for stage, own in deviations.items():
        parity = compare(golden(), own, Tolerances())
        assert failed(parity) == [stage]
        assert parity.to_json()["passed"] is False
        assert parity.table().count("FAILED") == 1


def test_ties_may_swap() -> None:
    """Labels whose expected scores lie within the tie are equally right; others are not."""
    expected = [Ranked(np.array([1, 2, 3]), np.array([0.9, 0.9, 0.5], np.float32))]
    swapped = [Ranked(np.array([2, 1, 3]), np.array([0.9, 0.9, 0.5], np.float32))]
    wrong = [Ranked(np.array([3, 1, 2]), np.array([0.9, 0.9, 0.5], np.float32))]
    assert agreement(swapped, expected, 1, 1e-6) == 1.0
    assert agreement(wrong, expected, 1, 1e-6) == 0.0
    assert agreement(wrong, expected, 2, 1e-6) == 0.5
    assert agreement(wrong, expected, 3, 1e-6) == 1.0


def test_int8_vectors_are_compared_by_cosine() -> None:
    """A difference that fp32 must not show passes; a wrong direction, no vector and a NaN do not."""
    good, int8 = results(golden()), Encoders(text=EncoderPrecision("int8"))
    tilted = replace(good, title_vectors=good.title_vectors + np.array([[0.05, 0]], np.float32))
    assert compare(golden(), tilted, Tolerances(), int8).passed
    assert failed(compare(golden(), tilted, Tolerances())) == ["title"]
    for vector in ([[1, 0]], [[0, 0]], [[np.nan, 1]], [[1, 1, 1]]):
        wrong = replace(good, title_vectors=np.array(vector, np.float32))
        assert failed(compare(golden(), wrong, Tolerances(), int8)) == ["title"], vector
    # An encoder in fp32 beside one in int8 keeps its own tolerance.
    assert failed(compare(golden(), tilted, Tolerances(), Encoders(image=EncoderPrecision("int8")))) == ["title"]


def test_final_scores_that_are_stretched_may_differ_by_more() -> None:
    """By the factor, and no other stage with them; with a combination's tolerance, too."""
    good = results(golden())
    moved = replace(good, rankings=[Ranked(np.array([7, 5]), np.array([0.7003, 0.5003], np.float32))])
    shifted = replace(good, classifier=[own + np.float32(3e-4) for own in good.classifier])
    for tolerances in (Tolerances(), Tolerances(ranking_difference=1e-4)):
        assert failed(compare(golden(), moved, tolerances)) == ["ranking"]
        assert failed(compare(golden(), moved, tolerances, stretch=2.0)) == ["ranking"]
        assert compare(golden(), moved, tolerances, stretch=4.0).passed
        assert failed(compare(golden(), shifted, tolerances, stretch=4.0)) == ["classifier"]


def test_a_processor_whose_int8_sums_overflow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the remedy, where an int8 bundle fails; not where it passes, nor for fp32 or 7 bits, nor on other processors."""
    good, int8 = results(golden()), Encoders(text=EncoderPrecision("int8"))
    wrong = replace(good, title_vectors=np.array([[1, 0]], np.float32))
    for overflows in (True, False):
        monkeypatch.setattr("mufin.golden.int8_sums_overflow", lambda found=overflows: found)
        named = "no VNNI" in compare(golden(), wrong, Tolerances(), int8).table()
        assert named is overflows
        passing = compare(golden(), good, Tolerances(), int8)
        assert "VNNI" not in passing.table() and ("VNNI" in passing.advice) is overflows
        for found in (wrong, good):
            assert not compare(golden(), found, Tolerances(), int8, may_overflow=False).advice
        assert "VNNI" not in compare(golden(), wrong, Tolerances()).table()


def test_int8_rankings_need_fewer_of_torchs_labels() -> None:
    """Nine of ten, with labels of nearly equal scores counted as ties; not eight."""
    number = 20
    scores = np.linspace(0.9, 0.0, number, dtype=np.float32)
    labels = np.arange(number)
    expected = replace(
        golden(), shortlist=(labels[None], scores[None]), classifier=scores[None], fused=scores[None], k=10
    )

    def ranked(*strangers: int) -> Ranked:
        """The first ten with the last ones replaced."""
        own = np.concatenate([labels[: 10 - len(strangers)], strangers]).astype(np.int64)
        return Ranked(own, scores[own])

    own = replace(results(golden()), classifier=[scores], shortlists=[Ranked(labels, scores)])
    int8 = Encoders(image=EncoderPrecision("int8"))
    nine, eight = replace(own, rankings=[ranked(15)]), replace(own, rankings=[ranked(15, 16)])
    assert compare(expected, nine, Tolerances(), int8).passed
    assert failed(compare(expected, eight, Tolerances(), int8)) == ["ranking"]
    assert failed(compare(expected, nine, Tolerances())) == ["ranking"]
    near = replace(expected, fused=np.where(labels < 17, 0.9 - labels[None] * 1e-4, scores).astype(np.float32))
    tied = compare(
        near, replace(eight, rankings=[Ranked(ranked(15, 16).labels, near.fused[0, :10])]), Tolerances(), int8
    )
    assert failed(tied) == []
