"""Colour and edge histograms: what they count, what they do not see, and that a frozen encoder of them trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mufin.catalogue import read_catalogue
from mufin.errors import ConfigError
from mufin.training.checkpoint import load_run
from mufin.training.descriptor import Descriptor, DescriptorConfig, colours, edges
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config

SIDE = 32
FROZEN = ('image={"options": {"model_type": "mufin-descriptor"}, "trainable_layers": 0}',)


def plain(red: float, green: float, blue: float) -> torch.Tensor:
    """One picture of one colour, 0..1."""
    return torch.tensor([red, green, blue])[None, :, None, None].expand(1, 3, SIDE, SIDE)


def test_a_picture_of_one_colour_falls_into_its_bins() -> None:
    """Red, green and blue share none; half of each has both."""
    red, green, blue = (colours(plain(*own))[0] for own in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    for first, second in ((red, green), (green, blue), (red, blue)):
        assert float(first @ first) == pytest.approx(1.0, abs=1e-4)
        assert float(first @ second) < 1e-3
    half = torch.cat([plain(1, 0, 0)[..., : SIDE // 2], plain(0, 0, 1)[..., : SIDE // 2]], dim=-1)
    found = colours(half)[0]
    assert float(found @ red) == pytest.approx(np.sqrt(0.5), abs=1e-3)
    assert float(found @ blue) == pytest.approx(np.sqrt(0.5), abs=1e-3)


def test_hue_is_a_circle() -> None:
    """Reds on both sides of 0 degrees are neighbours."""
    warm, cold, green = (colours(plain(*own))[0] for own in ((1, 0.05, 0), (1, 0, 0.05), (0, 1, 0)))
    assert float(warm @ cold) > 0.9 > 0.1 > float(warm @ green)


def test_edges_know_direction_and_not_sign() -> None:
    """Stripes across differ from stripes down; negative stripes are the same; a flat picture says nearly nothing."""
    wave = (torch.arange(SIDE) // 4 % 2).float()
    down, across = wave.expand(1, 3, SIDE, SIDE), wave[:, None].expand(1, 3, SIDE, SIDE)
    assert float((edges(down) * edges(across)).sum()) < 0.3
    assert float((edges(down) * edges(1 - down)).sum()) > 0.999
    assert torch.isfinite(edges(plain(0.3, 0.3, 0.3))).all()


def test_it_is_one_vector_of_stated_width() -> None:
    """As an encoder hands out its [CLS]."""
    model = Descriptor(DescriptorConfig())
    found = model(pixel_values=torch.rand(3, 3, SIDE, SIDE) * 2 - 1).last_hidden_state
    assert found.shape == (3, 1, model.config.hidden_size) and not list(model.parameters())


def test_a_frozen_one_trains_and_is_loaded_again(tmp_path: Path) -> None:
    """Beside word vectors, with labels beyond the batch as negatives: all features kept for the next training."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "catalogue", 60))
    config = tiny_config(*FROZEN, "network.word_vectors=8", "network.feature_dropout=0.1", "siamese.label_negatives=5")
    first = train(catalogue, config, tmp_path / "one", Reporter(quiet=True), shared=tmp_path / "kept")
    kept = sorted(path.name for path in (tmp_path / "kept").rglob("*.npy"))
    assert [name.split("-")[0] for name in kept] == ["images", "images", "pixels"]  # rows and their keys
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npy")}
    again = train(catalogue, config, tmp_path / "two", Reporter(quiet=True), shared=tmp_path / "kept")
    assert first["full"] == again["full"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npy")} == written
    one, two = (load_run(tmp_path / name).model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["encoder.text.words.table"].shape[0] > 1


def test_pixels_scaled_otherwise_are_refused(tmp_path: Path) -> None:
    """Histograms of colours would count others."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "catalogue", 60))
    with pytest.raises(ConfigError, match=r"image_mean"):
        train(catalogue, tiny_config(*FROZEN, "inputs.image_mean=0.4"), tmp_path / "run", Reporter(quiet=True))
