"""Labels found by more than their own embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.export import ExportSettings, export
from mufin.catalogue import Relevance, read_catalogue
from mufin.errors import CheckpointError, ConfigError
from mufin.inputs import FloatArray, Int64Array, TitleTokenizer
from mufin.predictor import open_predictor
from mufin.rankings import open_subject
from mufin.scoring import l2_normalise
from mufin.training.checkpoint import MEANS_FILE, load_run
from mufin.training.config import ShortlistConfig
from mufin.training.item_arrays import ItemArrays, prepare
from mufin.training.label_vectors import (
    ItemEmbedder,
    LabelVectors,
    TaughtBy,
    label_means,
    label_vectors,
    prototypes,
)
from mufin.training.preparation import new_network, training_data
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.refit import with_validation
from mufin.training.shortlist import LabelSearch
from mufin.training.split_ranking import rank_split
from mufin.training.tokenizer import train_wordpiece
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ItemEmbedder, ItemArrays, TaughtBy]:
    """An untrained encoder, labels, and training products: of one label in five none, of label 1 a single one."""
    folder = tmp_path_factory.mktemp("labels")
    catalogue = read_catalogue(make_tiny_catalogue(folder / "shop"))
    config = tiny_config()
    tokenizer = TitleTokenizer(train_wordpiece([item.title for item in catalogue.products], 200), 32)
    data = training_data(catalogue, *prepare(catalogue, config.inputs, tokenizer, folder, QUIET.step))
    torch.manual_seed(0)
    network = new_network(config, tokenizer, len(data.labels))
    rows, relevant = data.train.to_pairs()
    kept = (relevant % 5 != 0) & ((relevant != 1) | (rows == rows[relevant == 1][0]))
    relevance = Relevance.from_pairs(rows[kept], relevant[kept], data.train.row_count, data.train.label_count)
    taught = replace(data.taught, relevance=relevance)
    return ItemEmbedder(network.encoder, 16, torch.device("cpu")), data.labels, taught


def found_by(made: tuple[ItemEmbedder, ItemArrays, TaughtBy], **changes: float) -> LabelVectors:
    """With the options ``changes``."""
    embed, labels, taught = made
    return label_vectors(embed, embed(labels), labels, taught, ShortlistConfig(**changes))  # type: ignore[arg-type]


def products_of(taught: TaughtBy, label: int) -> Int64Array:
    """Training products of a label, by their place among the training products."""
    rows, labels = taught.relevance.to_pairs()
    return np.asarray(rows[labels == label], dtype=np.int64)


def test_without_options_a_label_is_found_by_its_embedding(made: tuple[ItemEmbedder, ItemArrays, TaughtBy]) -> None:
    """Nothing is encoded for it a second time."""
    embed, labels, taught = made
    embeddings = embed(labels)
    found = label_vectors(embed, embeddings, labels, taught, ShortlistConfig())
    assert found.vectors is embeddings and found.labels.tolist() == list(range(len(labels)))


def test_a_prototype_lies_between_a_label_and_the_mean_of_its_products(
    made: tuple[ItemEmbedder, ItemArrays, TaughtBy],
) -> None:
    """With weight 1 it is the mean; a label without training products stays where it is."""
    embed, labels, taught = made
    embeddings, products = embed(labels), embed(taught.products, taught.rows)
    for weight in (0.3, 1.0):
        found = found_by(made, prototype_weight=weight)
        assert found.labels.tolist() == list(range(len(labels)))
        for label in range(len(labels)):
            own = products_of(taught, label)
            expected = embeddings[label]
            if len(own):
                mean = l2_normalise(products[own].mean(axis=0)[None])[0]
                expected = l2_normalise(((1 - weight) * expected + weight * mean)[None])[0]
            np.testing.assert_allclose(found.vectors[label], expected, atol=1e-5)


def test_centroids_and_modalities_stand_beside_the_embedding(made: tuple[ItemEmbedder, ItemArrays, TaughtBy]) -> None:
    """A label of one product has that product; of many, no more centroids than asked for; of both modalities, two more."""
    embed, labels, taught = made
    embeddings, products = embed(labels), embed(taught.products, taught.rows)
    found = found_by(made, product_vectors=2)
    frequency = taught.relevance.label_frequency()
    assert np.bincount(found.labels).tolist() == [1 + min(2, count) for count in frequency]
    assert (np.diff(found.labels) >= 0).all()
    single = 1
    np.testing.assert_allclose(
        found.vectors[found.labels == single],
        [embeddings[single], products[products_of(taught, single)[0]]], atol=1e-5,
    )  # fmt: skip
    items = taught.products  # some of which have pictures, which no label of this catalogue has
    found = label_vectors(embed, embed(items), items, taught, ShortlistConfig(modality_vectors=True))
    both = items.has_title & (np.diff(items.image_offsets) > 0)
    assert np.bincount(found.labels).tolist() == [3 if own else 1 for own in both] and not both.all()
    place = int(np.flatnonzero(both)[0])
    alone = [embed(part, np.asarray([place]))[0] for part in (items.without_images(), items.without_titles())]
    np.testing.assert_allclose(found.vectors[found.labels == place], [embed(items)[place], *alone], atol=1e-5)
    assert np.bincount(found_by(made, modality_vectors=True).labels).max() == 1


def several(seed: int) -> tuple[FloatArray, LabelVectors]:
    """Queries, and 400 labels of one to four vectors."""
    random = np.random.default_rng(seed)
    owners = np.repeat(np.arange(400), random.integers(1, 5, 400))
    vectors = l2_normalise(random.normal(size=(len(owners), 12)).astype(np.float32))
    return l2_normalise(random.normal(size=(20, 12)).astype(np.float32)), LabelVectors(vectors, owners)


def test_a_label_comes_once_with_the_cosine_of_its_nearest_vector() -> None:
    """Exactly as by comparing with all vectors; approximately, nearly so, and head labels always."""
    queries, own = several(0)
    best = np.full((len(queries), 400), -np.inf, dtype=np.float32)
    for vector, label in zip(own.vectors, own.labels, strict=True):
        best[:, label] = np.maximum(best[:, label], queries @ vector)
    expected = np.argsort(-best, axis=1, kind="stable")[:, :30]
    search = LabelSearch(own, np.ones(400, np.int64), ShortlistConfig(size=30))
    found, scores = search.search(queries, 30)
    assert found.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(best, expected, 1), atol=1e-6)
    for query, row, cosines in zip(queries, found, scores, strict=True):
        np.testing.assert_allclose(search.cosines(query, row), cosines, atol=1e-6)
    every, _ = search.search(queries, 500)
    assert all(sorted(row[:400]) == list(range(400)) and set(row[400:]) == {-1} for row in every.tolist())
    frequency = np.where(np.arange(400) % 50 == 0, 5000, 1)
    near, _ = LabelSearch(own, frequency, ShortlistConfig(size=30, exact_labels=10, head_frequency=1000)).search(
        queries, 30
    )
    shared = [len(set(a) & set(b)) / 30 for a, b in zip(near.tolist(), expected.tolist(), strict=True)]
    assert np.mean(shared) > 0.95 and all(len(set(row)) == 30 for row in near.tolist())
    for row, right in zip(near.tolist(), expected.tolist(), strict=True):
        assert {label for label in right if label % 50 == 0} <= set(row)


def test_a_run_with_several_vectors_a_label_ranks_and_is_refused_at_export(tmp_path: Path) -> None:
    """The shortlist's scores are those of the vectors; the export says which options to leave out."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "c"))
    changes = "shortlist.prototype_weight=0.5", "shortlist.product_vectors=2", "shortlist.modality_vectors=true"
    train(catalogue, tiny_config(*changes, "siamese.epochs=2", "ranker.epochs=1"), tmp_path / "run", QUIET)
    ranked = rank_split(tmp_path / "run", catalogue, "valid")
    run = load_run(tmp_path / "run")
    tokenizer = TitleTokenizer(run.tokenizer_json, run.input_spec.max_title_tokens)
    data = training_data(catalogue, *prepare(catalogue, run.input_spec, tokenizer, tmp_path, QUIET.step))
    embed = ItemEmbedder(run.model.encoder, run.config.encode_batch_size, torch.device("cpu"))
    found = label_vectors(embed, embed(data.labels), data.labels, data.taught, run.config.shortlist)
    search = LabelSearch(found, data.frequency, run.config.shortlist)
    queries = embed(data.products, data.valid_rows)
    for query, labels, scores in zip(queries, ranked.rows["shortlist"], ranked.scores["shortlist"], strict=True):
        kept = labels >= 0
        np.testing.assert_allclose(scores[kept], search.cosines(query, labels[kept]), atol=1e-5)
    with pytest.raises(ConfigError, match=r"product_vectors or modality_vectors.*product_vectors=0"):
        export(tmp_path / "run", tmp_path / "bundle", ExportSettings(), QUIET)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("refit", "folds"), [("none", 0), ("network", 0), ("network", 2), ("evidence", 2)])
def test_prototypes_are_kept_exported_and_searched(tmp_path: Path, refit: str, folds: int) -> None:
    """A bundle's labels are found by what the run kept, of the network that it kept; its answers are the run's own."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "c"))
    changes = "shortlist.prototype_weight=0.4", f"refit={refit}", f"combination.folds={folds}"
    config = tiny_config(*changes, "siamese.epochs=2", "ranker.epochs=1")
    train(catalogue, config, tmp_path / "run", QUIET)
    run = load_run(tmp_path / "run")
    tokenizer = TitleTokenizer(run.tokenizer_json, run.input_spec.max_title_tokens)
    taught = with_validation(catalogue) if refit == "network" else catalogue
    data = training_data(taught, *prepare(catalogue, run.input_spec, tokenizer, tmp_path, QUIET.step))
    embed = ItemEmbedder(run.model.encoder, run.config.encode_batch_size, torch.device("cpu"))
    assert run.label_means is not None
    np.testing.assert_allclose(run.label_means, label_means(embed, data.taught), atol=1e-5)
    export(tmp_path / "run", tmp_path / "bundle", ExportSettings(), QUIET)
    predictor = open_predictor(tmp_path / "bundle")
    expected = prototypes(embed(data.labels), run.label_means, 0.4)
    assert float(np.abs(expected - embed(data.labels)).max()) > 0.01
    np.testing.assert_allclose(predictor.labels.embeddings(np.arange(len(expected))), expected, atol=1e-4)
    ours, theirs = (
        open_subject(tmp_path / name).rank(catalogue, "valid", False, QUIET.step).allowed for name in ("run", "bundle")
    )
    for name in ("shortlist", "fused"):
        assert (ours[name][:, :5] == theirs[name][:, :5]).mean() > 0.9  # near ties may change places


def test_a_run_whose_means_are_gone_or_of_other_labels_is_refused(tmp_path: Path) -> None:
    """With the file, and both shapes."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "c"))
    config = tiny_config(
        "shortlist.prototype_weight=0.4", "siamese.epochs=1", "frozen_ranker.epochs=1", "ranker.epochs=0"
    )
    train(catalogue, config, tmp_path / "run", QUIET)
    path = tmp_path / "run" / "model" / MEANS_FILE
    np.save(path, np.zeros((3, 8), np.float32))
    with pytest.raises(CheckpointError, match=r"label_means\.npy: holds \(3, 8\) float32, needs \(20, 8\) float32"):
        load_run(tmp_path / "run")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"label_means\.npy: cannot be read"):
        load_run(tmp_path / "run")


def test_a_label_without_training_products_is_found_without_them(
    made: tuple[ItemEmbedder, ItemArrays, TaughtBy],
) -> None:
    """Nor does a catalogue without any fail."""
    embed, labels, taught = made
    nothing = np.zeros(0, dtype=np.int64)
    untaught = replace(taught, rows=nothing, relevance=Relevance.from_pairs(nothing, nothing, 0, len(labels)))
    config = ShortlistConfig(prototype_weight=0.5, product_vectors=4)
    found = label_vectors(embed, embed(labels), labels, untaught, config)
    np.testing.assert_array_equal(found.vectors, embed(labels))


def test_values_out_of_range_are_refused() -> None:
    """By name, with the value."""
    with pytest.raises(ConfigError, match=r"prototype_weight is 1\.5"):
        ShortlistConfig(prototype_weight=1.5)
    with pytest.raises(ConfigError, match="product_vectors is -1"):
        ShortlistConfig(product_vectors=-1)
