"""What a run keeps on disk: the finished model, and the state to resume from.

Knows no schedule and no loss. Everything is written beside its place, fsynced and renamed, so that a crash
leaves the last whole version. No pickle: safetensors, JSON, and ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mufin.combination import COMBINATION_FILE, Combination, read_combination, write_combination
from mufin.errors import CheckpointError
from mufin.evidence import Evidence
from mufin.evidence_file import EVIDENCE_FILE, read_evidence, write_evidence
from mufin.inputs import FloatArray, InputSpec
from mufin.scoring import ScoreSpec
from mufin.training.config import TrainConfig
from mufin.training.config_reading import config_from_json
from mufin.training.disk import atomic_write
from mufin.training.model import Mufin, ResidualAdapter, build_backbone, build_network

MODEL_FOLDER = "model"
STATE_FILE = "state.pt"
MEANS_FILE = "label_means.npy"


@dataclass(frozen=True)
class RunFacts:
    """What the run was trained on; checked again by export and evaluation."""

    catalogue: str
    """Folder of the catalogue as given to mufin-train, absolute."""
    product_count: int
    label_count: int
    label_ids_sha256: str
    """Of the label ids in order, newline-joined."""
    train_pairs: int
    content_sha256: str
    """Of ids, titles, image names, pairs of train and valid, and exclude pairs."""


@dataclass(frozen=True)
class Run:
    """A finished run, read back."""

    model: Mufin
    """In eval mode, on the CPU."""
    config: TrainConfig
    input_spec: InputSpec
    score_spec: ScoreSpec
    tokenizer_json: str
    facts: RunFacts
    metrics: Mapping[str, Any]
    """Of the validation split at the end: row -> metric -> value."""
    evidence: Evidence | None = None
    """With ``combination``, or neither."""
    combination: Combination | None = None
    label_means: FloatArray | None = None
    """(L, D) means of each label's training products, of a run whose labels are found by prototypes"""


def hash_label_ids(ids: Sequence[str]) -> str:
    """SHA-256 of label ids in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def add_adapters(model: Mufin, dropout: float, spectral_norm: bool) -> None:
    """Give both encoders the frozen-feature ranker's residual adapters; a second call changes nothing."""
    for encoder in (model.encoder.text, model.encoder.image):
        if not isinstance(encoder.adapter, ResidualAdapter):
            last = encoder.bottleneck[-1].out_features
            assert isinstance(last, int)
            encoder.adapter = ResidualAdapter(last, dropout, spectral_norm).to(next(model.parameters()).device)


def has_adapters(model: Mufin) -> bool:
    """Whether ``add_adapters`` was called on this network."""
    return isinstance(model.encoder.text.adapter, ResidualAdapter)


def save_run(
    folder: Path, model: Mufin, config: TrainConfig, score_spec: ScoreSpec, tokenizer_json: str, facts: RunFacts,
    metrics: Mapping[str, Any], identity: str, combined: tuple[Evidence, Combination] | None = None,
    label_means: FloatArray | None = None,
) -> None:  # fmt: skip
    """Write ``folder``/model; ``run.json`` comes last and marks it whole. The resume state is removed then."""
    target = folder / MODEL_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    (target / "run.json").unlink(missing_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    atomic_write(target / "model.safetensors", lambda path: save_file(weights, str(path)))
    atomic_write(target / "tokenizer.json", lambda path: _write_text(path, tokenizer_json))
    if combined is not None:
        evidence, combination = combined
        atomic_write(target / EVIDENCE_FILE, lambda path: write_evidence(path, evidence))
        atomic_write(target / COMBINATION_FILE, lambda path: write_combination(path, combination))
    if label_means is not None:
        atomic_write(target / MEANS_FILE, lambda path: _write_array(path, label_means))
    values = {
        "combined": combined is not None,
        "config": config.to_json(),
        "score_spec": score_spec.to_json(),
        "text_backbone": model.encoder.text.backbone.config.to_dict(),
        "image_backbone": model.encoder.image.backbone.config.to_dict(),
        "adapters": has_adapters(model),
        "facts": asdict(facts),
        "metrics": metrics,
        "identity": identity,
    }
    text = json.dumps(values, indent=1, default=str)
    atomic_write(target / "run.json", lambda path: _write_text(path, text))
    (folder / STATE_FILE).unlink(missing_ok=True)


def finished_metrics(folder: Path, identity: str) -> dict[str, Any] | None:
    """Metrics of the run that ``folder`` holds finished already, or None. Raises CheckpointError for another run."""
    path = folder / MODEL_FOLDER / "run.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found, metrics = str(values["identity"]), dict(values["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; train into a new folder") from error
    _check_identity(folder, found, identity)
    return metrics


def _write_array(path: Path, array: FloatArray) -> None:
    with path.open("wb") as handle:  # np.save would give a name of its own to a path
        np.save(handle, array, allow_pickle=False)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def load_run(folder: Path) -> Run:
    """Read a finished run. Raises CheckpointError when there is none or its parts disagree."""
    target = folder / MODEL_FOLDER
    if not (target / "run.json").is_file():
        raise CheckpointError(f"{folder}: no finished run here (model/run.json is missing); run mufin-train to the end")
    try:
        values = json.loads((target / "run.json").read_text(encoding="utf-8"))
        config = config_from_json(values["config"])
        facts = RunFacts(**values["facts"])
        model = build_network(
            build_backbone(config.text, values["text_backbone"]),
            build_backbone(config.image, values["image_backbone"]),
            config.network, facts.label_count, image_mean=config.inputs.image_mean, image_std=config.inputs.image_std,
            sparse_classifiers=config.sparse_classifiers,
        )  # fmt: skip
        if values["adapters"]:
            add_adapters(model, config.network.dropout, config.network.spectral_norm)
        model.load_state_dict(load_file(str(target / "model.safetensors")), strict=True)
        tokenizer_json = (target / "tokenizer.json").read_text(encoding="utf-8")
        combined = bool(values["combined"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{target}: cannot be read: {error}") from error
    score_spec = ScoreSpec.from_json(values["score_spec"])
    found = Run(model.eval(), config, config.inputs, score_spec, tokenizer_json, facts, values["metrics"])
    if config.shortlist.prototype_weight:
        found = replace(
            found, label_means=_read_means(target / MEANS_FILE, (facts.label_count, config.network.dimension))
        )
    if not combined:
        return found
    evidence = read_evidence(target / EVIDENCE_FILE, config.network.dimension, facts.label_count)
    return replace(found, evidence=evidence, combination=read_combination(target / COMBINATION_FILE))


def _read_means(path: Path, expected: tuple[int, int]) -> FloatArray:
    try:
        means: FloatArray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; train into a new folder") from error
    if means.shape != expected or means.dtype != np.float32:
        raise CheckpointError(
            f"{path}: holds {means.shape} {means.dtype}, needs {expected} float32; train into a new folder"
        )
    return means


@dataclass
class EpochSoFar:
    """What the log line of an epoch sums up."""

    loss_sum: float = 0.0
    steps: int = 0
    """Steps whose loss is in the sum."""
    seconds: float = 0.0
    """Time spent before the last checkpoint."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """The same by stage."""


@dataclass
class TrainState:
    """Where training stands; everything needed to go on as if nothing had happened."""

    module: str
    """Name of the recipe's module under way."""
    epoch: int
    """Epochs of it that are done."""
    step: int
    """Steps of the current epoch that are done."""
    model: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    scaler: dict[str, Any]
    clusters: list[Tensor]
    """Of the siamese module, since the last clustering."""
    positives: list[Tensor]
    """Product and label embeddings that hard positives are drawn by."""
    adapters: bool
    metrics_bytes: int
    """Length of metrics.jsonl; lines behind it are repeated after a resume."""
    epoch_so_far: EpochSoFar
    """Of the epoch under way, so that its log line covers all of it after a resume, too."""
    identity: str
    """SHA-256 of config and catalogue facts; another one is refused."""


def save_state(folder: Path, state: TrainState) -> None:
    """Replace the resume state, atomically."""
    values = {**vars(state), "epoch_so_far": vars(state.epoch_so_far)}
    atomic_write(folder / STATE_FILE, lambda path: torch.save(values, path))


def load_state(folder: Path, identity: str) -> TrainState | None:
    """The resume state, or None when the run has not begun. Raises CheckpointError when it is another run's."""
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        state = TrainState(**{**values, "epoch_so_far": EpochSoFar(**values["epoch_so_far"])})
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; delete the run folder and train again") from error
    _check_identity(folder, state.identity, identity)
    return state


def _check_identity(folder: Path, found: str, identity: str) -> None:
    if found != identity:
        raise CheckpointError(
            f"{folder} was begun with another config or catalogue ({found[:12]}, now {identity[:12]}): "
            "train into a new folder, or delete this one"
        )
