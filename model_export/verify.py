"""Golden products: chosen, put through the network in torch, and replayed through the bundle's predictor.

Knows no file layout. The torch side is computed unfolded, label by label as in training, so that folding,
graphs, index and records are all measured at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model_export.encoded_labels import EncodedLabels
from model_export.golden_candidates import with_candidates
from model_export.label_records import RecordType
from model_export.onnx_graphs import TitleGraph
from mufin.catalogue import Item
from mufin.combination import Combination, candidate_features
from mufin.errors import BundleError
from mufin.evidence import Evidence, ProductEvidence
from mufin.golden import Golden, Parity
from mufin.inputs import FloatArray, Int64Array, normalise_title
from mufin.manifest import Tolerances
from mufin.predictor import open_predictor
from mufin.scoring import ScoreSpec
from mufin.training.encode import encode_batch, encode_items
from mufin.training.item_arrays import ItemArrays
from mufin.training.model import Mufin

_OF_EACH_KIND = 2
_LABELS_AT_ONCE = 256
_SEARCHED_AT_ONCE = 65_536
_EXACT = Tolerances()
# Largest differences of scores seen on made-up records of D = 16 to 768: 4e-4 with float16, 1.3e-2 with int8 (both at 16).
_RECORD_DIFFERENCE: dict[RecordType, float] = {"float32": 1e-4, "float16": 3e-3, "int8": 2e-2}
_RECORD_AGREEMENT: dict[RecordType, float] = {"float32": 1.0, "float16": 0.9, "int8": 0.8}
# An approximate index finds .95 of the shortlist on average; a single product may miss more.
_APPROXIMATE_AGREEMENT = 0.8
# In logits of the combination.
_COMBINED_DIFFERENCE: dict[RecordType, float] = {"float32": 0.05, "float16": 0.5, "int8": 2.0}
_COMBINED_AGREEMENT = 0.9


def tolerances_for(index: str, number: RecordType, combination: bool = False) -> Tolerances:
    """How far a bundle of this kind may lie from torch.

    A combination works on places and ratios within the candidates, which two nearly equal scores may exchange.
    """
    agreement = _EXACT.top_k_agreement
    agreement = min(agreement, _APPROXIMATE_AGREEMENT if index != "exact" else 1.0)
    agreement = min(agreement, _RECORD_AGREEMENT[number])
    ranking = None
    if combination:
        agreement = min(agreement, _COMBINED_AGREEMENT)
        ranking = _COMBINED_DIFFERENCE[number]
    return Tolerances(_EXACT.encoder_difference, _RECORD_DIFFERENCE[number], ranking, agreement)


def golden_items(products: Sequence[Item], max_images: int) -> list[Item]:
    """A few products of every shape: as they are, title only, images only, most images, longest title.

    Deterministic: the first of each kind in catalogue order.
    """
    both = [p for p in products if p.images and normalise_title(p.title)]
    titled = [p for p in products if normalise_title(p.title)]
    pictured = [p for p in products if p.images]
    chosen = [*both[:_OF_EACH_KIND]]
    chosen += [replace(p, images=()) for p in titled[:_OF_EACH_KIND]]
    chosen += [replace(p, title="") for p in pictured[:_OF_EACH_KIND]]
    chosen += [max(products, key=lambda p: min(len(p.images), max_images)), max(products, key=lambda p: len(p.title))]
    return chosen


@torch.no_grad()
def compute_golden(
    model: Mufin, items: Sequence[Item], arrays: ItemArrays, label_arrays: Callable[[Int64Array], ItemArrays],
    labels: EncodedLabels, spec: ScoreSpec, combined: tuple[Evidence, Combination] | None = None,
) -> Golden:  # fmt: skip
    """Expected output of every stage for ``items`` (``arrays`` holds the same, in order), by torch on the CPU.

    ``combined``: shortlists hold what evidence speaks for, too, and the combination makes the final scores.

    ``label_arrays``: (N,) labels -> their arrays; asked once, for the labels of all shortlists.
    """
    encoder, device = model.encoder, torch.device("cpu")
    length = int(arrays.token_counts.max(initial=1))
    ids = np.asarray(arrays.token_ids[: len(items), :length], dtype=np.int64)
    token_mask = (np.arange(length)[None] < arrays.token_counts[:, None]).astype(np.int64)
    pixels = np.asarray(arrays.pixels[arrays.image_rows])
    image_vectors = np.zeros((0, labels.embeddings.shape[1]), dtype=np.float32)
    if len(pixels):
        image_vectors = encoder.image(torch.from_numpy(pixels)).numpy()
    text = encoder.text if combined is None else TitleGraph(encoder.text)
    title_vectors: FloatArray = text(torch.from_numpy(ids), torch.from_numpy(token_mask)).numpy()
    attended, mask, embedding = encode_batch(encoder, arrays.batch(np.arange(len(items))), device)
    found, cosines = _exact_shortlist(embedding.numpy(), labels, spec)
    evidence: list[ProductEvidence] = []
    if combined is not None:
        sentences = title_vectors[:, embedding.shape[1] :]
        named = list(zip(items, arrays.has_title, sentences, strict=True))
        evidence = combined[0].of(
            embedding.numpy(),
            [combined[0].words.row(item.title) if has_title else None for item, has_title, _ in named],
            [sentence if has_title else None for _, has_title, sentence in named],
        )
        nobody = np.zeros(0, dtype=np.int64)
        found, cosines = with_candidates(
            found, cosines, evidence, embedding.numpy(), lambda more: labels.embeddings[more], nobody
        )
    classifier = _classifier_scores(model, attended, mask, label_arrays, labels, found)
    alpha = np.float32(spec.fusion_weight)
    fused = np.asarray(alpha * classifier + (1 - alpha) * cosines, dtype=np.float32)
    if combined is not None:
        _combine(combined, evidence, arrays, (found, cosines, classifier), fused)
    return Golden(
        titles=[item.title for item in items],
        has_title=np.asarray(arrays.has_title),
        token_ids=ids,
        image_offsets=arrays.image_offsets,
        pixels=pixels,
        title_vectors=title_vectors,
        image_vectors=image_vectors,
        slots=attended.numpy(),
        slot_mask=mask.numpy(),
        embeddings=embedding.numpy(),
        shortlist=(found, cosines),
        classifier=classifier,
        fused=fused,
    )


def _combine(
    combined: tuple[Evidence, Combination], evidence: Sequence[ProductEvidence], arrays: ItemArrays,
    candidates: tuple[Int64Array, FloatArray, FloatArray], scores: FloatArray,
) -> None:  # fmt: skip
    """The combination's scores into (N, n) ``scores``. ``candidates``: (N, n) labels, -1 behind them, and their scores."""
    labels, cosines, classifier = candidates
    for row, own in enumerate(evidence):
        n = int((labels[row] >= 0).sum())
        pictured = arrays.image_offsets[row + 1] > arrays.image_offsets[row]
        features = candidate_features(
            labels[row, :n], cosines[row, :n], classifier[row, :n], own, combined[0].frequency,
            bool(arrays.has_title[row]), bool(pictured),
        )  # fmt: skip
        scores[row, :n] = combined[1](features)


def _exact_shortlist(embeddings: FloatArray, labels: EncodedLabels, spec: ScoreSpec) -> tuple[Int64Array, FloatArray]:
    """The best of each product by falling cosine, ties by label; labels are read in blocks."""
    count = len(labels.embeddings)
    size = min(spec.shortlist_size, count)
    best = np.zeros((len(embeddings), 0), dtype=np.int64)
    scores = np.zeros((len(embeddings), 0), dtype=np.float32)
    for start in range(0, count, _SEARCHED_AT_ONCE):
        block = np.asarray(labels.embeddings[start : start + _SEARCHED_AT_ONCE])
        places = np.broadcast_to(np.arange(start, start + len(block)), (len(embeddings), len(block)))
        best, scores = np.concatenate([best, places], axis=1), np.concatenate([scores, embeddings @ block.T], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :size]
        best, scores = np.take_along_axis(best, order, 1), np.take_along_axis(scores, order, 1)
    return best, scores


def _classifier_scores(
    model: Mufin, bags: torch.Tensor, masks: torch.Tensor, label_arrays: Callable[[Int64Array], ItemArrays],
    labels: EncodedLabels, found: Int64Array,
) -> FloatArray:  # fmt: skip
    """(G, K) scores of the shortlists ``found`` (G, K), whose labels are encoded anew."""
    distinct, inverse = np.unique(np.maximum(found, 0), return_inverse=True)  # padding is scored for nothing
    encoded = encode_items(model.encoder, label_arrays(distinct), None, _LABELS_AT_ONCE, torch.device("cpu"))
    label_bags, label_masks = torch.from_numpy(np.asarray(encoded.bags)), torch.from_numpy(encoded.mask)
    scores = np.zeros(found.shape, dtype=np.float32)
    for row, places in enumerate(inverse.reshape(found.shape)):
        own = torch.from_numpy(places)
        adapted, _ = model.adapt(
            bags[row : row + 1], masks[row : row + 1], label_bags[own][None], label_masks[own][None]
        )
        weights = torch.from_numpy(labels.classifiers[found[row]])
        scores[row] = (torch.nn.functional.normalize(adapted[0], dim=-1) * weights).sum(dim=-1).numpy()
    return scores


def verify_bundle(folder: Path) -> Parity:
    """Check every hash and replay the golden products. Raises BundleError when the folder itself is at fault."""
    return open_predictor(folder, verify="full").replay_golden()


def require_parity(parity: Parity, folder: Path) -> None:
    """Raise BundleError with the table when a stage lies outside its tolerance."""
    if not parity.passed:
        raise BundleError(
            f"{folder}: the bundle does not compute what torch computed:\n{parity.table()}\n"
            "export again; when it stays, report it with the config of the run"
        )
