"""Evidence: votes as defined, candidates where it speaks, files that are checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mufin.candidate_arithmetic import arithmetic
from mufin.compilation import KERNELS, Kernel
from mufin.errors import BundleError
from mufin.evidence import NEAR, WIDE, Evidence, ProductEvidence, ProductLists
from mufin.evidence_file import read_evidence, stored, write_evidence
from mufin.inputs import FloatArray
from mufin.related_labels import RelatedLabels
from mufin.relevance import Relevance
from mufin.scoring import l2_normalise
from mufin.title_ridge import TitleRidge, label_weights
from mufin.title_words import SparseRow, fit_title_words
from mufin.training import related as related_module
from mufin.training.related import related_labels
from mufin.training.vector_lists import fit_lists
from mufin.vector_rows import VectorRows

D, L, W = 8, 30, 6


def _of(
    evidence: Evidence, embedding: FloatArray, title: SparseRow | None, sentence: FloatArray | None
) -> ProductEvidence:
    return evidence.of(embedding[None], [title], [sentence])[0]


def make_evidence() -> Evidence:
    """150 training products with three labels each."""
    random = np.random.default_rng(0)
    titles = [f"kind{i % 7} colour{i % 5} thing" for i in range(150)]
    labels = [f"kind{i % 7} label{i}" for i in range(L)]
    words = fit_title_words([*titles, *labels])
    rows = np.repeat(np.arange(150), 3)
    relevance = Relevance.from_pairs(rows, random.integers(0, L, 450), 150, L)
    products = l2_normalise(random.normal(size=(150, D)).astype(np.float32))
    sentences, names = (l2_normalise(random.normal(size=(n, W)).astype(np.float32)) for n in (150, L))
    weights = label_weights(random.normal(size=(L, len(words))).astype(np.float32), 5)
    ridge = TitleRidge(weights, VectorRows.of(random.normal(size=(L, W))), len(words))
    related = related_labels(words.rows(labels), names, len(words), relevance)
    found = Evidence(
        words, VectorRows.of(products), relevance, words.rows(titles), words.rows(labels), VectorRows.of(sentences),
        VectorRows.of(names), ridge, related,
    )  # fmt: skip
    return stored(found)


@pytest.fixture(scope="module", params=KERNELS)
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Computed by either kernel."""
    kernel: Kernel = request.param
    return make_evidence().with_kernel(kernel)


def test_votes_are_softly_weighted_shares_of_the_nearest_products(evidence: Evidence) -> None:
    """Near and wide votes against the definition, label by label."""
    query = l2_normalise(np.ones((1, D), np.float32))[0]
    found = _of(evidence, query, None, None)
    cosines = evidence.products.wide @ query
    for shares, (count, sharpness) in zip(found.by_embedding.of(np.arange(L)), (NEAR, WIDE), strict=True):
        nearest = np.argsort(-cosines, kind="stable")[:count]
        weights = np.exp(sharpness * (cosines[nearest] - cosines[nearest[0]]))
        expected = np.zeros(L)
        for row, weight in zip(nearest, weights / weights.sum(), strict=True):
            expected[evidence.relevance.row(int(row))] += weight
        np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert found.by_embedding.best == pytest.approx(float(cosines.max()), abs=1e-6)


def test_words_find_products_of_the_same_kind(evidence: Evidence) -> None:
    """The title's own words rule the word votes, and matching label titles are scored."""
    title = evidence.words.row("kind3 colour2")
    found = _of(evidence, evidence.products.wide[0], title, evidence.sentences.wide[0])
    assert found.by_words.best > 0.8
    matching = [i for i in range(L) if i % 7 == 3]
    assert set(np.flatnonzero(found.title_cosines > 0)) == set(matching)
    assert set(matching) <= set(found.candidates().tolist())


def test_without_a_title_words_say_nothing(evidence: Evidence) -> None:
    """No votes, no match; an unknown title is the same."""
    for title in (None, evidence.words.row("never seen")):
        found = _of(evidence, evidence.products.wide[0], title, None)
        assert not np.any(found.by_words.of(np.arange(L)))
        assert not found.title_cosines.any() and found.by_words.best == 0.0
        assert len(found.candidates())


def test_titles_vote_by_words_and_sentence_together(evidence: Evidence) -> None:
    """The mean of both cosines, against the definition; a title of unknown words votes by its sentence."""
    title, sentence = evidence.words.row("kind3 colour2"), evidence.sentences.wide[4]
    dense = np.zeros((2, 150, len(evidence.words)), np.float32)
    for row in range(150):
        own = evidence.product_words.row(row)
        dense[0, row, own.ids] = own.weights
    query = np.zeros(len(evidence.words), np.float32)
    query[title.ids] = title.weights
    cosines = 0.5 * (dense[0] @ query + evidence.sentences.wide @ sentence)
    assert _of(evidence, evidence.products.wide[0], title, sentence).by_title.best == pytest.approx(
        float(cosines.max()), abs=1e-5
    )
    unknown = _of(evidence, evidence.products.wide[0], evidence.words.row("never seen"), sentence)
    assert np.any(unknown.by_title.of(np.arange(L))) and not np.any(unknown.by_words.of(np.arange(L)))


def test_ridge_is_a_linear_map_of_words_and_sentence(evidence: Evidence) -> None:
    """Against the dense product; its best labels become candidates."""
    assert evidence.ridge is not None
    title, sentence = evidence.words.row("kind3 colour2 thing"), evidence.sentences.wide[4]
    weights = np.zeros((L, len(evidence.words)), np.float32)
    for label in range(L):
        own = evidence.ridge.words.row(label)
        assert len(own.ids) <= 5
        weights[label, own.ids] = own.weights
    expected = weights[:, title.ids] @ title.weights + evidence.ridge.sentences.wide @ sentence
    found = _of(evidence, evidence.products.wide[0], title, sentence)
    np.testing.assert_allclose(found.ridge, expected, atol=1e-5)
    assert int(expected.argmax()) in found.candidates()
    assert not _of(evidence, evidence.products.wide[0], None, None).ridge.any()


def test_a_labels_own_products_are_its_vectors(evidence: Evidence) -> None:
    """Best, second and mean cosine of the title with them, label by label; nothing without a title."""
    title, sentence = evidence.words.row("kind3 colour2"), evidence.sentences.wide[4]
    found = _of(evidence, evidence.products.wide[0], title, sentence)
    labels = np.array([4, 29, 0, L + 3, 4])
    best, second, mean = found.own_products(labels)
    assert isinstance(found.title_products, np.ndarray)
    for place, label in enumerate(labels):
        own = [
            float(found.title_products[row]) for row in range(150) if label in evidence.relevance.row(row).tolist()
        ]  # fmt: skip
        expected = [*sorted(own, reverse=True)[:2], float(np.mean(own))] if own else [0.0, 0.0, 0.0]
        np.testing.assert_allclose([best[place], second[place], mean[place]], expected, atol=1e-6)
    silent = _of(evidence, evidence.products.wide[0], None, None)
    assert not np.any(silent.own_products(labels)) and not np.any(silent.of_related(labels)[1:])


def test_a_label_of_one_product_has_no_second(evidence: Evidence) -> None:
    """And one of none has nothing."""
    relevance = Relevance.from_pairs(np.arange(2), np.array([3, 5]), 150, L)
    found = _of(replace(evidence, relevance=relevance), evidence.products.wide[0], None, evidence.sentences.wide[1])
    best, second, mean = found.own_products(np.array([3, 5, 6]))
    assert best[1] == mean[1] == pytest.approx(0.5, abs=1e-3) and not second.any()
    assert best[2] == mean[2] == 0


def test_neighbours_are_labels_of_like_titles_and_labels_that_share_products(evidence: Evidence) -> None:
    """Both against the definition, through dense matrices; a label is not beside itself."""
    assert evidence.related is not None
    words = np.zeros((L, len(evidence.words)))
    for label in range(L):
        own = evidence.label_words.row(label)
        words[label, own.ids] = own.weights
    names = evidence.label_sentences.wide
    cosines = np.maximum(0.5 * (words @ words.T + names @ names.T), 0) ** 6
    pairs = np.zeros((150, L))
    for row in range(150):
        pairs[row, evidence.relevance.row(row)] = 1
    shares = (pairs.T @ pairs) / pairs.sum(axis=0)[:, None]
    scores = np.linspace(1, 2, L).astype(np.float32)
    for kind, similarity, one in (
        (evidence.related.like, cosines, True), (evidence.related.companions, shares, False),
    ):  # fmt: skip
        np.fill_diagonal(similarity, 0)
        kept = np.where(similarity >= np.sort(similarity, axis=1)[:, -10:-9], similarity, 0)
        if one:
            expected = kept @ scores / kept.sum(axis=1)
            np.testing.assert_allclose(
                arithmetic("numpy").spread(np.arange(L), scores, kind.labels, kind.weights), expected, rtol=1e-2
            )  # float16 sentences
        ties = np.sort(kind.weights, axis=1)[:, ::-1] * (kept.sum(axis=1, keepdims=True) if one else 1)
        np.testing.assert_allclose(ties, np.sort(similarity, axis=1)[:, -10:][:, ::-1], rtol=2e-2, atol=1e-6)
        assert not np.any((kind.labels == np.arange(L)[:, None]) & (kind.weights > 0))


def test_few_labels_have_few_neighbours_and_too_many_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three labels: two each. A single one: none. Above the limit there is no table at all."""
    words = fit_title_words(["red shoe", "red boot", "blue shoe"], least=1)

    def of(count: int) -> RelatedLabels | None:
        titles = words.rows(["red shoe", "red boot", "blue shoe"][:count])
        relevance = Relevance.from_pairs(np.zeros(count, np.int64), np.arange(count), 1, count)
        return related_labels(titles, np.zeros((count, 2), np.float32), len(words), relevance)

    for count in (3, 1):
        found = of(count)
        assert found is not None and len(found.like) == count
        assert (found.companions.weights > 0).sum() == count * (count - 1)
    monkeypatch.setattr(related_module, "MOST_LABELS", 0)
    assert of(1) is None


def test_fewer_training_products_than_neighbours_all_vote(evidence: Evidence) -> None:
    """Three products, one hundred asked for: the shares are over three."""
    few = replace(
        evidence, products=VectorRows.of(evidence.products.values[:3]), relevance=evidence.relevance.select(np.arange(3)),
        product_words=evidence.product_words.select(np.arange(3)), sentences=VectorRows.of(evidence.sentences.values[:3]),
    )  # fmt: skip
    found = _of(few, evidence.products.wide[1], None, None)
    assert set(found.candidates().tolist()) == set(evidence.relevance.select(np.arange(3)).indices.tolist())


def test_it_is_read_back_as_it_was(evidence: Evidence, tmp_path: Path) -> None:
    """Every product's evidence is the same to the bit, as ``stored`` promises."""
    path = tmp_path / "evidence.npz"
    write_evidence(path, evidence)
    again = read_evidence(path, D, L).with_kernel(evidence.products.kernel)
    np.testing.assert_array_equal(again.products.values, evidence.products.values)
    query, title, sentence = (
        evidence.products.wide[7],
        evidence.words.row("kind1 colour1 thing"),
        evidence.sentences.wide[7],
    )
    first, second = _of(evidence, query, title, sentence), _of(again, query, title, sentence)
    np.testing.assert_array_equal(first.ridge, second.ridge)
    labels = np.arange(L)
    np.testing.assert_array_equal(first.sentence_match(labels), second.sentence_match(labels))
    np.testing.assert_array_equal(first.candidates(), second.candidates())
    np.testing.assert_array_equal(first.title_cosines, second.title_cosines)
    np.testing.assert_array_equal(first.of_related(labels), second.of_related(labels))
    np.testing.assert_array_equal(first.own_products(labels), second.own_products(labels))


def test_candidates_are_the_best_of_each_kind(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of each, by sorting everything; ties to the smaller label, nothing that nobody speaks for."""
    monkeypatch.setattr("mufin.evidence.CANDIDATES", 3)
    for row in range(20):
        title = evidence.words.row(f"kind{row % 7} thing") if row % 3 else None
        found = _of(
            evidence, evidence.products.wide[row], title, None if title is None else evidence.sentences.wide[row]
        )
        dense = [own.of(np.arange(L))[1] for own in (found.by_embedding, found.by_words, found.by_title)]
        expected: set[int] = set()
        for scores in (*dense, found.title_cosines, found.ridge):
            order = np.lexsort((np.arange(L), -scores))
            expected |= {int(label) for label in order[:3] if scores[label] > 0}
        assert found.candidates().tolist() == sorted(expected)


def test_of_equally_near_products_the_first_vote(evidence: Evidence) -> None:
    """All equally far by embedding and by title: the hundred first, on any processor."""
    found = _of(evidence, np.zeros(D, np.float32), None, np.zeros(W, np.float32))
    expected = np.zeros(L)
    for row in range(WIDE[0]):
        expected[evidence.relevance.row(row)] += 1 / WIDE[0]
    for votes in (found.by_embedding, found.by_title):
        np.testing.assert_allclose(votes.of(np.arange(L))[1], expected, atol=1e-6)


def test_no_company_changes_what_is_known_of_a_product(evidence: Evidence) -> None:
    """Products in one call, with titles and without, and one by one: the same to the bit."""
    random = np.random.default_rng(5)
    embeddings = l2_normalise(random.normal(size=(5, D)).astype(np.float32))
    titles = [
        evidence.words.row("kind3 thing"),
        None,
        evidence.words.row("never seen"),
        None,
        evidence.words.row("kind1"),
    ]
    sentences = [None if title is None else evidence.sentences.wide[row] for row, title in enumerate(titles)]
    labels = np.arange(L)
    together = evidence.of(embeddings, titles, sentences)
    for found, embedding, title, sentence in zip(together, embeddings, titles, sentences, strict=True):
        alone = _of(evidence, embedding, title, sentence)
        for own in ("by_embedding", "by_words", "by_title"):
            np.testing.assert_array_equal(getattr(found, own).of(labels), getattr(alone, own).of(labels))
        for own in ("ridge", "title_products", "title_cosines"):
            np.testing.assert_array_equal(getattr(found, own), getattr(alone, own))
        assert (found.sentence is None) == (title is None)
    assert evidence.of(embeddings[:0], [], []) == []


_AHEAD = "from mufin import candidate_arithmetic, vector_rows; candidate_arithmetic.compile_here(); vector_rows.compile_here()"
_SERVED = """
import sys
from pathlib import Path
import numpy as np
from mufin.combination import candidate_features
from mufin.evidence_file import read_evidence
evidence = read_evidence(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
row = evidence.products.wide[:2]
sentence = evidence.sentences.wide[0]
for found in evidence.of(row, [evidence.words.row("kind3 thing"), None], [sentence, None]):
    labels = found.candidates()
    scores = np.zeros(len(labels), np.float32)
    candidate_features(labels, scores, scores, found, evidence.frequency, True, False)
from mufin import candidate_kernels, vector_kernels
kernels = [*candidate_kernels.KERNELS, *vector_kernels.KERNELS]
print([sum(own.stats.cache_misses.values()) for own in kernels], min(sum(own.stats.cache_hits.values()) for own in kernels))
"""


@pytest.mark.parametrize("lists", [False, True], ids=["every product", "lists"])
def test_what_is_compiled_ahead_is_what_is_called(lists: bool, tmp_path: Path) -> None:
    """A bundle's evidence, read and asked, compiles nothing: every kernel's code is found."""
    evidence = make_evidence()
    if lists:
        fitted = (fit_lists(rows, WIDE[0], 1) for rows in (evidence.products, evidence.sentences))
        evidence = replace(evidence, lists=ProductLists(*fitted))
    write_evidence(tmp_path / "evidence.npz", evidence)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    subprocess.run([sys.executable, "-c", _AHEAD], env=environment, check=True)
    call = [sys.executable, "-c", _SERVED, str(tmp_path / "evidence.npz"), str(D), str(L)]
    found = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "[0, 0, 0, 0, 0, 0, 0, 0] 1\n"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("labels", lambda found: np.asarray(99), "99 labels"),
        ("products", lambda found: np.zeros((150, D + 1), np.float16), f"dimension {D + 1}"),
        ("products", lambda found: found[:2], "2 embeddings"),
        ("relevance_indices", lambda found: found + L, "names label"),
        ("idf", lambda found: found[:3], "3 weights"),
        ("sentences", lambda found: found[:2], "2 sentences"),
        ("sentences", lambda found: found[:, :2], "numbers"),
        ("ridge_sentences", lambda found: found[:5], "rows of 30 labels"),
        ("like_labels", lambda found: found + L, "of 30 labels"),
        ("like_labels", lambda found: found[:, :2], "of 30 labels"),
        ("companions_labels", lambda found: found - L, "of 30 labels"),
        ("companions_weights", lambda found: found[:4], "of 30 labels"),
        ("ridge_words_ids", lambda found: found + 10_000, "names word"),
        ("product_words_ids", lambda found: found + 10_000, "names word"),
        ("label_words_ids", lambda found: found - 10_000, "names words -"),
        ("label_words_weights", lambda found: found[:-1], "label_words has ids of shape"),
        *(
            (f"{name}_indptr", change, f"{name}_indptr {says}")
            for name in ("relevance", "product_words", "label_words", "ridge_words")
            for change, says in (
                (lambda found: np.concatenate([[0, found[-1] + 3000], found[2:]]), "runs from 0 to .* values of 0 to"),
                (lambda found: np.concatenate([[0, -7], found[2:]]), "runs from 0 to .* values of -7 to"),
                (lambda found: np.concatenate([[1], found[1:]]), "runs from 1 to"),
                (lambda found: np.concatenate([found[:-1], found[-1:] + 7]), "runs from 0 to"),
                (lambda found: found.astype(np.float64), "holds float64"),
                (lambda found: found[None], "holds int64 of shape"),
            )
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    evidence: Evidence, tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], says: str
) -> None:
    """Each with both values and the remedy."""
    path = tmp_path / "evidence.npz"
    write_evidence(path, evidence)
    with np.load(path) as arrays:
        values = dict(arrays)
    values[name] = change(values[name])
    np.savez(path, **values)
    with pytest.raises(BundleError, match=says) as caught:
        read_evidence(path, D, L)
    assert "export again" in str(caught.value)
