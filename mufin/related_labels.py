"""What is said of a label, passed on to labels like it: those of like titles, those that share training products.

Knows neither who fits it (``mufin.training.related``) nor what the scores mean. A label of few training products is
rarely voted for; the ones beside it are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mufin.inputs import FloatArray, Int64Array

NEIGHBOURS = 10
"""R: labels kept of each, the nearest"""
_SHARPNESS = 6
"""Power of the titles' similarity: labels of about one meaning count, those that share a word do not."""


@dataclass(frozen=True, eq=False)
class LabelNeighbours:
    """R neighbours of each of L labels. Thread-safe."""

    labels: Int64Array
    """(L, R); any where the weight is 0"""
    weights: FloatArray
    """(L, R) 0..1; fewer than R neighbours leave zeros"""

    def __len__(self) -> int:
        return len(self.labels)

    def shares(self) -> LabelNeighbours:
        """The same with each label's weights divided by their sum."""
        total = np.maximum(self.weights.sum(axis=1, keepdims=True), 1e-9)
        return LabelNeighbours(self.labels, np.asarray(self.weights / total, dtype=np.float32))

    def followed_by(self, more: LabelNeighbours) -> LabelNeighbours:
        """Those of further labels behind these."""
        labels, weights = np.concatenate([self.labels, more.labels]), np.concatenate([self.weights, more.weights])
        return LabelNeighbours(labels, weights)


@dataclass(frozen=True, eq=False)
class RelatedLabels:
    """Both kinds of neighbours of the same labels."""

    like: LabelNeighbours
    """By title; a label's weights sum to 1, or to 0 where no title is like its own"""
    companions: LabelNeighbours
    """By training products: the share of the label's that the other is relevant to, too"""


def by_title(cosines: FloatArray) -> FloatArray:
    """Cosines of titles -> how much what is said of one label is said of the other."""
    return np.asarray(np.maximum(cosines, 0) ** _SHARPNESS, dtype=np.float32)


def nearest_labels(similar: FloatArray, most: int) -> Int64Array:
    """Of (L,) similarities the labels of the ``most`` highest above 0, falling, ties in their order on every machine.

    One of similarity 0 says nothing.
    """
    least = np.partition(similar, len(similar) - most)[len(similar) - most] if most else np.inf
    near = np.flatnonzero((similar >= least) & (similar > 0))
    return np.asarray(near[np.argsort(-similar[near], kind="stable")[:most]], dtype=np.int64)
