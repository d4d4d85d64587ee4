"""Module 3, and frozen encoders: features computed once and kept on disk.

Knows no loss and no schedule.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from mufin.training.encode import (
    image_vectors,
    store_images,
    store_titles,
    title_vectors,
)
from mufin.training.loop import Session
from mufin.training.model import backbone_width
from mufin.training.preparation import (
    TrainingData,
)


def with_stored_features(session: Session, data: TrainingData, cache: Path) -> TrainingData:
    """Module 3: every title and image as one vector on disk; the encoders are not run again until the end."""
    encoder, size, device = session.model.encoder, session.config.encode_batch_size, session.device
    dimension = session.config.network.dimension
    adapters = encoder.text.adapter, encoder.image.adapter
    encoder.text.adapter, encoder.image.adapter = nn.Identity(), nn.Identity()
    title_stage, image_stage = data.products.stages

    def titles(title: Tensor, mask: Tensor) -> Tensor:
        return title_vectors(encoder, title_stage, title, mask)

    images = store_images(
        encoder, data.products, dimension, size, device, cache / "image-vectors.npy",
        lambda image: image_vectors(encoder, image_stage, image),
    )  # fmt: skip
    own = store_titles(encoder, data.products, dimension, size, device, cache / "product-vectors.npy", titles)
    products = labels = data.products.with_vectors(own, images)
    if data.labels is not data.products:
        own = store_titles(encoder, data.labels, dimension, size, device, cache / "label-vectors.npy", titles)
        labels = data.labels.with_vectors(own, images)
    encoder.text.adapter, encoder.image.adapter = adapters
    return replace(data, products=products, labels=labels)


def with_frozen_backbones(session: Session, data: TrainingData, cache: Path) -> TrainingData:
    """Features of encoders whose every layer is frozen, computed once and kept on disk for the whole training."""
    config, encoder, device = session.config, session.model.encoder, session.device
    products, labels = data.products, data.labels
    size, shared = config.encode_batch_size, data.labels is data.products
    if config.image.trainable_layers == 0 and products.image_count:
        image = encoder.image
        features = store_images(
            encoder, products, backbone_width(image.backbone), size, device, cache / "image-features.npy",
            lambda pixels: image.features(image.normalise(pixels)),
        )  # fmt: skip
        products, labels = replace(products, image_features=features), replace(labels, image_features=features)
    if config.text.trainable_layers == 0:
        width = backbone_width(encoder.text.backbone)
        own = store_titles(
            encoder, products, width, size, device, cache / "product-features.npy", encoder.text.features
        )
        products = replace(products, title_features=own)
        if not shared:
            own = store_titles(
                encoder, labels, width, size, device, cache / "label-features.npy", encoder.text.features
            )
        labels = replace(labels, title_features=own)
    return replace(data, products=products, labels=products if shared else labels)
