"""Example recommendations: chosen evenly, answered by the bundle, with pictures where they can be read."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.report_examples import data_uri, make_examples
from mufin.catalogue import Catalogue, Relevance, read_catalogue
from mufin.predictor import Predictor, open_predictor
from tests.bundle_factory import make_tiny_bundle
from tests.catalogue_factory import make_tiny_catalogue


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """60 products, some without images, some without titles; its labels number those of the bundle."""
    return read_catalogue(make_tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "tiny", with_labels=False))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A bundle of as many labels; that they are others does not matter here."""
    return open_predictor(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "b", labels=60))


def relevance_of(predictor: Predictor, products: int, label: int) -> Relevance:
    """``label`` is relevant to all."""
    return Relevance.from_pairs(np.arange(products), np.full(products, label), products, predictor.labels.size)


def test_examples_are_the_bundles_own_answers(predictor: Predictor, catalogue: Catalogue) -> None:
    """Five labels with score, probability and picture; the known one is marked."""
    rows = np.arange(10, 20)
    first = make_examples(predictor, catalogue, rows, relevance_of(predictor, 10, 7), number=4)
    assert len(first) == 4 and all(len(example.results) == 5 for example in first)
    assert all(example.card.picture for example in first)  # products with images come first
    titles = [catalogue.products[row].title for row in rows]
    assert [example.card.title for example in first] == sorted((e.card.title for e in first), key=titles.index)
    scores = [result.score for result in first[0].results]
    assert scores == sorted(scores, reverse=True) and 0 < first[0].results[0].probability < 1
    assert first[0].relevant == 1
    assert all(r.card.title == catalogue.labels[7].title for own in first for r in own.results if r.relevant)
    everything = Relevance.from_pairs(np.repeat(np.arange(10), 60), np.tile(np.arange(60), 10), 10, 60)
    marked = make_examples(predictor, catalogue, rows, everything, number=1)
    assert all(result.relevant for result in marked[0].results) and marked[0].relevant == 60


def test_few_products_are_all_shown(predictor: Predictor, catalogue: Catalogue) -> None:
    """Fewer than asked for; those without images fill up."""
    rows = np.array([3, 4, 10])  # 3 and 10 have no image
    found = make_examples(predictor, catalogue, rows, relevance_of(predictor, 3, 0))
    assert [bool(example.card.picture) for example in found] == [False, True, False]
    assert make_examples(predictor, catalogue, rows[:0], relevance_of(predictor, 1, 0)) == []


def test_a_lost_picture_costs_the_picture_only(predictor: Predictor, catalogue: Catalogue, tmp_path: Path) -> None:
    """Titles still answer; a product that has nothing left is not shown."""
    lost = replace(catalogue, folder=tmp_path)
    titled = [row for row, item in enumerate(catalogue.products) if item.title and item.images][:2]
    untitled = [row for row, item in enumerate(catalogue.products) if not item.title][:1]
    found = make_examples(predictor, lost, np.array([*titled, *untitled]), relevance_of(predictor, 3, 0))
    assert [example.card.title for example in found] == [catalogue.products[row].title for row in titled]
    assert all(example.card.picture is None for example in found)
    assert all(len(example.results) == 5 for example in found)


def test_thumbnails_are_jpegs_in_the_page() -> None:
    """The data URI decodes to the picture."""
    pixels = np.zeros((96, 96, 3), dtype=np.uint8)
    pixels[..., 1] = 200
    head, content = data_uri(pixels).split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.format == "JPEG" and image.size == (96, 96)
        assert np.abs(np.asarray(image).astype(int) - pixels).max() < 12
