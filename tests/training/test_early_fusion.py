"""Image vectors as the title encoder's first token: what they reach, and where such a network may not go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.export import ExportSettings, export
from mufin.catalogue import read_catalogue
from mufin.errors import ConfigError
from mufin.training.checkpoint import load_run
from mufin.training.config import EncoderConfig, NetworkConfig
from mufin.training.encode import embed_items, raw_bag, store_fused_titles, store_images
from mufin.training.item_arrays import ItemArrays
from mufin.training.model import ItemEncoder
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.split_ranking import rank_split
from tests.catalogue_factory import make_tiny_catalogue
from tests.encoder_factory import random_item_encoder
from tests.training.tiny_config import tiny_config

CPU = torch.device("cpu")
BACKBONES = {
    "distilbert": {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "bert": {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def items(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ItemArrays, ItemEncoder]:
    """Products of the tiny catalogue and a random encoder that fuses early, word vectors beside it."""
    network = NetworkConfig(dimension=8, early_fusion=True, word_vectors=4)
    return random_item_encoder(tmp_path_factory.mktemp("items"), BACKBONES[request.param], network)


@torch.no_grad()
def title_slots(encoder: ItemEncoder, arrays: ItemArrays, rows: np.ndarray) -> torch.Tensor:
    """(B, D) the title's place in the raw bags."""
    return raw_bag(encoder, arrays.batch(rows), CPU)[0][:, -1]


def test_a_title_tells_of_its_images_and_of_nothing_else(items: tuple[ItemArrays, ItemEncoder]) -> None:
    """Without its images a title's vector is another one; a title without images, and company, change nothing."""
    arrays, encoder = items
    rows, counts = np.arange(len(arrays)), np.diff(arrays.image_offsets)
    whole, bare = title_slots(encoder, arrays, rows), title_slots(encoder, arrays.without_images(), rows)
    moved = (whole - bare).abs().amax(dim=1).numpy()
    titled = arrays.has_title
    assert (counts > 0).any() and (counts == 0).any()
    assert moved[(counts > 0) & titled].min() > 1e-4
    assert moved[(counts == 0) & titled].max() < 1e-5
    alone = torch.cat([title_slots(encoder, arrays, rows[i : i + 1]) for i in rows])
    assert torch.allclose(alone, whole, atol=1e-5)


def test_images_learn_through_the_title(items: tuple[ItemArrays, ItemEncoder]) -> None:
    """The title's vector alone has a gradient by the image encoder and by the map into the title encoder."""
    arrays, encoder = items
    pictured = np.flatnonzero((np.diff(arrays.image_offsets) > 0) & arrays.has_title)
    raw_bag(encoder, arrays.batch(pictured), CPU)[0][:, -1].square().sum().backward()  # type: ignore[no-untyped-call]
    assert encoder.text.fusion is not None and encoder.text.fusion.weight.grad is not None
    assert float(encoder.text.fusion.weight.grad.abs().max()) > 0
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in encoder.image.parameters())
    encoder.zero_grad()


def test_a_run_trains_stores_and_comes_back(tmp_path: Path) -> None:
    """Module 3's vectors are the encoder's own; a read run embeds as it did; its bundle is refused, by name."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "c"))
    config = tiny_config("network.early_fusion=true", "siamese.epochs=2", "ranker.epochs=1")
    metrics = train(catalogue, config, tmp_path / "run", Reporter(quiet=True))
    assert metrics["full"]["P@1"] >= 0
    run = load_run(tmp_path / "run")
    assert run.model.encoder.text.fusion is not None
    ranked = rank_split(tmp_path / "run", catalogue, "valid")
    assert np.isfinite(ranked.rows["full"]).all()
    with pytest.raises(ConfigError, match=r"network\.early_fusion is true.*early_fusion=false"):
        export(tmp_path / "run", tmp_path / "bundle", ExportSettings(), Reporter(quiet=True))
    assert not (tmp_path / "bundle").exists()


def test_stored_titles_hold_their_images(items: tuple[ItemArrays, ItemEncoder], tmp_path: Path) -> None:
    """An item of module 3's vectors is embedded as from its tokens and pixels."""
    arrays, encoder = items
    titles = store_fused_titles(encoder, arrays, 8, 5, CPU, tmp_path / "titles.npy")
    images = store_images(encoder, arrays, 8, 5, CPU, tmp_path / "images.npy", encoder.image)
    stored = embed_items(encoder, arrays.with_vectors(titles, images), None, 7, CPU)
    assert np.allclose(stored, embed_items(encoder, arrays, None, 7, CPU), atol=1e-5)


def test_a_frozen_title_encoder_is_refused() -> None:
    """It would read a token it never learned."""
    config = tiny_config()
    with pytest.raises(ConfigError, match=r"early_fusion is true and text\.trainable_layers 0"):
        replace(
            config, network=replace(config.network, early_fusion=True),
            text=EncoderConfig(name="some/encoder", trainable_layers=0),
        )  # fmt: skip
