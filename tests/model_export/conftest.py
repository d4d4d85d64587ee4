"""Finished runs of tiny networks, made once for all export tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mufin.catalogue import read_catalogue
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config


@pytest.fixture(scope="session")
def products_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Product to product, with exclude pairs; the catalogue lies beside it."""
    folder = tmp_path_factory.mktemp("products")
    catalogue = make_tiny_catalogue(folder / "shop", with_labels=False)
    train(read_catalogue(catalogue), tiny_config(), folder / "run", Reporter(quiet=True))
    return folder / "run"


@pytest.fixture(scope="session")
def queries_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Product to bid query: labels are titles only. No self-attention, convolutions for images."""
    folder = tmp_path_factory.mktemp("queries")
    catalogue = make_tiny_catalogue(folder / "shop")
    config = tiny_config(
        'image.options={"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], '
        '"layer_type": "basic"}',
        "network.self_attention=false", "ranker.epochs=0",
    )  # fmt: skip
    train(read_catalogue(catalogue), config, folder / "run", Reporter(quiet=True))
    return folder / "run"
