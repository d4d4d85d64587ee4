"""Module 3, and frozen encoders: features computed once and kept on disk.

Knows no loss and no schedule.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mufin.inputs import FloatArray, Int64Array
from mufin.training.config import TrainConfig
from mufin.training.disk import allocate
from mufin.training.encode import (
    image_vectors,
    store_fused_titles,
    store_images,
    store_titles,
    title_vectors,
)
from mufin.training.item_arrays import ItemArrays
from mufin.training.kept_rows import kept_rows, keys_of
from mufin.training.loop import Session
from mufin.training.model import ItemEncoder, backbone_width
from mufin.training.preparation import (
    TrainingData,
)
from mufin.training.word_vectors import fit_word_vectors


def with_stored_features(session: Session, data: TrainingData, cache: Path) -> TrainingData:
    """Module 3: every title and image as one vector on disk; the encoders are not run again until the end."""
    encoder, size, device = session.model.encoder, session.config.encode_batch_size, session.device
    dimension = session.config.network.dimension
    adapters = encoder.text.adapter, encoder.image.adapter
    encoder.text.adapter, encoder.image.adapter = nn.Identity(), nn.Identity()
    title_stage, image_stage = data.products.stages

    def titles(title: Tensor, mask: Tensor) -> Tensor:
        return title_vectors(encoder, title_stage, title, mask)

    def stored_titles(items: ItemArrays, name: str) -> FloatArray:
        if encoder.text.fusion is not None:
            return store_fused_titles(encoder, items, dimension, size, device, cache / name)
        return store_titles(encoder, items, dimension, size, device, cache / name, titles)

    images = store_images(
        encoder, data.products, dimension, size, device, cache / "image-vectors.npy",
        lambda image: image_vectors(encoder, image_stage, image),
    )  # fmt: skip
    products = labels = data.products.with_vectors(stored_titles(data.products, "product-vectors.npy"), images)
    if data.labels is not data.products:
        labels = data.labels.with_vectors(stored_titles(data.labels, "label-vectors.npy"), images)
    encoder.text.adapter, encoder.image.adapter = adapters
    return replace(data, products=products, labels=labels)


def with_frozen_backbones(session: Session, data: TrainingData, cache: Path, shared: Path) -> TrainingData:
    """``frozen_features`` of a training's products and labels."""
    found = frozen_features(
        session.model.encoder, session.config, data.products, data.labels, session.device, cache, shared
    )
    return replace(data, products=found[0], labels=found[1])


def frozen_features(
    encoder: ItemEncoder, config: TrainConfig, products: ItemArrays, labels: ItemArrays, device: torch.device,
    cache: Path, shared: Path,
) -> tuple[ItemArrays, ItemArrays]:  # fmt: skip
    """Products and labels with the features of encoders whose every layer is frozen, computed once and kept on disk.

    What a backbone says of a title or an image depends on nothing else: it lies in ``shared`` under the hashes of both, where
    other trainings find it, those of folds with fewer labels, too; what the network made of it lies in ``cache``.
    """
    same, size = labels is products, config.encode_batch_size
    if config.image.trainable_layers == 0 and products.image_count:
        features = _image_features(encoder, products, size, device, shared, cache / "image-features.npy")
        products, labels = replace(products, image_features=features), replace(labels, image_features=features)
    if config.text.trainable_layers == 0:
        backbone = _hash_of(encoder.text.backbone, str(encoder.text.words is None))
        own = _title_features(encoder, products, backbone, size, device, shared, cache / "product-features.npy")
        products = replace(products, title_features=own)
        if not same:
            own = _title_features(encoder, labels, backbone, size, device, shared, cache / "label-features.npy")
        labels = replace(labels, title_features=own)
    return products, products if same else labels


def fit_words(session: Session, data: TrainingData) -> None:
    """Fit the title encoder's word vectors, where it has any, on the titles of training products and labels."""
    words = session.model.encoder.text.words
    if words is None:
        return
    began = time.monotonic()
    arrays = (data.products, data.train_rows), (data.labels, np.arange(len(data.labels)))
    ids = np.concatenate([np.asarray(own.token_ids[rows]) for own, rows in arrays])
    counts = np.concatenate([own.token_counts[rows] for own, rows in arrays])
    words.load_fit(*fit_word_vectors(ids, counts, words.width, session.config.seed))
    session.spend("words", began)


def _title_features(
    encoder: ItemEncoder, items: ItemArrays, backbone: str, size: int, device: torch.device, shared: Path, path: Path
) -> FloatArray:
    """(N, width): the sentences of ``shared``, and beside them the words as they are fitted now, at ``path``."""
    text, width = encoder.text, backbone_width(encoder.text.backbone)
    titles = zip(items.token_ids[: len(items)], items.token_counts, strict=True)
    keys = keys_of(np.asarray(row[:count]) for row, count in titles)

    def compute(rows: Int64Array, to: Path) -> None:
        store_titles(encoder, items, width, size, device, to, text.sentence, rows)

    sentences = kept_rows(shared, f"sentences-{backbone}", keys, compute)
    if text.words is None:
        return sentences.as_array(path)
    own = store_titles(encoder, items, text.words.width, size, device, path.with_suffix(".words.npy"), text.words)
    joined = allocate(path, np.float32, (len(items), text.width))
    sentences.copy_to(joined[:, :width])
    joined[:, width:] = own
    return joined


def _image_features(
    encoder: ItemEncoder, items: ItemArrays, size: int, device: torch.device, shared: Path, path: Path
) -> FloatArray:
    """(U, width) of ``shared``; a copy at ``path`` where it has others, too."""
    image, width = encoder.image, backbone_width(encoder.image.backbone)

    def compute(rows: Int64Array, to: Path) -> None:
        store_images(
            encoder, items, width, size, device, to, lambda pixels: image.features(image.normalise(pixels)), rows
        )

    name = f"images-{_hash_of(image.backbone, str((image.mean, image.std)))}"
    return kept_rows(shared, name, keys_of(items.pixels), compute).as_array(path)


def _hash_of(module: nn.Module, word: str) -> str:
    """SHA-256 of weights and a word."""
    digest = hashlib.sha256(word.encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
