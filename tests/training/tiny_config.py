"""A config whose every module runs, in seconds."""

from __future__ import annotations

from mufin.training.config import TrainConfig
from mufin.training.config_reading import build_config

TINY = [
    'text.options={"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}',
    'image.options={"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
    '"intermediate_size": 16, "image_size": 16, "patch_size": 8}',
    "inputs.image_side_pixels=16", "network.dimension=8", "shortlist.size=10", "siamese.batch_size=16",
    "siamese.epochs=4", "siamese.random_epochs=1", "siamese.recluster_epochs=2", "siamese.cluster_size=8",
    "frozen_ranker.epochs=3", "frozen_ranker.batch_size=16", "frozen_ranker.negatives=4", "frozen_ranker.positives=2",
    "frozen_ranker.random_negatives=2", "ranker.epochs=2", "ranker.batch_size=16", "ranker.reshortlist_epochs=1",
    "vocabulary_size=200", "evaluate_epochs=2",
]  # fmt: skip


def tiny_config(*changes: str) -> TrainConfig:
    """All modules, seconds of work."""
    return build_config(None, [*TINY, *changes])
