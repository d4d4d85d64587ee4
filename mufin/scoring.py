"""Cross attention, classifier score, fusion and top-k on plain arrays.

Knows no torch, no files and no labels' names: the arithmetic of docs/network.md with the
projections folded, of one layer and one head:

    q_i . k_j = ((W_q x_i + b_q) W_k) . l_j + const(i)        -> folded into the product's query
    W_o W_v l_j + W_o b_v + b_o                               -> folded into the label's stored values

Several heads share the stored keys, each with a query of its own; their values are weighted slice by slice, so W_o
comes after them, label by label: right, and several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mufin.errors import ConfigError
from mufin.inputs import BoolArray, FloatArray, Int64Array

SAME_ITEM, SAME_ITEM_INT8 = 0.999, 0.98
"""Cosine from which a product and a label are taken for one item. Labels are encoded in fp32; int8 may take the same
item's cosine with itself to .99 (``Tolerances.int8_cosine``), and does where sums are of 7 bits."""

Modality = Literal["both", "title", "images"]
"""What a product comes with: title and images, a title alone, images alone."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = sigmoid(scale * score + offset), fitted on validation."""

    scale: float = 1.0
    offset: float = 0.0

    def probability(self, scores: FloatArray) -> FloatArray:
        """Probability of relevance of fused scores, elementwise."""
        z = self.scale * scores.astype(np.float64) + self.offset
        z = np.minimum(np.maximum(z, -60), 60)  # np.clip takes half as long again
        return np.asarray(1.0 / (1.0 + np.exp(-z)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """How scores become an answer. Travels checkpoint -> manifest; the service has no such setting."""

    shortlist_size: int = 300
    """K, labels handed from the index to reranking."""
    fusion_weight: float = 0.5
    """alpha: score = alpha * classifier + (1 - alpha) * shortlist; chosen on validation."""
    calibration_both: Calibration = Calibration()
    """Of products with title and images; a score means something else where one of them is missing."""
    calibration_title: Calibration = Calibration()
    """Of products with a title alone."""
    calibration_images: Calibration = Calibration()
    """Of products with images alone."""
    calibration_untrained_both: Calibration = Calibration()
    """The same three of labels whose classifier is their embedding: what they score means something else again."""
    calibration_untrained_title: Calibration = Calibration()
    calibration_untrained_images: Calibration = Calibration()

    def __post_init__(self) -> None:
        if self.shortlist_size < 1:
            raise ConfigError(f"shortlist_size is {self.shortlist_size}, needs at least 1")
        if not 0.0 <= self.fusion_weight <= 1.0:
            raise ConfigError(f"fusion_weight is {self.fusion_weight}, must lie in 0..1")

    def calibration(self, modality: Modality) -> Calibration:
        """The one of products that come with ``modality``."""
        by: dict[Modality, Calibration] = {
            "both": self.calibration_both, "title": self.calibration_title, "images": self.calibration_images
        }  # fmt: skip
        return by[modality]

    def untrained_calibration(self, modality: Modality) -> Calibration:
        """That of labels without training."""
        by: dict[Modality, Calibration] = {
            "both": self.calibration_untrained_both, "title": self.calibration_untrained_title,
            "images": self.calibration_untrained_images,
        }  # fmt: skip
        return by[modality]

    @property
    def untrained_stretch(self) -> float:
        """By how much ``as_trained`` stretches differences of untrained labels' scores, at the most; 1 at least, as those
        of trained labels stay."""
        modalities: tuple[Modality, ...] = ("both", "title", "images")
        pairs = [(self.calibration(own).scale, self.untrained_calibration(own).scale) for own in modalities]
        return max([1.0, *(own / trained for trained, own in pairs if trained > 0)])

    def to_json(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScoreSpec:
        """The inverse of ``to_json``; an unknown or missing field is an error."""
        known = set(cls.__dataclass_fields__)
        if set(values) != known:
            raise ConfigError(
                f"ScoreSpec has fields {sorted(known)}, got {sorted(values)}: train into a new folder, then export"
            )
        parts: dict[str, Any] = {
            name: Calibration(**value) if name.startswith("calibration_") else value for name, value in values.items()
        }
        return cls(**parts)


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """The product's side of cross attention, folded. All float32."""

    query_matrix: FloatArray
    """(D, D): x @ query_matrix + query_bias = ((W_q x + b_q) W_k) / sqrt(D)"""
    query_bias: FloatArray
    """(D,)"""
    norm_weight: FloatArray
    """(D,) of the LayerNorm behind the attention"""
    norm_bias: FloatArray
    """(D,)"""
    norm_epsilon: float = 1e-5
    heads: int = 1
    """H; with more than one, ``query_matrix`` is (H, D, D), ``query_bias`` (H, D), and the last two are there."""
    legacy_heads: bool = False
    """Merge heads as the public code does, without the permute (docs/network.md). Means something for H > 1 only."""
    output_matrix: FloatArray | None = None
    """(D, D): W_o transposed; None with one head, whose values hold it"""
    output_bias: FloatArray | None = None
    """(D,)"""


@dataclass(frozen=True, slots=True)
class LabelFold:
    """The label's side: how its bag becomes the values that its record holds. All float32."""

    value_matrix: FloatArray
    """(D, D): bag @ value_matrix + value_bias = W_o (W_v bag + b_v) + b_o; W_v bag + b_v with several heads"""
    value_bias: FloatArray
    """(D,)"""

    def values(self, bag: FloatArray) -> FloatArray:
        """(..., D) -> (..., D)"""
        return np.asarray(bag @ self.value_matrix + self.value_bias, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class LabelRecords:
    """What reranking needs of N labels, gathered from a label store. All float32 but the mask."""

    keys: FloatArray
    """(N, M, D): the label's bag after self-attention"""
    values: FloatArray
    """(N, M, D): W_o W_v bag + W_o b_v + b_o, or W_v bag + b_v with several heads"""
    mask: BoolArray
    """(N, M): which slots hold something"""
    classifiers: FloatArray
    """(N, D): final classifier vectors w_l, unit length"""


def l2_normalise(vectors: FloatArray) -> FloatArray:
    """Unit length along the last axis; zero stays zero."""
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def cross_attend(attention: CrossAttention, bag: FloatArray, records: LabelRecords) -> tuple[FloatArray, FloatArray]:
    """One product's bag (S, D), real slots only, against N labels.

    Returns the label-adapted product vectors (N, D), not normalised, and the attention weights (N, S, M), averaged
    over heads.
    """
    if attention.heads == 1:
        queries = bag @ attention.query_matrix + attention.query_bias
        weights = _masked_softmax(np.matmul(queries, records.keys.transpose(0, 2, 1)), records.mask[:, None, :])
        hidden = np.matmul(weights, records.values) + bag
    else:
        by_head = _head_weights(attention, bag, records)
        hidden = _merge_heads(attention, by_head, records.values) + bag
        weights = by_head.mean(axis=1)
    centred = hidden - hidden.mean(axis=2, keepdims=True)
    variance = np.einsum("nsd,nsd->ns", centred, centred)[..., None] / bag.shape[1]
    normed = centred / np.sqrt(variance + attention.norm_epsilon)
    adapted = normed.mean(axis=1) * attention.norm_weight + attention.norm_bias
    return np.asarray(adapted, dtype=np.float32), np.asarray(weights, dtype=np.float32)


def _masked_softmax(logits: FloatArray, mask: BoolArray) -> FloatArray:
    """Over the last axis, 0 where ``mask`` is false."""
    logits = np.where(mask, logits, np.float32(-np.inf))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def _head_weights(attention: CrossAttention, bag: FloatArray, records: LabelRecords) -> FloatArray:
    """(N, H, S, M): every head asks the same stored keys with queries of its own."""
    queries = np.matmul(bag, attention.query_matrix) + attention.query_bias[:, None, :]
    logits = np.matmul(queries[None], records.keys.transpose(0, 2, 1)[:, None])
    return _masked_softmax(logits, records.mask[:, None, None, :])


def _merge_heads(attention: CrossAttention, weights: FloatArray, values: FloatArray) -> FloatArray:
    """(N, H, S, M) weights and (N, M, D) values -> (N, S, D): each head its own slice of the values, then W_o."""
    assert attention.output_matrix is not None and attention.output_bias is not None
    count, heads, size, _ = weights.shape
    split = values.reshape(count, values.shape[1], heads, -1).transpose(0, 2, 1, 3)
    attended = np.matmul(weights, split)
    merged = attended if attention.legacy_heads else attended.transpose(0, 2, 1, 3)
    flat = merged.reshape(count, size, values.shape[2])
    return np.asarray(flat @ attention.output_matrix + attention.output_bias, dtype=np.float32)


def classifier_scores(attention: CrossAttention, bag: FloatArray, records: LabelRecords) -> FloatArray:
    """s(x, l) = <norm(label-adapted product), w_l> in -1..1 for one product (S, D) and N labels: (N,)."""
    adapted, _ = cross_attend(attention, bag, records)
    return np.asarray(np.einsum("nd,nd->n", l2_normalise(adapted), records.classifiers), dtype=np.float32)


def fuse(spec: ScoreSpec, classifier: FloatArray, shortlist: FloatArray) -> FloatArray:
    """alpha * classifier + (1 - alpha) * shortlist, elementwise."""
    alpha = np.float32(spec.fusion_weight)
    return np.asarray(alpha * classifier + (np.float32(1) - alpha) * shortlist, dtype=np.float32)


def as_trained(
    spec: ScoreSpec, modality: Modality, fused: FloatArray, cosines: FloatArray, untrained: BoolArray,
    same_item: float = SAME_ITEM,
) -> FloatArray:  # fmt: skip
    """(N,) fused scores, those of ``untrained`` labels moved to where a trained label of the same probability lies.

    Without this a label whose classifier is its embedding beats nearly every trained one, whatever it is. A label that
    is the product itself, to judge by the ``cosines`` (``same_item`` or more), keeps its score: about that the fit on
    other products says nothing. Where the trained labels' curve is flat no score has that probability, and all stay as they are.
    """
    trained, own = spec.calibration(modality), spec.untrained_calibration(modality)
    if trained.scale <= 0:
        return fused
    moved = (own.scale * fused.astype(np.float64) + own.offset - trained.offset) / trained.scale
    return np.asarray(np.where(untrained & (cosines < same_item), moved, fused), dtype=np.float32)


def top_k(scores: FloatArray, labels: Int64Array, k: int) -> Int64Array:
    """Positions of the k best of one row, best first; ties go to the smaller label index (stated rule)."""
    lost = -scores
    if not 0 < k < len(lost):
        return np.asarray(np.lexsort((labels, lost))[:k], dtype=np.int64)
    # Those that are not worse than the k-th: to sort ten of 300 takes a quarter of the time.
    parted = lost.copy()
    parted.partition(k - 1)
    (near,) = (~(lost > parted[k - 1])).nonzero()
    return np.asarray(near[np.lexsort((labels[near], lost[near]))[:k]], dtype=np.int64)


def pad_bags(bags: Sequence[FloatArray], slots: int) -> tuple[FloatArray, BoolArray]:
    """Bags of different sizes to (B, slots, D) and their mask (B, slots)."""
    dimension = bags[0].shape[1]
    padded = np.zeros((len(bags), slots, dimension), dtype=np.float32)
    mask = np.zeros((len(bags), slots), dtype=np.bool_)
    for row, bag in enumerate(bags):
        padded[row, : len(bag)] = bag
        mask[row, : len(bag)] = True
    return padded, mask
