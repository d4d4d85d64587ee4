"""Items as arrays and through the encoder: what is missing leaves no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mufin.catalogue import read_catalogue
from mufin.inputs import InputSpec, TitleTokenizer
from mufin.training.config import NetworkConfig
from mufin.training.encode import embed_items, encode_batch, encode_items
from mufin.training.item_arrays import ItemArrays, prepare
from mufin.training.model import ItemEncoder
from mufin.training.tokenizer import train_wordpiece
from tests.catalogue_factory import make_tiny_catalogue
from tests.encoder_factory import random_item_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[ItemArrays, ItemEncoder]:
    """Products of the tiny catalogue (some without images, some without title) and a random encoder."""
    text = {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    return random_item_encoder(tmp_path_factory.mktemp("items"), text, NetworkConfig(dimension=8))


def test_an_item_alone_and_in_a_batch_is_the_same(items: tuple[ItemArrays, ItemEncoder]) -> None:
    """Padding slots and padding tokens do not reach the embedding."""
    arrays, encoder = items
    everything = embed_items(encoder, arrays, None, 64, CPU)
    alone = np.concatenate([embed_items(encoder, arrays, np.array([i]), 1, CPU) for i in range(len(arrays))])
    assert np.abs(everything - alone).max() < 1e-5
    assert np.isfinite(everything).all()


def test_bags_put_images_first_and_the_title_last(items: tuple[ItemArrays, ItemEncoder]) -> None:
    """The mask of every bag tells its images and, in the last slot, its title."""
    arrays, encoder = items
    encoded = encode_items(encoder, arrays, None, 16, CPU)
    images = np.diff(arrays.image_offsets)
    assert encoded.mask[:, -1].tolist() == arrays.has_title.tolist()
    assert encoded.mask[:, :-1].sum(axis=1).tolist() == images.tolist()
    assert not arrays.has_title.all() and (images == 0).any()


def test_a_batch_without_any_image_is_titles_only(items: tuple[ItemArrays, ItemEncoder]) -> None:
    """No image encoder runs, the bag has one slot."""
    arrays, encoder = items
    bare = np.flatnonzero(np.diff(arrays.image_offsets) == 0)
    bag, mask, embedding = encode_batch(encoder, arrays.batch(bare), CPU)
    assert bag.shape[1] == 1 and bool(mask.all())
    assert torch.allclose(embedding.norm(dim=1), torch.ones(len(bare)), atol=1e-5)


def test_image_dropout_never_leaves_an_item_empty(items: tuple[ItemArrays, ItemEncoder]) -> None:
    """Items without a title keep one image whatever is drawn; others may lose all."""
    arrays, _ = items
    every = np.arange(len(arrays))
    batch = arrays.batch(every, image_dropout=0.95, random=np.random.default_rng(0))
    left = batch.image_mask.sum(axis=1)
    assert (left + batch.has_title >= 1).all()
    assert left.sum() < np.diff(arrays.image_offsets).sum()


def test_frozen_blocks_stay_in_evaluation_mode(items: tuple[ItemArrays, ItemEncoder]) -> None:
    """Training mode reaches what is trained; a frozen block drops nothing; all frozen is no endless loop."""
    _, encoder = items
    encoder.text.backbone.requires_grad_(False)
    encoder.train()
    try:
        assert encoder.training and encoder.image.backbone.training and not encoder.text.backbone.training
        encoder.requires_grad_(False)
        assert not encoder.train().text.bottleneck.training
    finally:
        encoder.requires_grad_(True).eval()


def test_images_shared_by_items_are_stored_and_encoded_once(tmp_path: Path) -> None:
    """Products that are their own labels share one pixel store; equal names are one row."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "own", 20, with_labels=False))
    tokenizer = TitleTokenizer(train_wordpiece(["mug"], 50), 8)
    products, labels = prepare(catalogue, InputSpec(16, 0.5, 0.5, 8, 1), tokenizer, tmp_path / "c", lambda *_: None)
    assert labels is products
    assert products.image_count == len({name for p in catalogue.products for name in p.images[:1]})
    batch = products.batch(np.array([0, 0, 1]))
    assert len(batch.image) == 2 and batch.image_index[:2].tolist() == [[0], [0]]


@pytest.mark.parametrize("left", ["", '"0123'])
def test_pictures_whose_marker_a_kill_cut_off_are_decoded_anew(tmp_path: Path, left: str) -> None:
    """A marker that is not whole says that the pictures beside it may not be either."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "own", 4, with_labels=False))
    tokenizer = TitleTokenizer(train_wordpiece(["mug"], 50), 8)

    def pixels() -> np.ndarray:
        spec = InputSpec(16, 0.5, 0.5, 8, 1)
        return np.array(prepare(catalogue, spec, tokenizer, tmp_path / "c", lambda *_: None)[0].pixels)

    whole = pixels()
    (stored,), (marker,) = (tmp_path / "c").glob("pixels-*.npy"), (tmp_path / "c").glob("pixels-*.json")
    np.save(stored, np.zeros_like(whole))
    assert not pixels().any(), "what a whole marker vouches for is reused"
    marker.write_text(left)
    assert np.array_equal(pixels(), whole)
