"""Checkpoints of the authors' release as what a bundle is made of.

Knows no bundle. The folder is laid out as ``python -m mufin.training.official --check`` reads it: config.json and
module4.safetensors (or .pt, .pth, .pkl, .bin). The shortlist score is the cosine of module 4's own encoder, as in a
run (docs/network.md); module 1 is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from model_export.trained import Trained, trained_from
from mufin.catalogue import Catalogue, Split, forbidden_pairs, read_catalogue
from mufin.errors import CheckpointError, ConfigError
from mufin.inputs import InputSpec, TitleTokenizer
from mufin.manifest import hash_file
from mufin.metrics import remove_from_relevance
from mufin.relevance import Relevance
from mufin.scoring import ScoreSpec
from mufin.training.checkpoint import Run, RunFacts, hash_label_ids
from mufin.training.config import EncoderConfig, NetworkConfig, ShortlistConfig, TrainConfig
from mufin.training.item_arrays import prepare
from mufin.training.loop import Session
from mufin.training.model import Mufin
from mufin.training.official import checkpoint_path, read_network
from mufin.training.preparation import TrainingData
from mufin.training.progress import Reporter
from mufin.training.score_fitting import fit_scores
from mufin.training.tokenizer import load_named_tokenizer
from mufin.training.workers import Workers

DEFAULT_FUSION_WEIGHT = 0.5
"""The release's middle one (.1 to .9 are swept), where nothing can be fitted."""

_RANKER = "module4"


@dataclass(frozen=True)
class OfficialSettings:
    """What a checkpoint of the release does not say of itself."""

    tokenizer: str | None = None
    """A tokenizer.json, a folder, or a hub name; None: tokenizer.json of the folder, or what its config.json names."""
    fusion_weight: float | None = None
    """alpha; None: fitted on the catalogue's valid split, or .5 where it has none."""


def trained_official(
    folder: Path, catalogue_folder: Path, settings: OfficialSettings, reporter: Reporter
) -> tuple[Trained, Catalogue]:
    """Module 4 of ``folder`` and the catalogue, whose labels are the checkpoint's in order.

    A ``valid`` split fits fusion weight and calibration as training would; none is cut from train, which the
    checkpoint has seen. Raises CheckpointError and ConfigError.
    """
    config = _read_config(folder)
    catalogue = read_catalogue(catalogue_folder)
    model = read_network(folder, _RANKER, config)
    count = len(model.classifiers.free.weight)
    if count != len(catalogue.labels):
        raise CheckpointError(
            f"{checkpoint_path(folder, _RANKER)}: has classifiers of {count} labels, {catalogue_folder} has "
            f"{len(catalogue.labels)} labels: give the catalogue that the checkpoint was trained on, labels in its order"
        )
    training = _training_config(config, model)
    tokenizer = _tokenizer(folder, config, settings)
    metrics: Mapping[str, Any] = {}
    spec, fitted = ScoreSpec(training.shortlist.size, DEFAULT_FUSION_WEIGHT), "default"
    if settings.fusion_weight is not None:
        spec, fitted = ScoreSpec(training.shortlist.size, settings.fusion_weight), "given"
    if "valid" in catalogue.splits:
        spec, metrics = _fit(model, training, tokenizer, catalogue, settings.fusion_weight, reporter)
        fitted = "fitted on valid" if settings.fusion_weight is None else "given"
    origin = {
        "kind": "official", "config": config, "checkpoint_sha256": hash_file(checkpoint_path(folder, _RANKER)),
        "fusion_weight": fitted, "calibration": "fitted on valid" if metrics else "none: probability = sigmoid(score)",
    }  # fmt: skip
    run = Run(model, training, training.inputs, spec, tokenizer, _facts(catalogue), metrics)
    return trained_from(run, origin), catalogue


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}): write the checkpoint's sizes there, {{}} for the release's"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds {type(config).__name__}, needs an object of sizes")
    return config


def _training_config(config: Mapping[str, Any], model: Mufin) -> TrainConfig:
    """What a run would have said of the same network. Items as in the release, unless config.json says otherwise."""
    text, image = model.encoder.text.backbone, model.encoder.image.backbone
    longest = int(config.get("max_position_embeddings", 512))
    return TrainConfig(
        text=EncoderConfig(options=_options(text)), image=EncoderConfig(options=_options(image)),
        inputs=InputSpec(
            image_side_pixels=int(config.get("image_side_pixels", 128)),
            image_mean=float(config.get("image_mean", 0.5)), image_std=float(config.get("image_std", 0.5)),
            max_title_tokens=min(int(config.get("max_title_tokens", 32)), longest),
            max_images=int(config.get("max_images", 5)),
        ),
        network=NetworkConfig(
            dimension=model.classifiers.free.weight.shape[1],
            attention_heads=int(config.get("mufin_attention_heads", 1)), spectral_norm=False,
            legacy_heads=bool(config.get("legacy_heads", False)),
        ),
        shortlist=ShortlistConfig(size=int(config.get("shortlist_size", 300))),
    )  # fmt: skip


def _options(backbone: PreTrainedModel) -> dict[str, Any]:
    return {**backbone.config.to_diff_dict(), "model_type": backbone.config.model_type}


def _tokenizer(folder: Path, config: Mapping[str, Any], settings: OfficialSettings) -> str:
    """The text of a tokenizer.json whose ids the title encoder knows."""
    named = settings.tokenizer or (None if (folder / "tokenizer.json").is_file() else config.get("tokenizer"))
    path = Path(named) if named is not None else folder / "tokenizer.json"
    if named is None and not path.is_file():
        raise ConfigError(
            f"{folder}: has no tokenizer.json, and config.json names no tokenizer: give --tokenizer PATH or a hub "
            "name (the release's is sentence-transformers/msmarco-distilbert-cos-v5)"
        )
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else load_named_tokenizer(str(named))
        size = TitleTokenizer(text, 3).vocabulary_size
    except ConfigError:
        raise
    except Exception as error:  # tokenizers raises bare ones
        raise ConfigError(f"{path}: is no tokenizer.json ({error}): give the checkpoint's") from error
    known = int(config.get("vocab", 30522))
    if size > known:
        raise ConfigError(
            f"{path}: has {size} tokens, the title encoder knows {known}: give the checkpoint's tokenizer"
        )
    return text


def _facts(catalogue: Catalogue) -> RunFacts:
    train = catalogue.splits.get("train")
    return RunFacts(
        catalogue=str(catalogue.folder.resolve()), product_count=len(catalogue.products),
        label_count=len(catalogue.labels), label_ids_sha256=hash_label_ids([label.id for label in catalogue.labels]),
        train_pairs=0 if train is None else len(train.relevance.indices), content_sha256="",
    )  # fmt: skip


def _fit(
    model: Mufin, config: TrainConfig, tokenizer_json: str, catalogue: Catalogue, fusion_weight: float | None,
    reporter: Reporter,
) -> tuple[ScoreSpec, Mapping[str, Any]]:  # fmt: skip
    """Fusion weight and calibration on the valid split."""
    tokenizer = TitleTokenizer(tokenizer_json, config.inputs.max_title_tokens)
    nothing = np.zeros(0, dtype=np.int64)
    train = catalogue.splits.get("train") or Split(
        nothing, Relevance.from_pairs(nothing, nothing, 0, len(catalogue.labels))
    )
    valid, forbidden = catalogue.splits["valid"], forbidden_pairs(catalogue)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        products, labels = prepare(catalogue, config.inputs, tokenizer, folder, reporter.step)
        data = TrainingData(
            products, labels, train.products, train.relevance, valid.products,
            remove_from_relevance(valid.relevance, forbidden.select(valid.products)), forbidden,
            train.relevance.label_frequency(),
        )  # fmt: skip
        session = Session(config, model, torch.device("cpu"), folder, reporter, Workers(), "")
        fitted = fit_scores(session, data, folder / "bags.npy", fusion_weight)
    return fitted.spec, fitted.metrics
