"""Label search against plain comparison with every label."""

from __future__ import annotations

import numpy as np
import pytest

from model_export.label_index import IndexSettings
from mufin.bundle import open_bundle
from mufin.inputs import BoolArray, FloatArray
from mufin.label_store import BundleLabelStore
from tests.bundle_factory import DIMENSION, make_tiny_bundle

LABELS = 300


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> BundleLabelStore:
    """A store with an exact index."""
    folder = make_tiny_bundle(tmp_path_factory.mktemp("exact") / "b", labels=LABELS, excluded={"P": np.array([4, 9])})
    return BundleLabelStore(open_bundle(folder))


@pytest.fixture(scope="module")
def approximate(tmp_path_factory: pytest.TempPathFactory) -> BundleLabelStore:
    """The same labels behind a graph index."""
    folder = tmp_path_factory.mktemp("approximate") / "b"
    return BundleLabelStore(open_bundle(make_tiny_bundle(folder, labels=LABELS, index=IndexSettings(exact_labels=10))))


def queries(count: int) -> FloatArray:
    """Seeded directions."""
    return np.random.default_rng(1).standard_normal((count, DIMENSION)).astype(np.float32)


def plainly(store: BundleLabelStore, vectors: FloatArray, k: int, allowed: BoolArray) -> FloatArray:
    """The k best scores, by comparing with each label."""
    scores = vectors @ store.embeddings(np.flatnonzero(allowed)).T
    return -np.sort(-scores, axis=1)[:, :k]


def masks() -> list[BoolArray]:
    """Everything, half, and a handful of labels."""
    index = np.arange(LABELS)
    return [np.ones(LABELS, np.bool_), index % 2 == 0, index % 60 == 1]


@pytest.mark.parametrize("kind", ["exact", "approximate"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_search_finds_the_best_allowed_labels(kind: str, number: int, request: pytest.FixtureRequest) -> None:
    """Scores equal plain comparison, the graph's for four in five; only allowed labels come, best first."""
    store: BundleLabelStore = request.getfixturevalue(kind)
    allowed, vectors, k = masks()[number], queries(40), 5
    labels, scores = store.search(vectors, k, None if number == 0 else allowed)
    near = np.isclose(scores, plainly(store, vectors, k, allowed), atol=2e-5)
    assert near.all() if kind == "exact" or number == 2 else near.mean() > 0.8
    assert allowed[labels].all()
    assert (np.diff(scores, axis=1) <= 0).all()
    own = np.einsum("bd,bkd->bk", vectors, store.embeddings(labels.ravel()).reshape(40, k, -1))
    np.testing.assert_allclose(scores, own, atol=2e-5)


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_fewer_labels_than_asked_for_are_padded(kind: str, request: pytest.FixtureRequest) -> None:
    """-1 and -inf behind what exists; nothing allowed gives nothing."""
    store: BundleLabelStore = request.getfixturevalue(kind)
    allowed = np.zeros(LABELS, np.bool_)
    assert (store.search(queries(2), 3, allowed)[0] == -1).all()
    allowed[[8, 250]] = True
    labels, scores = store.search(queries(2), 4, allowed)
    assert sorted(labels[0].tolist()) == [-1, -1, 8, 250]
    assert np.isneginf(scores[:, 2:]).all()
    assert set(store.search(queries(1), LABELS + 5)[0][0].tolist()) == {-1, *range(LABELS)}
    assert store.search(queries(0), 4)[0].shape == (0, 4)


def test_ties_go_to_the_smaller_label(exact: BundleLabelStore) -> None:
    """Tiny labels repeat every 60, apart from their images: equal scores are ordered by index."""
    labels, scores = exact.search(queries(10), 50)
    for row, own in zip(labels, scores, strict=True):
        equal = own[1:] == own[:-1]
        assert equal.any()
        assert (row[1:][equal] > row[:-1][equal]).all()


def test_exclusions_hold_the_pairs_and_the_product_itself(exact: BundleLabelStore) -> None:
    """A product that is a label is excluded from its own answer."""
    assert exact.excluded("P").tolist() == [4, 9]
    assert exact.excluded("L12").tolist() == [12]
    assert exact.excluded("unknown").tolist() == []


def test_filters_reach_the_search(exact: BundleLabelStore) -> None:
    """allowed_by gives the mask that search takes."""
    allowed = exact.allowed_by({"category": ["hat", "bag"], "price": {"lte": 100}, "stock": True})
    labels, _ = exact.search(queries(3), 5, allowed)
    for label in exact.describe(labels[labels >= 0]):
        fields = label.metadata
        assert fields["category"] in ("hat", "bag")
        assert fields["price"] <= 100
        assert fields["stock"] is True
    assert exact.filter_keys == ("category", "colours", "price", "stock")
