"""The plain baselines: each does what its name says, nothing is tuned on what is scored, forbidden pairs stay out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from bench.plain_baselines import (
    FIGURES,
    KernelRidge,
    NearestProducts,
    Popularity,
    Titles,
    choose,
    families,
    main,
    measure,
    problem,
)
from mufin.catalogue import Catalogue, read_catalogue
from mufin.relevance import Relevance
from mufin.significance import Bootstrap
from tests.catalogue_factory import make_tiny_catalogue


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Sixty products and bid queries that share words."""
    return read_catalogue(make_tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "tiny"))


def unit(*rows: list[float]) -> csr_matrix:
    """Sparse rows of unit length."""
    dense = np.array(rows, np.float32)
    return csr_matrix(dense / np.linalg.norm(dense, axis=1, keepdims=True))


TRAINING = unit([1, 0, 0], [0, 1, 0], [0, 1, 1])
RELEVANCE = csr_matrix(np.array([[1, 0, 1], [0, 1, 0], [0, 1, 1]], np.float32))


def titles(queries: csr_matrix, sentences: int = 0) -> Titles:
    """Queries beside the three training products; sentences are rows of the identity."""
    count = queries.shape[0]
    return Titles(
        queries,
        TRAINING,
        RELEVANCE,
        np.eye(3, sentences, dtype=np.float32)[:count],
        np.eye(3, sentences, dtype=np.float32),
    )


def test_popularity_is_the_training_frequency() -> None:
    """The same for every query."""
    scores = Popularity().scores(titles(unit([1, 0, 0], [0, 0, 1])))
    assert scores.tolist() == [[1, 2, 2], [1, 2, 2]]


def test_the_nearest_product_gives_its_labels() -> None:
    """One neighbour: its labels alone; more: weights by cosine."""
    query = unit([0.1, 1, 0])
    alone = NearestProducts("TF-IDF", 1, 10.0).scores(titles(query))
    assert (alone[0] > 0).tolist() == [False, True, False]
    cosines = np.asarray((query @ TRAINING.T).todense())[0]
    weights = np.exp(10.0 * (cosines - cosines.max()))
    expected = weights @ np.asarray(RELEVANCE.todense())
    found = NearestProducts("TF-IDF", 50, 10.0).scores(titles(query))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ridge_solves_the_regularised_least_squares() -> None:
    """Its kernel form equals the primal solution."""
    x, y = np.asarray(TRAINING.todense()), np.asarray(RELEVANCE.todense())
    primal = np.linalg.solve(x.T @ x + 0.3 * np.eye(3), x.T @ y)
    query = unit([1, 2, 0])
    found = KernelRidge("TF-IDF", 0.3).scores(titles(query))
    np.testing.assert_allclose(found, np.asarray(query.todense()) @ primal, atol=1e-5)


def test_both_kernels_are_joined_evenly() -> None:
    """A query whose words say one product and whose sentence says another gives both the same vote."""
    posed = titles(unit([0, 0.001, 1.0]), sentences=3)
    cosines = 0.5 * (posed.word_cosines() + posed.sentence_cosines())
    expected = np.exp(5.0 * (cosines - cosines.max())) @ np.asarray(RELEVANCE.todense())
    found = NearestProducts("TF-IDF + sentence", 3, 5.0).scores(posed)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = NearestProducts("sentence", 1, 5.0).scores(posed)
    assert (alone[0] > 0).tolist() == [True, False, True]


def test_methods_depend_on_what_is_there() -> None:
    """Without an encoder no sentences; with everything all that one would use instead."""
    names = [family[0].describe().split(" (")[0] for family in families(False, None)]
    assert names == ["popularity", "TF-IDF nearest products", "TF-IDF kernel ridge"]
    more = [family[0].describe().split(" (")[0] for family in families(True, Path("python"))]
    assert set(names) < set(more) and "PECOS XR-Linear" in more and "TF-IDF + sentence kernel ridge" in more


def test_forbidden_pairs_are_never_ranked(catalogue: Catalogue) -> None:
    """Not even when every neighbour has the label."""
    train, valid = catalogue.splits["train"], catalogue.splits["valid"]
    everything = np.arange(len(catalogue.labels) - 2)
    rows = np.repeat(valid.products, len(everything))
    exclude = Relevance.from_pairs(
        rows, np.tile(everything, len(valid.products)), len(catalogue.products), len(catalogue.labels)
    )
    changed = replace(catalogue, exclude=exclude)
    posed = problem(changed, train.products, train.relevance, valid.products, valid.relevance)
    ranking = posed.ranking(Popularity())
    assert set(ranking.ravel().tolist()) == {-1, len(everything), len(everything) + 1}


def test_settings_are_chosen_without_the_scored_split(catalogue: Catalogue) -> None:
    """Other validation labels, even none right, choose the same settings."""
    valid = catalogue.splits["valid"]
    wrong = Relevance.from_pairs(
        np.arange(len(valid.products)), np.zeros(len(valid.products), np.int64), len(valid.products),
        len(catalogue.labels),
    )  # fmt: skip
    other = replace(catalogue, splits={**catalogue.splits, "valid": replace(valid, relevance=wrong)})
    assert choose(catalogue, 0) == choose(other, 0)


def test_words_beat_popularity_where_words_decide(catalogue: Catalogue) -> None:
    """On a catalogue whose labels go with a word of the title; the table has every figure."""
    found = measure(catalogue.folder, "valid", None, 0, Bootstrap(50))
    values = [row["P@1"]["value"] for row in found["rows"]]
    assert values[1] > values[0] and values[2] > values[0]
    assert all(row[name]["low"] <= row[name]["value"] <= row[name]["high"] for row in found["rows"] for name in FIGURES)


def test_what_cannot_be_measured_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    """A split that is not there, a comparison of several catalogues, no catalogue at all."""
    with pytest.raises(SystemExit, match="no split 'test'"):
        main([str(catalogue.folder), "--split", "test"])
    for arguments in (["a", "b", "--compare", str(tmp_path)], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
