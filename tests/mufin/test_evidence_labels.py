"""Evidence whose labels came or went says of the others what it said before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mufin.compilation import KERNELS, Kernel
from mufin.evidence import Evidence, ProductEvidence
from mufin.evidence_file import read_evidence, write_evidence
from mufin.evidence_labels import with_labels, without_labels
from mufin.inputs import FloatArray, Int64Array
from mufin.relevance import Relevance
from mufin.scoring import l2_normalise
from mufin.training.related import related_labels
from tests.mufin.test_evidence import D, L, W, make_evidence

KEPT = np.setdiff1d(np.arange(L), [0, 3, 4, 11, L - 1])
"""Labels; the first and the last go, too"""


@pytest.fixture(scope="module", params=KERNELS)
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Computed by either kernel."""
    kernel: Kernel = request.param
    return make_evidence().with_kernel(kernel)


def asked(evidence: Evidence) -> ProductEvidence:
    """Of a product of kind 3."""
    embedding = l2_normalise(np.ones((1, D), np.float32))
    return evidence.of(embedding, [evidence.words.row("kind3 colour2 thing")], [evidence.sentences.wide[4]])[0]


def said(found: ProductEvidence, labels: Int64Array) -> FloatArray:
    """(13, m) all that is said of labels."""
    votes = [row for own in (found.by_embedding, found.by_words, found.by_title) for row in own.of(labels)]
    matches = [found.title_match(labels), found.sentence_match(labels), found.ridge_of(labels)]
    return np.stack([*votes, *matches, *found.own_products(labels), *found.of_related(labels)])


def more_labels(evidence: Evidence) -> tuple[Evidence, FloatArray]:
    """With a label of kind 3, one of unknown words and one without a title; their sentences."""
    random = np.random.default_rng(3)
    sentences = l2_normalise(random.normal(size=(3, W)).astype(np.float32)).astype(np.float16).astype(np.float32)
    sentences[2] = 0
    return with_labels(
        evidence, [evidence.words.row("kind3 label3"), evidence.words.row("no such"), None], sentences
    ), (sentences)


def test_labels_that_were_there_are_spoken_of_as_before(evidence: Evidence) -> None:
    """To the bit; and of a product no more is found in the training products."""
    grown, _ = more_labels(evidence)
    before, after = asked(evidence), asked(grown)
    np.testing.assert_array_equal(said(after, np.arange(L)), said(before, np.arange(L)))
    assert after.by_title.best == before.by_title.best
    assert set(before.candidates()) <= set(after.candidates())


def test_a_new_label_is_compared_by_its_title(evidence: Evidence) -> None:
    """By words and sentence; nothing is known of training products or ridge, and one without a title has nothing."""
    grown, sentences = more_labels(evidence)
    found, new = asked(grown), np.arange(L, L + 3)
    product = grown.words.row("kind3 colour2 thing")
    own = evidence.words.row("kind3 label3")
    shared, mine, theirs = np.intersect1d(own.ids, product.ids, return_indices=True)
    assert len(shared) == 1
    expected = float(own.weights[mine] @ product.weights[theirs])
    np.testing.assert_allclose(found.title_match(new), [expected, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.sentence_match(new), sentences @ evidence.sentences.wide[4], atol=1e-6)
    assert not found.ridge_of(new).any() and not found.own_products(new).any()
    assert not np.stack(found.by_title.of(new)).any()
    assert L in found.candidates()
    assert not grown.frequency[new].any() and len(grown.frequency) == L + 3


def test_what_is_said_of_labels_of_like_titles_is_said_of_a_new_one(evidence: Evidence) -> None:
    """The neighbours are those that training would have found for it."""
    grown, sentences = more_labels(evidence)
    assert grown.related is not None and evidence.related is not None
    one = with_labels(evidence, [evidence.words.row("kind3 label3")], sentences[:1])
    fitted = related_labels(one.label_words, one.label_sentences.wide, len(one.words), one.relevance)
    assert fitted is not None and one.related is not None
    order = np.argsort(fitted.like.labels[L]), np.argsort(one.related.like.labels[L])
    np.testing.assert_array_equal(fitted.like.labels[L][order[0]], one.related.like.labels[L][order[1]])
    np.testing.assert_allclose(fitted.like.weights[L][order[0]], one.related.like.weights[L][order[1]], atol=1e-5)
    np.testing.assert_allclose(grown.related.like.weights[L].sum(), 1, atol=1e-5)
    assert not grown.related.companions.weights[L:].any() and not grown.related.like.weights[L + 2].any()
    ridge_of_like, votes_of_like, companions = asked(grown).of_related(np.arange(L, L + 3))
    assert ridge_of_like[0] != 0 and votes_of_like[0] > 0 and not companions.any()


def test_labels_that_stay_are_spoken_of_as_before(evidence: Evidence) -> None:
    """Under their new numbers; but for what the others had said to their neighbours."""
    before, after = asked(evidence), asked(without_labels(evidence, KEPT))
    old, new = said(before, KEPT), said(after, np.arange(len(KEPT)))
    np.testing.assert_allclose(new[:12], old[:12], atol=1e-6)
    assert evidence.related is not None
    gone = np.setdiff1d(np.arange(L), KEPT)
    for place, (scores, beside) in enumerate(
        ((before.ridge, evidence.related.like), (_shares(before), evidence.related.like),
         (_shares(before), evidence.related.companions))
    ):  # fmt: skip
        weights = np.where(np.isin(beside.labels, gone), 0, beside.weights)[KEPT]
        expected = (weights * scores[beside.labels[KEPT]]).sum(axis=1)
        np.testing.assert_allclose(new[12 + place], expected, atol=1e-5)


def _shares(found: ProductEvidence) -> FloatArray:
    shares = np.zeros(L, np.float32)
    shares[found.by_title.labels] = found.by_title.wide
    return shares


def test_a_training_product_whose_labels_are_gone_votes_for_nobody(evidence: Evidence) -> None:
    """And takes its share of the votes still."""
    only = evidence.relevance.row(0)
    query = evidence.products.wide[0]
    left = without_labels(evidence, np.setdiff1d(np.arange(L), only))
    found = left.of(query[None], [None], [None])[0].by_embedding
    whole = evidence.of(query[None], [None], [None])[0].by_embedding
    assert found.best == whole.best and len(found.labels)
    np.testing.assert_array_equal(np.sum(found.wide), np.sum(whole.of(np.setdiff1d(np.arange(L), only))[1]))


def test_nobody_votes_where_no_label_is_left_that_a_product_had(evidence: Evidence) -> None:
    """Votes of nobody are no error, by either kernel."""
    none = np.zeros(0, dtype=np.int64)
    silent = replace(evidence, relevance=Relevance.from_pairs(none, none, 150, L))
    found = asked(without_labels(silent, np.arange(5)))
    for own in (found.by_embedding, found.by_words, found.by_title):
        assert not len(own.labels) and own.best > 0
    assert len(found.candidates())  # by title and ridge


def test_both_are_read_back_as_they_were(evidence: Evidence, tmp_path: Path) -> None:
    """The file has room for what changed, and opens with as many labels."""
    for changed, count in ((more_labels(evidence)[0], L + 3), (without_labels(evidence, KEPT), len(KEPT))):
        path = tmp_path / f"{count}.npz"
        write_evidence(path, changed)
        back = read_evidence(path, D, count).with_kernel(evidence.products.kernel)
        np.testing.assert_array_equal(said(asked(back), np.arange(count)), said(asked(changed), np.arange(count)))


def test_evidence_without_ridge_and_neighbours_changes_alike(evidence: Evidence) -> None:
    """As of a large catalogue."""
    plain = replace(evidence, ridge=None, related=None)
    grown, sentences = more_labels(plain)
    assert grown.ridge is None and grown.related is None
    assert asked(grown).sentence_match(np.asarray([L]))[0] == pytest.approx(
        float(sentences[0] @ evidence.sentences.wide[4]), abs=1e-6
    )
    assert len(without_labels(plain, KEPT).label_words) == len(KEPT)
