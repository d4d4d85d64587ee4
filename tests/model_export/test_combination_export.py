"""A bundle with a learned combination answers as the run does, for every rule of a request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model_export.export import ExportSettings, export
from model_export.label_updates import add_labels, remove_labels
from mufin.bundle import open_bundle
from mufin.catalogue import Catalogue, read_catalogue
from mufin.errors import BundleError, MufinError
from mufin.evaluate import evaluate
from mufin.image_source import ImageReader
from mufin.inputs import decode_image
from mufin.predictor import Predictor, ProductBag, open_predictor
from mufin.rankings import open_subject
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.split_ranking import rank_split
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config

NO_PICTURE = np.zeros((0, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module", params=["every product", "lists"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a combination that favours rare labels, trained on both splits in the end, that compares with
    every training product or with those of lists; its catalogue lies beside it."""
    folder = tmp_path_factory.mktemp("combined")
    make_tiny_catalogue(folder / "catalogue", 140)
    config = tiny_config(
        "combination.folds=2", "combination.tail_calibration=0.2", "shortlist.size=5", "refit=network",
        f"combination.exact_products={10 if request.param == 'lists' else 1000}",
    )  # fmt: skip
    train(read_catalogue(folder / "catalogue"), config, folder / "run", Reporter(quiet=True))
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """Exported."""
    parity = export(run, run.with_name("bundle"), ExportSettings(report=True), Reporter(quiet=True))
    assert parity.passed
    return run.with_name("bundle")


@pytest.fixture(scope="module")
def catalogue(run: Path) -> Catalogue:
    """What it was trained on."""
    return read_catalogue(run.with_name("catalogue"))


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    """Over the bundle."""
    return open_predictor(bundle)


@pytest.fixture(scope="module")
def bags(predictor: Predictor, catalogue: Catalogue) -> list[ProductBag]:
    """Validation products."""
    items = [catalogue.products[row] for row in catalogue.splits["valid"].products]
    spec = predictor.input_spec
    side = spec.image_side_pixels
    with ImageReader(catalogue.folder) as reader:
        pixels = [
            np.stack([decode_image(reader.read(name), side) for name in item.images[: spec.max_images]])
            if item.images
            else np.zeros((0, side, side, 3), np.uint8)
            for item in items
        ]
    return predictor.embed([item.title for item in items], pixels)


def test_the_bundle_ranks_as_the_run_does(
    run: Path, predictor: Predictor, catalogue: Catalogue, bags: list[ProductBag]
) -> None:
    """All candidates of all validation products, scores within what rounding makes of them."""
    torch_side = rank_split(run, catalogue, "valid")
    for row, ranking in enumerate(predictor.rank(bags, 20)):
        known = torch_side.rows["full"][row] >= 0
        expected = dict(
            zip(torch_side.rows["full"][row][known].tolist(), torch_side.scores["full"][row][known], strict=True)
        )
        assert set(ranking.labels.tolist()) == set(expected)
        np.testing.assert_allclose(ranking.scores, [expected[i] for i in ranking.labels.tolist()], atol=1e-3)


def test_a_bundle_that_learned_from_validation_is_not_scored_on_it(bundle: Path, catalogue: Catalogue) -> None:
    """Its manifest says so."""
    with pytest.raises(MufinError, match=r"bundle: learned from the validation split, too .*--split test"):
        evaluate(open_subject(bundle), catalogue, "valid")


def test_evidence_brings_labels_that_the_shortlist_misses(predictor: Predictor, bags: list[ProductBag]) -> None:
    """More than the shortlist's five, each with its own cosine."""
    shortlists = predictor.shortlist_without(bags, 1)
    assert max(len(own.labels) for own in shortlists) > 5
    for bag, own in zip(bags, shortlists, strict=True):
        np.testing.assert_allclose(own.scores, predictor.labels.embeddings(own.labels) @ bag.embedding, atol=1e-5)
        assert (np.diff(own.scores) <= 0).all()


def test_a_shortlist_without_evidence_is_not_fused(predictor: Predictor, bags: list[ProductBag]) -> None:
    """Its scores would be of another scale, and nobody would know."""
    shortlist = predictor.shortlist(bags[0].embedding[None])[0]
    classifier = predictor.rerank(bags[:1], [shortlist])[0]
    with pytest.raises(ValueError, match="shortlist_without adds it"):
        predictor.fuse(bags[0], shortlist, classifier, 3)


def test_rules_hold_for_what_evidence_brings(predictor: Predictor, bags: list[ProductBag]) -> None:
    """Neither an excluded label nor one that a filter rules out comes back by way of the neighbours."""
    allowed = np.zeros(predictor.labels.size, np.bool_)
    allowed[::3] = True
    dropped = [np.array([0, 6], np.int64)] * len(bags)
    for ranking in predictor.rank(bags, 4, allowed, dropped):
        assert len(ranking.labels) == 4
        assert (ranking.labels % 3 == 0).all() and not np.isin(ranking.labels, [0, 6]).any()


def test_a_title_is_worth_its_words(predictor: Predictor) -> None:
    """The same vectors without the text: other scores, so the words did reach the combination."""
    vector = predictor.encode_titles(["mug no 3"])
    empty = [np.zeros((0, predictor.dimension), np.float32)]
    with_words = predictor.rank(predictor.bag(empty, [vector[0]], ["mug no 3"]), 5)[0]
    without = predictor.rank(predictor.bag(empty, [vector[0]]), 5)[0]
    assert not np.allclose(with_words.scores, without.scores[: len(with_words.scores)])


def test_probabilities_fall_with_scores(predictor: Predictor, bags: list[ProductBag]) -> None:
    """Calibrated between 0 and 1, in the ranking's order."""
    for ranking in predictor.rank(bags, 10):
        assert (np.diff(ranking.scores) <= 0).all() and (np.diff(ranking.probabilities) <= 0).all()
        assert ((ranking.probabilities >= 0) & (ranking.probabilities <= 1)).all()


def test_a_label_is_added_without_training(bundle: Path, predictor: Predictor, tmp_path: Path) -> None:
    """Found by its title's words though the shortlist is short, marked as untrained; the bundle proves itself."""
    (tmp_path / "more.jsonl").write_text(
        '{"id": "new", "title": "mug red no 3"}\n{"id": "other", "title": "quite another thing"}\n'
    )
    done = add_labels(bundle, tmp_path / "more.jsonl", tmp_path / "grown", lambda *_: None)
    assert done.parity.passed and done.labels == predictor.labels.size + 2
    grown = open_predictor(tmp_path / "grown")
    ranking = grown.rank(grown.embed(["mug no 3"], [NO_PICTURE]), grown.labels.size)[0]
    found = {label.id: label for label in grown.labels.describe(ranking.labels)}
    assert found["new"].source == "encoder"
    known = grown.shortlist_without(grown.embed(["mug no 3"], [NO_PICTURE]), 1)[0].evidence
    assert known is not None
    new = np.asarray([found["new"].index])
    assert known.title_match(new)[0] > 0 and known.sentence_match(new)[0] > 0
    assert not known.own_products(new).any()


def test_labels_are_taken_out(bundle: Path, predictor: Predictor, bags: list[ProductBag], tmp_path: Path) -> None:
    """A few behind tombstones, many cleared away: neither is brought back by what evidence knows of it."""
    ids = [label.id for label in predictor.labels.describe(np.arange(predictor.labels.size))]
    for count, compacted in ((1, False), (len(ids) // 3, True)):
        gone = ids[:count]
        (tmp_path / "less.txt").write_text("\n".join(gone) + "\n")
        done = remove_labels(bundle, tmp_path / "less.txt", tmp_path / f"less-{count}", lambda *_: None)
        assert done.parity.passed and done.compacted == compacted and done.labels == len(ids) - count
        left = open_predictor(tmp_path / f"less-{count}")
        for ranking in left.rank(bags, done.labels):
            answered = {label.id for label in left.labels.describe(ranking.labels)}
            assert answered and not answered & set(gone)


def test_a_bundle_goes_through_many_updates(bundle: Path, predictor: Predictor, tmp_path: Path) -> None:
    """Added, removed, cleared away and added again: labels keep their own titles, which evidence goes by number."""
    (tmp_path / "more.jsonl").write_text('{"id": "new", "title": "mug red no 3"}\n')
    ids = [label.id for label in predictor.labels.describe(np.arange(predictor.labels.size))]
    (tmp_path / "less.txt").write_text("\n".join(ids[::3]) + "\n")
    add_labels(bundle, tmp_path / "more.jsonl", tmp_path / "one", lambda *_: None)
    assert remove_labels(tmp_path / "one", tmp_path / "less.txt", tmp_path / "two", lambda *_: None).compacted
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": ids[0], "title": "mug blue no 1"}) + "\n")
    done = add_labels(tmp_path / "two", tmp_path / "more.jsonl", tmp_path / "three", lambda *_: None)
    assert done.parity.passed
    last = open_bundle(tmp_path / "three")
    assert last.evidence is not None
    for label in range(last.manifest.sizes.labels):
        _, title, _, _ = last.labels.fields(label)
        own = last.evidence.label_words
        np.testing.assert_array_equal(own.row(label).ids, last.evidence.words.row(title).ids)


def test_files_of_the_combination_are_part_of_the_identity(bundle: Path) -> None:
    """Both are hashed in the manifest; without one the bundle is not opened."""
    assert {"evidence.npz", "combination.npz"} <= set(open_bundle(bundle).manifest.files)
    path = bundle / "combination.npz"
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(BundleError, match=r"combination\.npz"):
            open_bundle(bundle)
    finally:
        path.write_bytes(content)
