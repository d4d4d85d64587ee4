"""A catalogue and a config become what training works on: arrays, relevance, tokenizer, network.

Knows no loss and no schedule.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from mufin.catalogue import Catalogue, Relevance, ensure_validation, forbidden_pairs
from mufin.errors import CatalogueError, CheckpointError, ConfigError
from mufin.inputs import InputSpec, Int64Array, TitleTokenizer
from mufin.metrics import remove_from_relevance
from mufin.training.checkpoint import RunFacts, hash_label_ids
from mufin.training.config import TrainConfig
from mufin.training.descriptor import MODEL_TYPE, Descriptor
from mufin.training.item_arrays import ItemArrays
from mufin.training.label_vectors import TaughtBy
from mufin.training.model import Mufin, build_backbone, build_network
from mufin.training.tokenizer import load_named_tokenizer, train_wordpiece

OPERATIONAL = ("checkpoint_minutes", "evaluate_epochs", "encode_batch_size")
"""Fields of TrainConfig that may change between a killed run and its resumption. Another ``encode_batch_size`` pads
otherwise, so embeddings may differ in the last bits from there on."""


@dataclass(frozen=True)
class TrainingData:
    """A catalogue, ready to train on. Rows are those of Catalogue.products and Catalogue.labels."""

    products: ItemArrays
    labels: ItemArrays
    train_rows: Int64Array
    train: Relevance
    """(train products, L)"""
    valid_rows: Int64Array
    valid: Relevance
    """(valid products, L), without forbidden pairs, as mufin-evaluate counts"""
    forbidden: Relevance
    """(all products, L): never recommended, never a negative"""
    frequency: Int64Array
    """(L,) training products of each label"""

    @property
    def taught(self) -> TaughtBy:
        """Training products and what they are relevant to."""
        return TaughtBy(self.products, self.train_rows, self.train)


def run_facts(catalogue: Catalogue) -> RunFacts:
    """What the run is trained on. Raises CatalogueError without training pairs."""
    if "train" not in catalogue.splits:
        raise CatalogueError(catalogue.folder / "train.csv", None, "is missing: training needs relevant pairs")
    return RunFacts(
        catalogue=str(catalogue.folder.resolve()),
        product_count=len(catalogue.products),
        label_count=len(catalogue.labels),
        label_ids_sha256=hash_label_ids([label.id for label in catalogue.labels]),
        train_pairs=len(catalogue.splits["train"].relevance.indices),
        content_sha256=content_sha256(catalogue),
    )


def content_sha256(catalogue: Catalogue) -> str:
    """SHA-256 of ids, titles, image names, pairs of train and valid, and exclude pairs of a catalogue that has both."""
    content = hashlib.sha256()
    for item in [*catalogue.products, *catalogue.labels]:
        content.update(json.dumps([item.id, item.title, item.images]).encode())
    for split in (catalogue.splits["train"], catalogue.splits["valid"]):
        for array in (split.products, split.relevance.indptr, split.relevance.indices):
            content.update(array.tobytes())
    content.update(catalogue.exclude.indptr.tobytes() + catalogue.exclude.indices.tobytes())
    return content.hexdigest()


def cut_as_trained(catalogue: Catalogue, fraction: float, seed: int, trained_sha256: str, run: Path) -> Catalogue:
    """The catalogue with the validation split that the training of ``run`` cut from it; with its own where it has one.

    ``trained_sha256``: the run's ``content_sha256``. Raises CheckpointError when the cut is another now, and training
    products would be scored.
    """
    cut = ensure_validation(catalogue, fraction, seed)
    if cut is catalogue:
        return catalogue
    found = content_sha256(cut)
    if found != trained_sha256:
        raise CheckpointError(
            f"{catalogue.folder}: train.csv, or what its validation split is cut from, changed since {run} was trained "
            f"({trained_sha256[:12]}, now {found[:12]}), so the cut is another and would hold products that were trained "
            "on: restore it, add the valid.csv that training had, or score --split test"
        )
    return cut


def require_scorable(catalogue: Catalogue) -> None:
    """Raise CatalogueError when the validation split has nothing that may be recommended: every figure would be NaN."""
    valid = catalogue.splits["valid"]
    if not len(remove_from_relevance(valid.relevance, forbidden_pairs(catalogue).select(valid.products)).indices):
        raise CatalogueError(
            catalogue.folder / "valid.csv", None,
            f"all {len(valid.relevance.indices)} pairs of the validation split are exclude pairs or a product with itself, "
            "so nothing can be scored; correct exclude.csv or give other validation pairs",
        )  # fmt: skip


def run_identity(config: TrainConfig, facts: RunFacts) -> str:
    """SHA-256 of config and facts: a resumed run must have the same.

    Where the catalogue lies does not count, nor what only says how the work is done (``OPERATIONAL``).
    """
    settings = {key: value for key, value in config.to_json().items() if key not in OPERATIONAL}
    values = {**asdict(facts), "catalogue": "", "config": settings}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_json_of(catalogue: Catalogue, config: TrainConfig) -> str:
    """The named encoder's tokenizer, or one built from the titles of products and labels."""
    if config.text.name is not None:
        return load_named_tokenizer(config.text.name)
    titles = [item.title for item in [*catalogue.products, *catalogue.labels]]
    return train_wordpiece(titles, config.vocabulary_size)


def training_data(catalogue: Catalogue, products: ItemArrays, labels: ItemArrays) -> TrainingData:
    """Arrays and relevance of a catalogue that has a validation split."""
    training, valid = catalogue.splits["train"], catalogue.splits["valid"]
    forbidden = forbidden_pairs(catalogue)
    return TrainingData(
        products, labels, training.products, training.relevance, valid.products,
        remove_from_relevance(valid.relevance, forbidden.select(valid.products)), forbidden,
        training.relevance.label_frequency(),
    )  # fmt: skip


def new_network(config: TrainConfig, tokenizer: TitleTokenizer, labels: int) -> Mufin:
    """The network with fresh or hub weights; encoders frozen as the config says."""
    text = config.text
    if text.name is None:
        # pad_token_id is a row of the vocabulary, no secret.
        text = replace(text, options={**text.options, "vocab_size": tokenizer.vocabulary_size, "pad_token_id": 0})  # nosec B105
    backbones = []
    for encoder in (text, config.image):
        backbone = build_backbone(encoder)
        _check_scaling(backbone, config.inputs)
        if encoder.gradient_checkpointing:
            if not backbone.supports_gradient_checkpointing:
                raise ConfigError(f"{type(backbone).__name__} cannot do gradient_checkpointing: set it to false")
            # Later transformers' name; they warn of the former.
            getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)()
        _freeze(backbone, encoder.trainable_layers)
        backbones.append(backbone)
    longest = getattr(backbones[0].config, "max_position_embeddings", None)
    tokens = config.inputs.max_title_tokens + config.network.early_fusion
    if longest is not None and longest < tokens:
        beside = " beside the images' one (network.early_fusion)" if config.network.early_fusion else ""
        raise ConfigError(
            f"inputs.max_title_tokens is {config.inputs.max_title_tokens}{beside}, the title encoder takes {longest}"
        )
    return build_network(
        backbones[0], backbones[1], config.network, labels, image_mean=config.inputs.image_mean,
        image_std=config.inputs.image_std, sparse_classifiers=config.sparse_classifiers,
    )  # fmt: skip


def _check_scaling(backbone: PreTrainedModel, spec: InputSpec) -> None:
    """Histograms of colours need pixels scaled as they were made for."""
    if isinstance(backbone, Descriptor):
        wanted, found = (backbone.config.image_mean, backbone.config.image_std), (spec.image_mean, spec.image_std)
        if wanted != found:
            raise ConfigError(
                f"inputs.image_mean and image_std are {found}, image encoder {MODEL_TYPE} needs {wanted}: leave them out"
            )


def _freeze(backbone: nn.Module, trainable_layers: int | None) -> None:
    """Leave gradients to the last ``trainable_layers`` blocks only; None: to everything."""
    if trainable_layers is None:
        return
    backbone.requires_grad_(False)
    stacks = [m for m in backbone.modules() if isinstance(m, nn.ModuleList)]
    if trainable_layers and not stacks:
        raise ConfigError(f"{type(backbone).__name__} has no list of blocks: trainable_layers must be null or 0")
    if trainable_layers:
        blocks = max(stacks, key=len)
        if trainable_layers > len(blocks):
            raise ConfigError(
                f"trainable_layers is {trainable_layers}, {type(backbone).__name__} has {len(blocks)} blocks"
            )
        for block in list(blocks)[-trainable_layers:]:
            block.requires_grad_(True)
