"""Cross attention, classifier score, fusion and top-k on plain arrays.

Knows no torch, no files and no labels' names: the arithmetic of mufin.md sections 4 and 5 with the
projections folded as performance.md describes (one layer, one head):

    q_i . k_j = ((W_q x_i + b_q) W_k) . l_j + const(i)        -> folded into the product's query
    W_o W_v l_j + W_o b_v + b_o                               -> folded into the label's stored values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mufin.errors import ConfigError
from mufin.inputs import BoolArray, FloatArray, Int64Array


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """How scores become an answer. Travels checkpoint -> manifest; the service has no such setting."""

    shortlist_size: int = 300
    """K, labels handed from the index to reranking."""
    fusion_weight: float = 0.5
    """alpha: score = alpha * classifier + (1 - alpha) * shortlist; chosen on validation."""
    calibration_scale: float = 1.0
    """a of probability = sigmoid(a * score + b), fitted on validation."""
    calibration_offset: float = 0.0
    """b of the same."""

    def __post_init__(self) -> None:
        if self.shortlist_size < 1:
            raise ConfigError(f"shortlist_size is {self.shortlist_size}, needs at least 1")
        if not 0.0 <= self.fusion_weight <= 1.0:
            raise ConfigError(f"fusion_weight is {self.fusion_weight}, must lie in 0..1")

    def to_json(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScoreSpec:
        """The inverse of ``to_json``; an unknown or missing field is an error."""
        known = set(cls.__dataclass_fields__)
        if set(values) != known:
            raise ConfigError(f"ScoreSpec has fields {sorted(known)}, got {sorted(values)}")
        return cls(**values)


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


@dataclass(frozen=True, slots=True)
class LabelRecords:
    """What reranking needs of N labels, gathered from a label store. All float32 but the mask."""

    keys: FloatArray
    """(N, M, D): the label's bag after self-attention"""
    values: FloatArray
    """(N, M, D): W_o W_v bag + W_o b_v + b_o"""
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

    Returns the label-adapted product vectors (N, D), not normalised, and the attention weights (N, S, M).
    """
    queries = bag @ attention.query_matrix + attention.query_bias
    logits = np.matmul(queries, records.keys.transpose(0, 2, 1))
    logits = np.where(records.mask[:, None, :], logits, -np.inf)
    logits -= logits.max(axis=2, keepdims=True)
    weights = np.exp(logits)
    weights /= weights.sum(axis=2, keepdims=True)
    hidden = np.matmul(weights, records.values) + bag
    centred = hidden - hidden.mean(axis=2, keepdims=True)
    variance = np.einsum("nsd,nsd->ns", centred, centred)[..., None] / bag.shape[1]
    normed = centred / np.sqrt(variance + attention.norm_epsilon)
    adapted = normed.mean(axis=1) * attention.norm_weight + attention.norm_bias
    return np.asarray(adapted, dtype=np.float32), np.asarray(weights, dtype=np.float32)


def classifier_scores(attention: CrossAttention, bag: FloatArray, records: LabelRecords) -> FloatArray:
    """s(x, l) = <norm(label-adapted product), w_l> in -1..1 for one product (S, D) and N labels: (N,)."""
    adapted, _ = cross_attend(attention, bag, records)
    return np.asarray(np.einsum("nd,nd->n", l2_normalise(adapted), records.classifiers), dtype=np.float32)


def fuse(spec: ScoreSpec, classifier: FloatArray, shortlist: FloatArray) -> FloatArray:
    """alpha * classifier + (1 - alpha) * shortlist, elementwise."""
    alpha = np.float32(spec.fusion_weight)
    return np.asarray(alpha * classifier + (np.float32(1) - alpha) * shortlist, dtype=np.float32)


def probability(spec: ScoreSpec, scores: FloatArray) -> FloatArray:
    """Calibrated probability of relevance of fused scores, elementwise."""
    z = spec.calibration_scale * scores.astype(np.float64) + spec.calibration_offset
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -60, 60))), dtype=np.float32)


def top_k(scores: FloatArray, labels: Int64Array, k: int) -> Int64Array:
    """Positions of the k best of one row, best first; ties go to the smaller label index (stated rule)."""
    order = np.lexsort((labels, -scores))
    return np.asarray(order[:k], dtype=np.int64)


def pad_bags(bags: Sequence[FloatArray], slots: int) -> tuple[FloatArray, BoolArray]:
    """Bags of different sizes to (B, slots, D) and their mask (B, slots)."""
    dimension = bags[0].shape[1]
    padded = np.zeros((len(bags), slots, dimension), dtype=np.float32)
    mask = np.zeros((len(bags), slots), dtype=np.bool_)
    for row, bag in enumerate(bags):
        padded[row, : len(bag)] = bag
        mask[row, : len(bag)] = True
    return padded, mask
