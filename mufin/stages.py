"""What passes between the stages of one product: its bag, its shortlist, its ranking.

Plain arrays; know nothing of how they are computed (``mufin.predictor``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mufin.evidence import ProductEvidence
from mufin.inputs import FloatArray, Int64Array
from mufin.scoring import Modality
from mufin.title_words import SparseRow


@dataclass(slots=True)
class ProductBag:
    """One product, encoded."""

    slots: FloatArray
    """(S, D): real slots only, after self-attention; images first, title last"""
    embedding: FloatArray
    """(D,) unit length"""
    has_title: bool
    words: SparseRow | None = None
    """Of the title, where the bundle's combination looks at them"""
    sentence: FloatArray | None = None
    """(W,) of the title, in the same case"""

    @property
    def modality(self) -> Modality:
        """What the product came with; its scores are calibrated by that."""
        if not self.has_title:
            return "images"
        return "both" if len(self.slots) > 1 else "title"


@dataclass(slots=True)
class Shortlist:
    """The nearest labels of one product."""

    labels: Int64Array
    """(n,) best first"""
    scores: FloatArray
    """(n,) cosines"""
    evidence: ProductEvidence | None = None
    """What the bundle's combination knows beside the network; labels it speaks for are among ``labels``"""

    def without(self, dropped: Int64Array, size: int) -> Shortlist:
        """The ``size`` best that are not among (m,) ``dropped`` labels, no evidence with them yet."""
        if not len(dropped):
            return Shortlist(self.labels[:size], self.scores[:size])
        kept = np.flatnonzero(~np.isin(self.labels, dropped))[:size]
        return Shortlist(self.labels[kept], self.scores[kept])


@dataclass(slots=True)
class Ranking:
    """The answer to one product, best first; five arrays of one length n."""

    labels: Int64Array
    scores: FloatArray
    """fused; the order, ties by label index"""
    probabilities: FloatArray
    """of the fused score, calibrated for what the product came with"""
    shortlist_scores: FloatArray
    classifier_scores: FloatArray
