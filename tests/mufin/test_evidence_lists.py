"""Evidence of many training products: compared with those of near lists, it says what comparing with all would say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mufin.compilation import KERNELS, Kernel
from mufin.errors import BundleError
from mufin.evidence import OWN_PRODUCTS, WIDE, Evidence, ProductEvidence, ProductLists, TitleCosines
from mufin.evidence_file import read_evidence, write_evidence
from mufin.inputs import FloatArray
from mufin.relevance import Relevance
from mufin.scoring import l2_normalise
from mufin.training.vector_lists import fit_lists
from mufin.vector_lists import VectorLists
from tests.mufin.test_evidence import D, L, W, make_evidence


@pytest.fixture(scope="module", params=KERNELS)
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Every training product compared, by either kernel."""
    kernel: Kernel = request.param
    return make_evidence().with_kernel(kernel)


def listed(evidence: Evidence, probes: int | None = None) -> Evidence:
    """The same with lists, of which a query looks at ``probes``, or at all."""

    def own(lists: VectorLists) -> VectorLists:
        return replace(lists, probes=len(lists.centres) if probes is None else probes)

    fitted = (fit_lists(rows, WIDE[0], 1) for rows in (evidence.products, evidence.sentences))
    return replace(evidence, lists=ProductLists(*(own(lists) for lists in fitted)))


def asked(evidence: Evidence, count: int = 4) -> list[ProductEvidence]:
    """Of products with title and sentence, with a title of unknown words, and without a title."""
    random = np.random.default_rng(5)
    embeddings = l2_normalise(random.normal(size=(4, D)).astype(np.float32))
    sentences = l2_normalise(random.normal(size=(4, W)).astype(np.float32))
    rows = [evidence.words.row(title) for title in ("kind3 colour2 thing", "never seen", "kind1 thing")]
    return evidence.of(embeddings[:count], [*rows, None][:count], [*sentences[:3], None][:count])


def said(found: ProductEvidence) -> FloatArray:
    """(15, L)"""
    labels = np.arange(L)
    votes = [row for own in (found.by_embedding, found.by_words, found.by_title) for row in own.of(labels)]
    matches = [found.title_match(labels), found.sentence_match(labels), found.ridge_of(labels)]
    return np.stack([*votes, *matches, *found.own_products(labels), *found.of_related(labels)])


def test_with_all_lists_looked_at_nothing_changes(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score of every label, and the best cosines, where every product of a label is compared, too."""
    monkeypatch.setattr("mufin.evidence.OWN_PRODUCTS", 150)
    for own, whole in zip(asked(listed(evidence)), asked(evidence), strict=True):
        np.testing.assert_allclose(said(own), said(whole), atol=1e-5)
        for name in ("by_embedding", "by_words", "by_title"):
            assert getattr(own, name).best == pytest.approx(getattr(whole, name).best, abs=1e-6)
        np.testing.assert_array_equal(own.candidates(), whole.candidates())


def test_with_few_lists_the_nearest_is_found_and_most_is_left_alone(evidence: Evidence) -> None:
    """A training product's own vectors find itself; those of like words are found wherever their sentences lie."""
    few = listed(evidence, probes=1)
    assert few.lists is not None
    title = few.words.row("kind3 colour2 thing")
    found = few.of(few.products.wide[7:8], [title], [few.sentences.wide[7]])[0]
    assert found.by_embedding.best == pytest.approx(1, abs=2e-3)
    near = few.lists.by_embedding.near(few.products.wide[7], found.arithmetic)
    assert 7 in near and len(near) < 75
    assert isinstance(found.title_products, TitleCosines)
    whole = evidence.of(few.products.wide[7:8], [title], [few.sentences.wide[7]])[0]
    assert isinstance(whole.title_products, np.ndarray)
    np.testing.assert_allclose(found.title_products.of(np.arange(150)), whole.title_products, atol=1e-6)
    assert found.by_title.best >= 0.5 * found.by_words.best


def test_no_company_changes_what_is_said_of_a_product(evidence: Evidence) -> None:
    """To the bit."""
    few = listed(evidence, probes=2)
    alone, together = asked(few, 1)[0], asked(few, 4)[0]
    np.testing.assert_array_equal(said(alone), said(together))


def test_a_label_of_many_products_is_known_by_some_of_them(evidence: Evidence) -> None:
    """Evenly spread over all; those of a rarer one are all looked at."""
    few = listed(evidence)
    rows = np.concatenate([np.arange(150), [3, 140]])
    labels = np.concatenate([np.zeros(150, np.int64), [5, 5]])
    few = replace(few, relevance=Relevance.from_pairs(rows, labels, 150, L))
    found = asked(few)[0]
    own = found.label_products
    assert len(own.row(0)) == OWN_PRODUCTS and own.row(0)[0] == 0 and own.row(0)[-1] >= 150 - 150 // OWN_PRODUCTS - 1
    assert (np.diff(np.diff(own.row(0))) <= 1).all()
    np.testing.assert_array_equal(own.row(5), [3, 140])
    assert isinstance(found.title_products, TitleCosines)
    cosines = found.title_products.of(np.asarray([3, 140]))
    np.testing.assert_allclose(
        found.own_products(np.asarray([5]))[:, 0], [cosines.max(), cosines.min(), cosines.mean()], atol=1e-6
    )
    assert not found.own_products(np.asarray([L, L + 1])).any()


def test_lists_are_read_back(evidence: Evidence, tmp_path: Path) -> None:
    """And say the same."""
    few = listed(evidence, probes=2)
    write_evidence(tmp_path / "evidence.npz", few)
    back = read_evidence(tmp_path / "evidence.npz", D, L).with_kernel(evidence.products.kernel)
    for own, before in zip(asked(back), asked(few), strict=True):
        np.testing.assert_array_equal(said(own), said(before))


def spoilt(lists: VectorLists) -> list[VectorLists]:
    """What no list may be."""
    rows, first = lists.rows.copy(), lists.first.copy()
    rows[0] = rows[1]
    first[1:-1] = first[-1] + 5
    return [
        replace(lists, rows=rows), replace(lists, first=first), replace(lists, first=lists.first[:-1]),
        replace(lists, probes=0), replace(lists, probes=len(lists.centres) + 1), replace(lists, rows=lists.rows[:-1]),
    ]  # fmt: skip


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Compiled code would read beyond them."""
    good = listed(make_evidence())
    assert good.lists is not None
    for bad in spoilt(good.lists.by_embedding):
        write_evidence(tmp_path / "evidence.npz", replace(good, lists=replace(good.lists, by_embedding=bad)))
        with pytest.raises(BundleError, match=r"entries in .* lists of dimension .*export again"):
            read_evidence(tmp_path / "evidence.npz", D, L)
