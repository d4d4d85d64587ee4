"""The search against plain comparison with every label: every kind of index, filters, removed and head labels, ties."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from model_export.index_kinds import APPROXIMATE_KINDS
from model_export.label_index import IndexSettings, build_index, write_index
from mufin.bundle import INDEX_FILE, VECTORS_FILE, open_bundle
from mufin.errors import BundleError
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.label_search import EXACT, LabelSearch, _read_index
from mufin.label_vectors import VECTOR_UNIT
from mufin.manifest import BundleSizes
from mufin.scoring import l2_normalise
from tests.bundle_factory import DIMENSION as TINY
from tests.bundle_factory import make_tiny_bundle

LABELS, DIMENSION, K = 6_000, 24, 40
KINDS = (EXACT, *APPROXIMATE_KINDS)


@dataclass(frozen=True)
class Built:
    """An index of one kind."""

    kind: str
    index: Any
    candidates: float
    vectors: FloatArray

    def search(self, **options: Any) -> LabelSearch:
        """Opened over vectors as a bundle holds them."""
        vectors = np.rint(self.vectors * VECTOR_UNIT).astype(np.int16) if self.kind != EXACT else self.vectors
        return LabelSearch(self.index, self.kind, vectors, candidates=self.candidates, **options)


@pytest.fixture(scope="module")
def vectors() -> FloatArray:
    """Clustered unit vectors."""
    random = np.random.default_rng(3)
    centres = random.standard_normal((80, DIMENSION))
    own = centres[random.integers(0, 80, LABELS)] + 0.5 * random.standard_normal((LABELS, DIMENSION))
    return l2_normalise(own.astype(np.float32))


@pytest.fixture(scope="module")
def products(vectors: FloatArray) -> FloatArray:
    """Queries near labels."""
    random = np.random.default_rng(4)
    return l2_normalise(vectors[::200] + 0.15 * random.standard_normal((30, DIMENSION)).astype(np.float32))


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, vectors: FloatArray, products: FloatArray) -> Built:
    """Every kind, the approximate ones tuned to .95."""
    settings = IndexSettings(exact_labels=LABELS if request.param == EXACT else 10)
    if request.param != EXACT:
        settings = IndexSettings(exact_labels=10, kinds=(request.param,))
    found = build_index(vectors, np.zeros(LABELS, np.int64), K, settings, products)
    return Built(found.kind, found.index, found.candidates, vectors)


def best(vectors: FloatArray, queries: FloatArray, allowed: BoolArray, k: int) -> FloatArray:
    """(B, k) highest scores among allowed labels."""
    return np.asarray(-np.sort(-(queries @ vectors[allowed].T), axis=1)[:, :k])


def allowed_sets() -> dict[str, BoolArray]:
    """All labels; half, a sixth, a fiftieth of them."""
    place = np.arange(LABELS)
    return {"all": place >= 0, "half": place % 2 == 0, "a sixth": place % 6 == 1, "a fiftieth": place % 50 == 7}


@pytest.mark.parametrize("which", ["all", "half", "a sixth", "a fiftieth"])
def test_recall_holds_whatever_is_allowed(built: Built, vectors: FloatArray, products: FloatArray, which: str) -> None:
    """Only allowed labels, k of them, with their true scores, best first; as many of the best as the target says."""
    allowed = allowed_sets()[which]
    labels, scores = built.search().search(products, K, None if which == "all" else allowed)
    assert labels.shape == (30, K)
    assert (labels >= 0).all() and allowed[labels].all()
    assert all(len(set(row)) == K for row in labels.tolist())
    np.testing.assert_allclose(scores, np.einsum("bd,bkd->bk", products, vectors[labels]), atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    worst = best(vectors, products, allowed, K)[:, -1:]
    assert (scores >= worst - 1e-4).mean() >= (1.0 if built.kind == EXACT or which == "a fiftieth" else 0.93)


def test_k_labels_come_back_whenever_they_exist(built: Built, products: FloatArray) -> None:
    """More than the index was tuned for, nearly all of them, and all: none is lost; beyond that, padding."""
    search = built.search()
    for k in (5 * K, LABELS - 3, LABELS):
        labels, _ = search.search(products[:3], k)
        assert all(len(set(row)) == k for row in labels.tolist())
        assert labels.min() >= 0
    labels, scores = search.search(products[:1], LABELS + 2)
    assert labels[0, -2:].tolist() == [-1, -1]
    assert np.isneginf(scores[0, -2:]).all()


def test_removed_labels_are_never_returned(built: Built, vectors: FloatArray, products: FloatArray) -> None:
    """As a mask or as labels, with a filter and without; k others take their place.

    Every other label of the neighbourhood goes here, far more than the share of all: recall may fall a little.
    """
    first = built.search().search(products, K)[0]
    removed = np.unique(first[:, ::2])
    mask = np.zeros(LABELS, np.bool_)
    mask[removed] = True
    for given in (removed, mask):
        search = built.search(removed=given)
        labels, scores = search.search(products, K)
        assert labels.min() >= 0
        assert not mask[labels].any()
        assert (scores >= best(vectors, products, ~mask, K)[:, -1:] - 1e-4).mean() >= 0.88
        half = allowed_sets()["half"]
        filtered = search.search(products, K, half)[0]
        assert filtered.min() >= 0
        assert (half & ~mask)[filtered].all()
    everything = built.search(removed=np.arange(LABELS)).search(products[:2], 3)[0]
    assert (everything == -1).all()
    few = np.delete(np.arange(LABELS), [5, 4000])
    assert sorted(built.search(removed=few).search(products[:1], 3)[0][0].tolist()) == [-1, 5, 4000]


@pytest.mark.parametrize("built", [kind for kind in KINDS if kind != EXACT], indirect=True)
def test_a_head_label_is_found_though_the_index_does_not_find_it(built: Built, products: FloatArray) -> None:
    """Exactly compared, once, unless it is removed or not allowed; an exact index needs no head."""
    foreign = built.vectors.copy()
    head: Int64Array = np.array([17, 2500, 5999])
    foreign[head] = products[:3]  # the index knows other vectors of these labels
    search = LabelSearch(built.index, built.kind, foreign, head=head, candidates=built.candidates)
    labels, scores = search.search(products[:3], K)
    assert labels[:, 0].tolist() == head.tolist()
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)
    assert all(len(set(row)) == K for row in labels.tolist())
    half = np.arange(LABELS) % 2 == 0
    allowed = search.search(products[:3], K, half)[0]
    assert allowed[1, 0] == 2500
    assert half[allowed].all()
    without = LabelSearch(
        built.index, built.kind, foreign, head=head, candidates=built.candidates, removed=np.array([17])
    )
    assert not (without.search(products[:3], K)[0] == 17).any()


def test_of_equal_labels_the_smaller_are_returned() -> None:
    """Exact search: hundreds of equal vectors straddle the cut, alone, in batches and behind filters."""
    random = np.random.default_rng(8)
    vectors = l2_normalise(random.standard_normal((2_000, DIMENSION)).astype(np.float32))
    equal = np.sort(random.choice(2_000, 700, replace=False))
    vectors[equal] = vectors[equal[0]]
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    search = LabelSearch(index, EXACT, vectors)
    queries = l2_normalise(vectors[equal[0]] + 0.1 * random.standard_normal((50, DIMENSION)).astype(np.float32))
    half = np.arange(2_000) % 2 == 0
    for allowed in (None, half):
        expected = equal if allowed is None else equal[half[equal]]
        for batch in (queries, queries[:1]):
            for k in (1, 30, 300):
                labels, scores = search.search(batch, k, allowed)
                assert (labels == expected[:k]).all()
                assert (scores == scores[:, :1]).all()
    among = search.search(queries[:1], 300, np.isin(np.arange(2_000), equal[100:500]))[0][0]
    assert among.tolist() == equal[100:400].tolist()


def test_a_product_is_answered_alike_alone_and_in_company(built: Built, products: FloatArray) -> None:
    """Bit by bit: what else is in the batch changes neither labels nor scores."""
    search = built.search()
    labels, scores = search.search(products, K)
    for row in range(0, 30, 7):
        alone = search.search(products[row : row + 1], K)
        np.testing.assert_array_equal(alone[0][0], labels[row])
        np.testing.assert_array_equal(alone[1][0], scores[row])


def test_stored_vectors_give_scores_within_the_tolerance(built: Built, products: FloatArray) -> None:
    """Fixed point of 16 bits: cosines within 1e-4 of those of float32."""
    labels = np.arange(LABELS)
    found = products @ built.search().embeddings(labels).T
    assert np.abs(found - products @ built.vectors.T).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_another_kind_is_refused(kind: str, vectors: FloatArray, tmp_path: Path) -> None:
    """The file is another kind than the manifest says; both are named."""
    other = EXACT if kind != EXACT else "ivf-sq8"
    settings = IndexSettings(exact_labels=LABELS) if other == EXACT else IndexSettings(exact_labels=1, kinds=(other,))
    write_index(tmp_path, build_index(vectors[:1000], np.zeros(1000, np.int64), 10, settings))
    with pytest.raises(BundleError, match=rf"is Index\w+, the manifest says '{kind}': run mufin-export again"):
        _read_index(tmp_path / INDEX_FILE, kind)
    with pytest.raises(BundleError, match="the manifest says 'brute', this mufin knows exact, hnsw-sq8"):
        _read_index(tmp_path / INDEX_FILE, "brute")


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    """Whatever kind it should be."""
    (tmp_path / INDEX_FILE).write_bytes(b"nothing of the sort")
    for kind in KINDS:
        with pytest.raises(BundleError, match="is no FAISS index"):
            _read_index(tmp_path / INDEX_FILE, kind)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (INDEX_FILE, "index has 299 labels of 16 numbers, bundle has 300 of 16"),
        (VECTORS_FILE, r"holds \(299, 16\) int16, needs \(300, 16\) int16"),
    ],
)
def test_files_of_other_sizes_are_refused(file: str, said: str, tmp_path: Path) -> None:
    """One label fewer than the manifest says; hashes are not what finds it."""
    assert TINY == 16
    folder = make_tiny_bundle(tmp_path / "b", labels=300, index=IndexSettings(exact_labels=10, kinds=("ivf-sq8",)))
    bundle = open_bundle(folder)
    vectors = np.load(folder / VECTORS_FILE).astype(np.float32)[:299] / VECTOR_UNIT
    settings = IndexSettings(exact_labels=10, kinds=("ivf-sq8",), target_recall=0.5)
    (tmp_path / "other").mkdir()
    write_index(tmp_path / "other", build_index(vectors, np.zeros(299, np.int64), 20, settings))
    (folder / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(BundleError, match=said):
        LabelSearch.open(bundle)


@pytest.mark.parametrize("kind", APPROXIMATE_KINDS)
def test_every_kind_opens_from_a_bundle(kind: str, tmp_path: Path) -> None:
    """What was tuned comes back from the files: no setting is left to the service."""
    folder = make_tiny_bundle(
        tmp_path / "b", labels=400, index=IndexSettings(exact_labels=10, kinds=(kind,)), shortlist_size=20
    )
    sizes: BundleSizes = open_bundle(folder).manifest.sizes
    said = json.loads((folder / "manifest.json").read_text())["sizes"]
    assert (sizes.index, said["index"]) == (kind, kind)
    search = LabelSearch.open(open_bundle(folder))
    everything = search.embeddings(np.arange(400))
    queries = l2_normalise(everything[::20] + 0.05)
    _, scores = search.search(queries, 20)
    assert (scores >= -np.sort(-(queries @ everything.T), axis=1)[:, 19:20] - 1e-5).mean() > 0.9


def test_fewer_labels_than_the_shortlist_are_chosen_from_as_many_candidates(built: Built, products: FloatArray) -> None:
    """The first three of a search for three are those of a search for the whole shortlist."""
    search = built.search(shortlist=K)
    np.testing.assert_array_equal(search.search(products, 3)[0], search.search(products, K)[0][:, :3])


def test_a_search_leaves_the_threads_of_others_alone() -> None:
    """torch reads the number that faiss is told: training in the same process would add in another order."""
    before = faiss.omp_get_max_threads()
    vectors = np.eye(8, dtype=np.float32)
    index = faiss.IndexFlatIP(8)
    index.add(vectors)
    try:
        faiss.omp_set_num_threads(2)
        LabelSearch(index, EXACT, vectors).search(vectors[:2], 3)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)
