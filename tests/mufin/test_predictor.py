"""The predictor's stages on a tiny bundle: batched as alone, complete, and equal to a plain reading."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from model_export.label_index import IndexSettings
from mufin.bundle import TEXT_GRAPH_FILE
from mufin.errors import InputError
from mufin.graphs import EncoderGraphs
from mufin.inputs import FloatArray, TokenBatch
from mufin.predictor import Predictor, ProductBag, open_predictor
from mufin.scoring import classifier_scores, fuse
from tests.bundle_factory import COLOURS, DIMENSION, KINDS, SIDE, make_tiny_bundle, pixels
from tests.mufin.test_bundle import ROOT, reseal

NO_IMAGES = np.zeros((0, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labels, shortlists of ten."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", shortlist_size=10)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    """Over the same."""
    return open_predictor(folder)


@pytest.fixture(scope="module")
def bags(predictor: Predictor) -> list[ProductBag]:
    """Title and two images, title only, image only."""
    images = [np.stack([pixels("red"), pixels("blue")]), NO_IMAGES, pixels("green")[None]]
    return predictor.embed(["Red shirt men", "blue hat", ""], images)


def test_titles_in_a_batch_equal_titles_alone(predictor: Predictor) -> None:
    """More titles than fit one call, of mixed lengths, come back in their order."""
    titles = [
        " ".join(["red", "shirt", "men", "cotton"][: 1 + i % 4]) + f" {'blue' if i % 3 else ''}" for i in range(150)
    ]
    together = predictor.encode_titles(titles)
    alone = np.concatenate([predictor.encode_titles([title]) for title in titles])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert predictor.encode_titles([]).shape == (0, DIMENSION)


def test_titles_of_unlike_length_do_not_share_a_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine short ones would be padded with more than a call costs; two short ones would not, and on a GPU none are cut."""
    predictor = open_predictor(folder)
    called: list[tuple[int, ...]] = []
    titles = type(predictor.encoder.graphs).titles

    def noted(graphs: EncoderGraphs, tokens: TokenBatch) -> FloatArray:
        called.append(tokens.ids.shape)
        return titles(graphs, tokens)

    monkeypatch.setattr(EncoderGraphs, "titles", noted)
    short, long = [3] * 9, [6, 5]
    for lengths, calls in ((short + long, [(9, 3), (2, 6)]), (short[:2] + long, [(4, 6)])):
        mask = (np.arange(6) < np.asarray(lengths)[:, None]).astype(np.int64)
        predictor.encode_tokens(TokenBatch(mask, mask))
        assert called == calls
        called.clear()
    monkeypatch.setattr(predictor.encoder.graphs, "title_call_tokens", math.inf)
    mask = (np.arange(6) < np.asarray(short + long)[:, None]).astype(np.int64)
    predictor.encode_tokens(TokenBatch(mask, mask))
    assert called == [(11, 6)]


def test_images_in_a_batch_equal_images_alone(predictor: Predictor) -> None:
    """More images than fit one call come back in their order."""
    batch = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3)).astype(np.uint8)
    alone = np.concatenate([predictor.encode_images(batch[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(predictor.encode_images(batch), alone, atol=1e-5)


@pytest.mark.parametrize("wrong", [np.zeros((1, 9, 9, 3), np.uint8), np.zeros((1, SIDE, SIDE, 3), np.float32)])
def test_pixels_of_another_shape_are_refused(predictor: Predictor, wrong: np.ndarray) -> None:
    """The bundle's size is named."""
    with pytest.raises(InputError, match=r"this bundle needs \(N, 8, 8, 3\) uint8"):
        predictor.encode_images(wrong)


def test_bags_hold_real_slots_only(predictor: Predictor, bags: list[ProductBag]) -> None:
    """A missing title or image makes a smaller bag, no zero vector; a batch changes nothing."""
    assert [len(bag.slots) for bag in bags] == [3, 1, 1]
    assert [bag.has_title for bag in bags] == [True, True, False]
    assert [float(np.linalg.norm(bag.embedding)) for bag in bags] == pytest.approx([1, 1, 1], abs=1e-5)
    alone = predictor.embed([""], [pixels("green")[None]])[0]
    np.testing.assert_allclose(alone.embedding, bags[2].embedding, atol=1e-6)
    np.testing.assert_allclose(alone.slots, bags[2].slots, atol=1e-6)
    assert predictor.bag([], []) == []


def test_a_product_with_nothing_is_refused(predictor: Predictor) -> None:
    """Its place in the batch is named; a title of spaces is none."""
    with pytest.raises(InputError, match="product 1 of the batch has neither title nor image"):
        predictor.embed(["red", "  \n"], [NO_IMAGES, NO_IMAGES])


def test_images_beyond_the_limit_are_left_out(predictor: Predictor) -> None:
    """InputSpec.max_images rules serving as it did training."""
    three = np.stack([pixels("red"), pixels("blue"), pixels("white")])
    first, limited = predictor.embed(["", ""], [three, three[:2]])
    np.testing.assert_array_equal(first.embedding, limited.embedding)


def test_rank_equals_its_parts(predictor: Predictor, bags: list[ProductBag]) -> None:
    """Shortlist by cosine, classifier score label by label, fused, sorted, ties by label; all computed plainly."""
    store, spec = predictor.labels, predictor.score_spec
    assert predictor._attention is not None
    for bag, ranking in zip(bags, predictor.rank(bags, 4), strict=True):
        cosines = store.embeddings(np.arange(store.size)) @ bag.embedding
        short = np.lexsort((np.arange(store.size), -cosines))[: spec.shortlist_size]
        classifier = np.concatenate(
            [classifier_scores(predictor._attention, bag.slots, store.records(np.array([label]))) for label in short]
        )
        fused = fuse(spec, classifier, cosines[short].astype(np.float32))
        np.testing.assert_allclose(ranking.scores, -np.sort(-fused)[:4], atol=1e-5)
        places = [int(np.flatnonzero(short == label)[0]) for label in ranking.labels]
        np.testing.assert_allclose(ranking.scores, fused[places], atol=1e-5)
        np.testing.assert_allclose(ranking.classifier_scores, classifier[places], atol=1e-5)
        np.testing.assert_allclose(ranking.shortlist_scores, cosines[short][places], atol=1e-5)
        expected = spec.calibration(bag.modality).probability(ranking.scores)
        np.testing.assert_allclose(ranking.probabilities, expected, atol=1e-6)


def test_probabilities_follow_what_the_product_came_with(predictor: Predictor) -> None:
    """Title and image, title alone, two images alone: each by its own curve (those of tests/bundle_factory.py)."""
    none, two = np.zeros((0, *pixels("red").shape), np.uint8), np.stack([pixels("red"), pixels("blue")])
    bags = predictor.embed(["red shirt", "red shirt", ""], [two[:1], none, two])
    assert [bag.modality for bag in bags] == ["both", "title", "images"]
    for ranking, (scale, offset) in zip(predictor.rank(bags, 5), ((4, -1), (3, -0.5), (2, -1.5)), strict=True):
        expected = 1 / (1 + np.exp(-(scale * ranking.scores + offset)))
        np.testing.assert_allclose(ranking.probabilities, expected, atol=1e-6)


def test_k_results_come_back_whenever_k_exist(predictor: Predictor, bags: list[ProductBag]) -> None:
    """Exclusions and filters are applied before the cut, whatever the shortlist size is."""
    everything = predictor.rank(bags, 40)
    assert [len(ranking.labels) for ranking in everything] == [40, 40, 40]
    best = everything[0].labels[:30]
    excluded = [best, np.zeros(0, np.int64), np.arange(39)]
    sizes = [len(r.labels) for r in predictor.rank(bags, 10, excluded=excluded)]
    assert sizes == [10, 10, 1]
    assert not np.isin(predictor.rank(bags, 10, excluded=excluded)[0].labels, best).any()
    allowed = predictor.labels.allowed_by({"category": "hat"})
    for ranking in predictor.rank(bags, 3, allowed=allowed):
        assert len(ranking.labels) == 3
        assert allowed[ranking.labels].all()
    assert [len(r.labels) for r in predictor.rank(bags, 3, allowed=np.zeros(40, np.bool_))] == [0, 0, 0]
    assert predictor.rank([], 3) == []


def test_exclusions_of_one_product_change_no_other(predictor: Predictor, bags: list[ProductBag]) -> None:
    """A neighbour's long exclusion list makes the search longer, not the answer different."""
    alone = predictor.rank(bags[1:2], 10)[0]
    beside = predictor.rank(bags, 10, excluded=[np.arange(20), np.zeros(0, np.int64), np.arange(5)])[1]
    np.testing.assert_array_equal(alone.labels, beside.labels)
    np.testing.assert_allclose(alone.scores, beside.scores, atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "hnsw-sq8", "ivf-sq8"])
def test_no_product_s_answer_depends_on_what_others_want(tmp_path: Path, kind: str) -> None:
    """Exclusions and k of neighbours, also where an index finds other labels when it is asked for more."""
    settings = IndexSettings() if kind == "exact" else IndexSettings(exact_labels=0, kinds=(kind,))
    folder = make_tiny_bundle(tmp_path / "b", labels=600, shortlist_size=8, index=settings)
    predictor, nothing = open_predictor(folder), np.zeros(0, np.int64)
    bags = predictor.embed([f"{colour} {kind}" for colour in COLOURS for kind in KINDS], [NO_IMAGES] * 20)
    for row, bag in enumerate(bags[:-1]):
        alone = predictor.shortlist_without([bag], 5)[0]
        others = [bags[-1], bag, bags[row - 1]]
        beside = predictor.shortlist_without(others, [100, 5, 30], None, [np.arange(300), nothing, np.arange(3)])
        assert [len(own.labels) for own in beside] == [100, 8, 30]
        np.testing.assert_array_equal(alone.labels, beside[1].labels)
        np.testing.assert_array_equal(alone.scores, beside[1].scores)


def test_attention_weights_are_shares_of_a_labels_slots(predictor: Predictor, bags: list[ProductBag]) -> None:
    """Each row sums to 1 over the label's real slots, and unused slots have none."""
    labels = np.arange(8)
    weights = predictor.attention_weights(bags[0], labels)
    assert weights is not None
    assert weights.shape == (8, 3, 3)
    for label, own in zip(labels, weights, strict=True):
        images, has_title = predictor.labels.bag_layout(int(label))
        np.testing.assert_allclose(own[:, : images + has_title].sum(axis=1), 1, atol=1e-5)
        assert not own[:, images + has_title :].any()


def test_without_cross_attention_the_embedding_meets_the_classifiers(tmp_path: Path) -> None:
    """The ablation's bundle answers, too."""
    plain = open_predictor(make_tiny_bundle(tmp_path / "plain", cross_attention=False))
    bag = plain.embed(["red shirt"], [NO_IMAGES])[0]
    ranking = plain.rank([bag], 5)[0]
    expected = plain.labels.records(ranking.labels).classifiers @ bag.embedding
    np.testing.assert_allclose(ranking.classifier_scores, expected, atol=1e-6)
    assert plain.attention_weights(bag, ranking.labels) is None
    assert plain.replay_golden().passed


def test_golden_products_are_replayed(predictor: Predictor) -> None:
    """A whole bundle passes every stage."""
    parity = predictor.replay_golden()
    assert parity.passed, parity.table()
    assert parity.products == 3


def test_a_wrong_graph_fails_the_replay(folder: Path, tmp_path: Path) -> None:
    """A graph of another encoder, hashes made to fit, is found by what it computes."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copy(make_tiny_bundle(tmp_path / "other", seed=8) / TEXT_GRAPH_FILE, copy / TEXT_GRAPH_FILE)
    reseal(copy, TEXT_GRAPH_FILE)
    parity = open_predictor(copy).replay_golden()
    assert not parity.passed
    failed = {stage.stage for stage in parity.stages if not stage.passed}
    assert {"title", "bag", "embedding"} <= failed
    assert not failed & {"tokens", "image"}


def test_threads_share_a_predictor(predictor: Predictor) -> None:
    """Eight threads get what one gets."""

    def ask(number: int) -> list[int]:
        bag = predictor.embed([["red shirt", "blue hat", "green bag"][number % 3]], [pixels("white")[None]])
        return [int(label) for label in predictor.rank(bag, 6)[0].labels]

    expected = [ask(number) for number in range(3)]
    with ThreadPoolExecutor(8) as pool:
        for number, answer in enumerate(pool.map(ask, range(60))):
            assert answer == expected[number % 3]


def test_predicting_loads_no_training_library() -> None:
    """A fresh interpreter that imports the predictor has neither torch nor transformers nor onnx."""
    program = (
        "import sys, mufin.predictor\n"
        "bad = {'torch', 'transformers', 'onnx', 'mufin.training', 'mufin.catalogue'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) if bad else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
