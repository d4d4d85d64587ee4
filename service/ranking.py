"""Vectors to ranked labels: the batched stages of one bundle on the queue, and the choice among the ranked.

Knows no fetching, no cache and no wire format.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.predictor import ProductBag, Ranking, Shortlist
from service.batching import BatchQueue, Stage
from service.bundles import Model

_MASKS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """Which labels a request rules out, and how many it wants."""

    k: int
    product_id: str | None = None
    exclude: tuple[str, ...] = ()
    filters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShortlistJob:
    """One product on its way into the index."""

    image_vectors: FloatArray
    """(I, D)"""
    title_vector: FloatArray | None
    """(D,)"""
    rules: Rules
    title: str = ""
    """As text, for the words that a learned combination looks at"""


@dataclass(frozen=True, slots=True)
class Shortlisted:
    """One product with its nearest labels."""

    bag: ProductBag
    shortlist: Shortlist


@dataclass(frozen=True, slots=True)
class ChoiceJob:
    """Ranked labels from which k are chosen or explained."""

    bag: ProductBag
    labels: Int64Array
    """(n,) best first"""
    scores: FloatArray
    """(n,)"""
    k: int
    diversity: float
    explain: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen labels."""

    positions: Int64Array
    """(k,) into the job's labels, in the order of the answer"""
    attention: Sequence[FloatArray] | None
    """Of each chosen label (S, m), its used slots only; None when not asked for or without cross attention"""


class Ranker:
    """The stages of one bundle."""

    def __init__(self, model: Model, queue: BatchQueue, max_batch: int) -> None:
        # Apart from this object: were they its own methods, it and its stages would hold each other.
        calls = _Calls(model)
        self._queue = queue
        self._shortlist = queue.stage("shortlist", calls.shortlist, max_batch, step=2, bounded=False)
        self._rerank = queue.stage("rerank", calls.rerank, max_batch, step=3, bounded=False)
        self._choose = queue.stage("choose", calls.choose, 1, step=4, bounded=False)

    def work(self) -> dict[Stage[Any, Any], int]:
        """Items that every product brings to the queue."""
        return {self._shortlist: 1, self._rerank: 1}

    async def shortlist(self, job: ShortlistJob) -> Shortlisted:
        """Bag and nearest labels of one product, after its rules."""
        return await self._queue.submit(self._shortlist, job)

    async def rerank(self, found: Shortlisted) -> Ranking:
        """The whole shortlist by the fused score."""
        return await self._queue.submit(self._rerank, found)

    async def choose(self, job: ChoiceJob) -> Choice:
        """k labels, spread by ``diversity``, with their attention weights when asked for."""
        return await self._queue.submit(self._choose, job)


class _Calls:
    """What runs on a worker, many products a call. Thread-safe."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._masks: OrderedDict[str, BoolArray] = OrderedDict()
        self._masks_lock = threading.Lock()

    def shortlist(self, jobs: Sequence[ShortlistJob]) -> list[Shortlisted]:
        bags = self._model.bag(
            [job.image_vectors for job in jobs], [job.title_vector for job in jobs], [job.title for job in jobs]
        )
        groups: dict[str, list[int]] = {}
        for row, job in enumerate(jobs):
            groups.setdefault(json.dumps(job.rules.filters, sort_keys=True), []).append(row)
        found: list[Shortlisted | None] = [None] * len(jobs)
        for key, rows in groups.items():
            shortlists = self._model.shortlist_without(
                [bags[row] for row in rows],
                max(jobs[row].rules.k for row in rows),
                self._mask(key, jobs[rows[0]].rules.filters),
                [self._excluded(jobs[row].rules) for row in rows],
            )
            for row, shortlist in zip(rows, shortlists, strict=True):
                found[row] = Shortlisted(bags[row], shortlist)
        return [own for own in found if own is not None]

    def _mask(self, key: str, filters: Mapping[str, Any]) -> BoolArray | None:
        if not filters:
            return None
        with self._masks_lock:
            mask = self._masks.get(key)
            if mask is not None:
                self._masks.move_to_end(key)
                return mask
        mask = self._model.labels.allowed_by(filters)
        with self._masks_lock:
            self._masks[key] = mask
            if len(self._masks) > _MASKS_KEPT:
                self._masks.popitem(last=False)
        return mask

    def _excluded(self, rules: Rules) -> Int64Array:
        found = (self._model.labels.index_of(label_id) for label_id in rules.exclude)
        named = np.asarray([index for index in found if index is not None], dtype=np.int64)
        if rules.product_id is None:
            return named
        return np.concatenate([named, self._model.labels.excluded(rules.product_id)])

    def rerank(self, found: Sequence[Shortlisted]) -> list[Ranking]:
        scores = self._model.rerank([own.bag for own in found], [own.shortlist for own in found])
        return [
            self._model.fuse(own.bag, own.shortlist, classifier, len(own.shortlist.labels))
            for own, classifier in zip(found, scores, strict=True)
        ]

    def choose(self, jobs: Sequence[ChoiceJob]) -> list[Choice]:
        return [self._choose_one(job) for job in jobs]

    def _choose_one(self, job: ChoiceJob) -> Choice:
        positions = np.arange(min(job.k, len(job.labels)))
        if job.diversity > 0 and len(job.labels):
            embeddings = self._model.labels.embeddings(job.labels)
            positions = diversify(job.scores, embeddings, job.k, job.diversity)
        if not job.explain or not len(positions):
            return Choice(positions, None)
        labels = job.labels[positions]
        weights = self._model.attention_weights(job.bag, labels)
        if weights is None:
            return Choice(positions, None)
        layouts = [self._model.labels.bag_layout(int(label)) for label in labels]
        used = [weight[:, : images + has_title] for weight, (images, has_title) in zip(weights, layouts, strict=True)]
        return Choice(positions, used)


def diversify(scores: FloatArray, embeddings: FloatArray, k: int, diversity: float) -> Int64Array:
    """Positions of k items by maximal marginal relevance (Carbonell and Goldstein 1998).

    scores: (n,); embeddings: (n, D) unit length. Each pick maximises
    (1 - diversity) * score - diversity * (largest cosine to a pick before it); ties go to the better ranked.
    """
    left = np.ones(len(scores), dtype=np.bool_)
    closest = np.zeros(len(scores), dtype=np.float32)
    picks: list[int] = []
    for _ in range(min(k, len(scores))):
        worth = np.where(left, (1 - diversity) * scores - diversity * closest, -np.inf)
        pick = int(np.argmax(worth))
        left[pick] = False
        similarity = embeddings @ embeddings[pick]
        # Before the first pick nothing is close to anything; afterwards cosines may be negative.
        closest = similarity if not picks else np.maximum(closest, similarity)
        picks.append(pick)
    return np.asarray(picks, dtype=np.int64)
