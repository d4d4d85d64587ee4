"""What is said of a label, passed on to labels like it: those of like titles, those that share training products.

Knows neither who fits it (``mufin.training.related``) nor what the scores mean. A label of few training products is
rarely voted for; the ones beside it are.
"""

from __future__ import annotations

from dataclasses import dataclass

from mufin.inputs import FloatArray, Int64Array

NEIGHBOURS = 10
"""R: labels kept of each, the nearest"""


@dataclass(frozen=True, eq=False)
class LabelNeighbours:
    """R neighbours of each of L labels. Thread-safe."""

    labels: Int64Array
    """(L, R); any where the weight is 0"""
    weights: FloatArray
    """(L, R) 0..1; fewer than R neighbours leave zeros"""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class RelatedLabels:
    """Both kinds of neighbours of the same labels."""

    like: LabelNeighbours
    """By title; a label's weights sum to 1, or to 0 where no title is like its own"""
    companions: LabelNeighbours
    """By training products: the share of the label's that the other is relevant to, too"""
