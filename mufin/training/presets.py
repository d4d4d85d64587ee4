"""Named starting points of a config: plain values that ``config.build_config`` merges.

Know nothing of types; ``config`` checks them.
"""

from __future__ import annotations

import json
from typing import Any, cast

SMALL: dict[str, Any] = {
    "text": {
        "options": {"model_type": "distilbert", "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256},
    },
    "image": {
        "options": {
            "model_type": "resnet",
            "embedding_size": 24,
            "hidden_sizes": [24, 48, 96],
            "depths": [1, 1, 1],
            "layer_type": "basic",
        },
    },
    "inputs": {"image_side_pixels": 32, "max_title_tokens": 32, "max_images": 3},
    "network": {"dimension": 96},
    "siamese": {
        "epochs": 15,
        "batch_size": 256,
        "learning_rate": 2e-3,
        "loss": "softmax",
        "temperature": 0.1,
        "random_epochs": 10,
        "classifier_weight": 2.0,
        "classifier_learning_rate": 0.03,
    },
    "shortlist": {"size": 100},
    "frozen_ranker": {
        "epochs": 10,
        "batch_size": 128,
        "encoder_learning_rate": 3e-3,
        "cross_learning_rate": 3e-3,
        "classifier_learning_rate": 0.03,
        "negatives": 32,
        "positives": 8,
        "random_negatives": 32,
        "loss": "bce",
    },
    "classifier_init": "siamese",
    "ranker": {"epochs": 0},
    "evaluate_epochs": 5,
}

FROZEN: dict[str, Any] = {
    "text": {"trainable_layers": 0},
    "image": {"options": {"model_type": "mufin-descriptor"}, "trainable_layers": 0},
    "inputs": {"image_side_pixels": 64, "max_title_tokens": 48, "max_images": 3},
    "network": {"dimension": 256, "word_vectors": 384, "feature_dropout": 0.2},
    "siamese": {
        "epochs": 15,
        "batch_size": 256,
        "learning_rate": 4e-3,
        "loss": "softmax",
        "temperature": 0.1,
        "random_epochs": 15,
        "label_negatives": 2048,
        "classifier_weight": 1.0,
        "classifier_learning_rate": 8e-3,
    },
    "shortlist": {"size": 100},
    "frozen_ranker": {
        "epochs": 3,
        "batch_size": 512,
        "encoder_learning_rate": 6e-4,
        "cross_learning_rate": 6e-4,
        "classifier_learning_rate": 4e-3,
        "negatives": 16,
        "positives": 4,
        "random_negatives": 16,
        "loss": "bce",
    },
    "classifier_init": "siamese",
    "ranker": {"epochs": 0},
    "image_dropout": 0.8,
    "evaluate_epochs": 10,
}

PRESETS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "frozen": FROZEN,
    "paper-300k": {
        "text": {"name": "sentence-transformers/msmarco-distilbert-cos-v5"},
        "image": {"name": "google/vit-base-patch16-224-in21k"},
        "inputs": {"image_side_pixels": 128, "max_title_tokens": 32, "max_images": 5},
        "precision": "fp16",
        "sparse_classifiers": True,
    },
}
"""Named starting points; ``frozen`` needs ``text.name``; ``paper-300k`` is the release with the differences of docs/network.md."""


def copy_of(values: dict[str, Any]) -> dict[str, Any]:
    """A copy that shares nothing."""
    return cast(dict[str, Any], json.loads(json.dumps(values)))
