"""What frozen encoders say of a catalogue, computed once with every core before trainings side by side ask for it.

Knows no method and no figures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.sentences import MOST_TOKENS, keep_titles
from mufin.catalogue import Catalogue
from mufin.inputs import TitleTokenizer
from mufin.training.config import TrainConfig
from mufin.training.item_arrays import prepare
from mufin.training.model import backbone_width
from mufin.training.preparation import new_network, tokenizer_json_of
from mufin.training.stored_features import frozen_features


def keep_features(catalogue: Catalogue, config: TrainConfig, encoder: str | None, shared: Path) -> None:
    """Fill ``shared`` with pictures, features and the baselines' sentences, as far as the config's encoders are frozen.

    The sentences only where the network sees the same: as many tokens, and unit length, which it has beside word vectors.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = TitleTokenizer(tokenizer_json_of(catalogue, config), config.inputs.max_title_tokens)
        items = prepare(catalogue, config.inputs, tokenizer, folder, lambda *_: None, shared)
        encoders = new_network(config, tokenizer, len(catalogue.labels)).encoder
        products, _ = frozen_features(encoders, config, *items, torch.device("cpu"), folder, shared)
        alike = config.inputs.max_title_tokens == MOST_TOKENS and encoders.text.words is not None
        if encoder is not None and products.title_features is not None and alike:
            sentences = np.array(products.title_features[:, : backbone_width(encoders.text.backbone)])
            keep_titles([item.title for item in catalogue.products], encoder, shared, sentences)
