"""Ranked labels to the answer that goes over the wire.

Knows no queue and no network; plain values out, ready for orjson (docs/api.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np

from mufin.inputs import FloatArray, Int64Array, normalise_title
from mufin.predictor import LabelStore, Ranking, Shortlist
from mufin.scoring import ScoreSpec

# Of a long ranking: ten that differ are found among the first few.
_DESCRIBED_AT_ONCE = 32
# Of scores and their parts in float32.
_ROUNDING = 1e-5

StageName = Literal["reranked", "shortlist"]


@dataclass(slots=True)
class Ranked:
    """Labels in order, reranked or not."""

    stage: StageName
    labels: Int64Array
    scores: FloatArray
    """fused; of a shortlist, its own scores"""
    shortlist_scores: FloatArray
    classifier_scores: FloatArray | None
    probabilities: FloatArray | None

    @classmethod
    def of_ranking(cls, ranking: Ranking) -> Ranked:
        """All scores are there."""
        return cls(
            "reranked",
            ranking.labels,
            ranking.scores,
            ranking.shortlist_scores,
            ranking.classifier_scores,
            ranking.probabilities,
        )

    @classmethod
    def of_shortlist(cls, shortlist: Shortlist) -> Ranked:
        """The deadline cut reranking."""
        return cls("shortlist", shortlist.labels, shortlist.scores, shortlist.scores, None, None)

    def take(self, positions: Int64Array) -> Ranked:
        """Some of the labels, in the order of ``positions``."""
        return Ranked(
            self.stage,
            self.labels[positions],
            self.scores[positions],
            self.shortlist_scores[positions],
            None if self.classifier_scores is None else self.classifier_scores[positions],
            None if self.probabilities is None else self.probabilities[positions],
        )

    def probable(self, min_probability: float) -> Ranked:
        """Without the labels that are less probable; a shortlist has no probabilities and stays whole."""
        if self.probabilities is None or min_probability <= 0:
            return self
        return self.take(np.flatnonzero(self.probabilities >= min_probability))

    def distinct(self, store: LabelStore, wanted: int | None) -> Ranked:
        """The best of each group of labels with the same words (bid queries); stops at ``wanted`` of them."""
        return self.take(np.fromiter(_first_of_each(store, self.labels, wanted), dtype=np.int64))


def _first_of_each(store: LabelStore, labels: Int64Array, wanted: int | None) -> Iterator[int]:
    seen: set[tuple[str, ...]] = set()
    several = range(0, len(labels), _DESCRIBED_AT_ONCE)
    described = chain.from_iterable(store.describe(labels[start : start + _DESCRIBED_AT_ONCE]) for start in several)
    for position, label in enumerate(described):
        words = tuple(sorted(normalise_title(label.title).casefold().split()))
        if words and words in seen:
            continue
        seen.add(words)
        yield position
        if wanted is not None and len(seen) >= wanted:
            return


@dataclass(slots=True)
class Slots:
    """What the rows of an explanation are."""

    product: tuple[str, ...]
    """"image 0", "image 2", "title" """


def results(
    ranked: Ranked, store: LabelStore, spec: ScoreSpec, slots: Slots | None, attention: Sequence[FloatArray] | None
) -> list[dict[str, Any]]:
    """The answer's results; ``slots`` is given when an explanation is asked for."""
    rows: list[dict[str, Any]] = []
    scores, shortlist_scores = ranked.scores.tolist(), ranked.shortlist_scores.tolist()
    nothing: list[None] = [None] * len(scores)
    classifiers = nothing if ranked.classifier_scores is None else ranked.classifier_scores.tolist()
    probabilities = nothing if ranked.probabilities is None else ranked.probabilities.tolist()
    for row, label in enumerate(store.describe(ranked.labels)):
        classifier = classifiers[row]
        entry: dict[str, Any] = {
            "id": label.id,
            "title": label.title,
            "images": list(label.images),
            "score": scores[row],
            "probability": probabilities[row],
            "shortlist_score": shortlist_scores[row],
            "classifier_score": classifier,
            "label_source": label.source,
            "metadata": dict(label.metadata),
        }
        if slots is not None:
            weights = None if attention is None else attention[row]
            names = [] if weights is None else _label_slots(*store.bag_layout(label.index))
            parts = _parts(scores[row], classifier, shortlist_scores[row], spec.fusion_weight)
            entry["explanation"] = _explanation(slots, names, weights, parts)
        rows.append(entry)
    return rows


def _parts(
    score: float, classifier: float | None, shortlist: float, fusion_weight: float
) -> tuple[float | None, float | None]:
    """What of a score is the classifier's and what the shortlist's; nothing where it is not their weighted sum."""
    if classifier is None:
        return None, shortlist
    parts = fusion_weight * classifier, (1 - fusion_weight) * shortlist
    return parts if abs(sum(parts) - score) <= _ROUNDING else (None, None)


def _explanation(
    slots: Slots, label_slots: list[str], weights: FloatArray | None, parts: tuple[float | None, float | None]
) -> dict[str, Any]:
    classifier_part, shortlist_part = parts
    return {
        "attention": None if weights is None else [[float(weight) for weight in row] for row in weights],
        "product_slots": list(slots.product),
        "label_slots": label_slots,
        "classifier_part": classifier_part,
        "shortlist_part": shortlist_part,
    }


def _label_slots(images: int, has_title: bool) -> list[str]:
    """Images first, the title last, as labels are laid out in a bundle."""
    return [f"image {position}" for position in range(images)] + (["title"] if has_title else [])
