"""What a bundle is made of: a trained network and everything that travels with it, wherever they come from.

Knows no bundle. A finished run gives it here; a checkpoint of the authors' release in ``official.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_export.onnx_graphs import fold_spectral_norm
from mufin.catalogue import Catalogue, Item, read_catalogue
from mufin.combination import Combination
from mufin.errors import ConfigError
from mufin.evidence import Evidence
from mufin.inputs import FloatArray, InputSpec, TitleTokenizer
from mufin.relevance import Relevance
from mufin.scoring import ScoreSpec
from mufin.training.checkpoint import Run, RunFacts, load_run
from mufin.training.config import TrainConfig
from mufin.training.evaluation import check_labels
from mufin.training.item_arrays import ItemArrays, prepare
from mufin.training.model import LabelClassifiers, Mufin
from mufin.training.preparation import cut_as_trained


@dataclass(frozen=True)
class Trained:
    """A trained network, ready to be exported."""

    model: Mufin
    """In eval mode, on the CPU, spectral norms folded into plain weights."""
    config: TrainConfig
    input_spec: InputSpec
    score_spec: ScoreSpec
    tokenizer_json: str
    facts: RunFacts
    metrics: Mapping[str, Any]
    """Of the validation split; empty when there was none."""
    combined: tuple[Evidence, Combination] | None
    """Evidence and the combination learned, of a run that has them."""
    origin: Mapping[str, Any]
    """What it was made from, in plain values without paths; stands in the manifest."""
    label_means: FloatArray | None = None
    """(L, D) as a run keeps them"""


def trained_run(run_folder: Path, catalogue_folder: Path | None = None) -> tuple[Trained, Catalogue]:
    """A finished run and the catalogue of its labels, by default the one it was trained on, split as it was there.

    Raises CheckpointError when there is no finished run, the labels are others, or the validation split that training
    cut cannot be cut again.
    """
    run = load_run(run_folder)
    catalogue = read_catalogue(catalogue_folder or Path(run.facts.catalogue))
    check_labels(run, catalogue)
    config = run.config
    split = cut_as_trained(catalogue, config.validation_fraction, config.seed, run.facts.content_sha256, run_folder)
    return trained_from(run, {"kind": "run"}), split


def trained_from(run: Run, origin: Mapping[str, Any]) -> Trained:
    """The same with its spectral norms folded. The classifiers, L x D numbers, are shared with it, not copied.

    Raises ConfigError for several heads merged as the release does: that mixes an item's slots with the padding of its
    batch (docs/network.md), so an item would have another embedding in other company.
    """
    model, network = run.model, run.config.network
    if network.legacy_heads and network.attention_heads > 1:
        raise ConfigError(
            f"legacy_heads is true with {network.attention_heads} attention heads: what such a network makes of an item "
            "depends on the padding of its batch, so no bundle can answer as it does; export a network with one head, "
            "or train with legacy_heads=false"
        )
    without_labels = Mufin(model.encoder, model.cross_attention, LabelClassifiers(1, network.dimension, False))
    folded = fold_spectral_norm(without_labels)
    folded.classifiers = model.classifiers.eval()
    combined = None
    if run.evidence is not None and run.combination is not None:
        combined = run.evidence, run.combination
    return Trained(
        folded,
        run.config,
        run.input_spec,
        run.score_spec,
        run.tokenizer_json,
        run.facts,
        run.metrics,
        combined,
        origin,
        run.label_means,
    )


def item_arrays(
    items: Sequence[Item], catalogue_folder: Path, spec: InputSpec, tokenizer: TitleTokenizer, folder: Path
) -> ItemArrays:
    """A few of a catalogue's items as arrays in ``folder``: their titles tokenised, their pictures decoded."""
    own = list(items)
    nothing = np.zeros(0, dtype=np.int64)
    part = Catalogue(catalogue_folder, own, own, True, {}, Relevance.from_pairs(nothing, nothing, len(own), len(own)))
    arrays, _ = prepare(part, spec, tokenizer, folder, lambda task, done, total: None)
    return arrays
