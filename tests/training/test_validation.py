"""Validation products ranked with a modality left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mufin.catalogue import Catalogue, Item, read_catalogue
from mufin.inputs import TitleTokenizer
from mufin.scoring import Modality
from mufin.training.calibration import Outcomes
from mufin.training.checkpoint import load_run
from mufin.training.evaluation import rank_candidates
from mufin.training.item_arrays import prepare
from mufin.training.loop import Session
from mufin.training.preparation import training_data
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.split_ranking import rank_split
from mufin.training.validation import all_labels, outcomes_by_modality, score_products
from mufin.training.workers import Workers
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run; its catalogue, whose labels are titles, lies beside it."""
    folder = tmp_path_factory.mktemp("calibrated")
    catalogue = read_catalogue(make_tiny_catalogue(folder / "shop"))
    config = tiny_config("siamese.epochs=1", "frozen_ranker.epochs=1", "ranker.epochs=0")
    train(catalogue, config, folder / "run", QUIET)
    return folder / "run"


def subsets_of(run: Path, catalogue: Catalogue, scratch: Path) -> dict[Modality, Outcomes]:
    """What ``finish`` calibrates with, of a finished run."""
    found = load_run(run)
    tokenizer = TitleTokenizer(found.tokenizer_json, found.input_spec.max_title_tokens)
    data = training_data(catalogue, *prepare(catalogue, found.input_spec, tokenizer, scratch, QUIET.step))
    session = Session(found.config, found.model, torch.device("cpu"), run, QUIET, Workers(), "")
    labels = all_labels(session, data, scratch / "bags.npy")
    candidates = score_products(session, data, data.products, data.valid_rows, labels)
    ranked = rank_candidates(candidates, data.valid_rows, found.score_spec)
    return outcomes_by_modality(session, data, labels, ranked, found.score_spec)


def stripped(catalogue: Catalogue, *, images: bool) -> Catalogue:
    """Products without images (or titles), where that leaves them something."""

    def strip(item: Item) -> Item:
        if images:
            return replace(item, images=()) if item.title else item
        return replace(item, title="") if item.images else item

    return replace(catalogue, products=[strip(item) for item in catalogue.products])


def test_a_modality_left_out_is_as_if_the_catalogue_lacked_it(run: Path, tmp_path: Path) -> None:
    """Scores equal those of a catalogue whose products really have no images, or no titles."""
    catalogue = read_catalogue(run.parent / "shop")
    subsets = subsets_of(run, catalogue, tmp_path)
    valid = [catalogue.products[row] for row in catalogue.splits["valid"].products]
    having = {
        "both": [i for i, p in enumerate(valid) if p.title and p.images],
        "title": [i for i, p in enumerate(valid) if p.title],
        "images": [i for i, p in enumerate(valid) if p.images],
    }
    assert {name: own.products.tolist() for name, own in subsets.items()} == having
    assert len(having["both"]) < min(len(having["title"]), len(having["images"]))
    expected = {
        "both": rank_split(run, catalogue, "valid"),
        "title": rank_split(run, stripped(catalogue, images=True), "valid"),
        "images": rank_split(run, stripped(catalogue, images=False), "valid"),
    }
    for name, own in subsets.items():
        rows = expected[name].rows["full"][own.products]
        np.testing.assert_allclose(own.scores, expected[name].scores["full"][own.products], atol=1e-5)
        relevance = catalogue.splits["valid"].relevance
        hits = [np.isin(row, relevance.row(int(i))).sum() for row, i in zip(rows, own.products, strict=True)]
        assert own.relevant.sum(axis=1).tolist() == hits


def test_titles_alone_are_one_subset(run: Path, tmp_path: Path) -> None:
    """A catalogue without images has no products of the other kinds."""
    catalogue = read_catalogue(run.parent / "shop")
    titles = replace(catalogue, products=[replace(p, images=(), title=p.title or "x") for p in catalogue.products])
    assert list(subsets_of(run, titles, tmp_path)) == ["title"]


def test_a_run_keeps_its_calibrations_and_their_figures(run: Path) -> None:
    """In run.json for the export, in metrics.jsonl for the reader; the score spec has what the figures say."""
    found = load_run(run)
    subsets = found.metrics["calibration"]["subsets"]
    assert list(subsets) == ["both", "title", "images"]
    for name, own in subsets.items():
        assert found.score_spec.calibration(name).scale == pytest.approx(own["scale"], abs=1e-6)
        assert set(own["ece"]) == set(own["curve"]) == {"raw", "shared", "fitted"}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["module"] == "finish" and last["calibration"] == found.metrics["calibration"]
