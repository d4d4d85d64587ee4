"""Titles through a pretrained sentence encoder: mean over tokens, unit length.

Knows no catalogue. The same tokens and the same mean as the network's title encoder, so that baselines and MUFIN see one
encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mufin.inputs import FloatArray, TitleTokenizer
from mufin.training.config import EncoderConfig
from mufin.training.disk import locked, save_array
from mufin.training.model import build_backbone, masked_mean
from mufin.training.tokenizer import load_named_tokenizer

MOST_TOKENS = 48
_AT_ONCE = 256


@torch.no_grad()
def encode_titles(titles: Sequence[str], encoder: str, cache: Path | None = None) -> FloatArray:
    """(N, W) of unit length; titles of like length share a call. ``cache``: a folder that keeps them by content."""
    kept = None if cache is None else _kept(titles, encoder, cache)
    if kept is not None and kept.is_file():
        return np.asarray(np.load(kept), dtype=np.float32)
    tokens = TitleTokenizer(load_named_tokenizer(encoder), MOST_TOKENS).encode(titles)
    backbone = build_backbone(EncoderConfig(name=encoder, trainable_layers=0))
    backbone.train(False)
    lengths = tokens.mask.sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    found: FloatArray | None = None
    for start in range(0, len(order), _AT_ONCE):
        rows = order[start : start + _AT_ONCE]
        longest = int(lengths[rows].max())
        ids, mask = (torch.from_numpy(a[rows, :longest].copy()) for a in (tokens.ids, tokens.mask))
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = torch.nn.functional.normalize(masked_mean(hidden, mask.bool()), dim=1).numpy()
        if found is None:
            found = np.zeros((len(titles), mean.shape[1]), dtype=np.float32)
        found[rows] = mean
    if found is None:
        raise ValueError("no titles to encode")
    if cache is not None:
        keep_titles(titles, encoder, cache, found)
    return found


def keep_titles(titles: Sequence[str], encoder: str, cache: Path, sentences: FloatArray) -> None:
    """Put (N, W) of unit length where ``encode_titles`` looks for those of these titles, unless they are there."""
    cache.mkdir(parents=True, exist_ok=True)
    path = _kept(titles, encoder, cache)
    with locked(cache):
        if not path.is_file():
            save_array(path, sentences)


def _kept(titles: Sequence[str], encoder: str, cache: Path) -> Path:
    name = hashlib.sha256("\0".join([encoder, str(MOST_TOKENS), *titles]).encode()).hexdigest()[:32]
    return cache / f"titles-{name}.npy"
