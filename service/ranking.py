"""Vectors to results: the batched stages of one bundle on the queue, and the choice among the ranked.

Knows no fetching, no cache and no wire format.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.predictor import LabelStore, ProductBag, Shortlist
from service.answers import Ranked, Slots, StageName, results
from service.batching import BatchQueue, Stage
from service.bundles import Model

_MASKS_KEPT = 64


@dataclass(slots=True)
class Rules:
    """Which labels a request rules out, and how many it wants."""

    k: int
    product_id: str | None = None
    exclude: tuple[str, ...] = ()
    filters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ShortlistJob:
    """One product on its way into the index."""

    image_vectors: FloatArray
    """(I, D)"""
    title_vector: FloatArray | None
    """(D,)"""
    rules: Rules
    title: str = ""
    """As text, for the words that a learned combination looks at"""


@dataclass(slots=True)
class Shortlisted:
    """One product with its nearest labels."""

    bag: ProductBag
    shortlist: Shortlist


@dataclass(slots=True)
class Selection:
    """What a request wants of its ranked labels."""

    k: int
    min_probability: float = 0.0
    diversity: float = 0.0
    distinct_words: bool = False
    """Of labels with the same words the best one only."""
    slots: Slots | None = None
    """Names of the product's slots, when an explanation is asked for."""

    @property
    def is_cut(self) -> bool:
        """Whether it takes the k best and looks at no others."""
        return self.min_probability <= 0 and self.diversity <= 0 and not self.distinct_words


@dataclass(slots=True)
class FinishJob:
    """One product's shortlist on its way into the answer."""

    found: Shortlisted
    selection: Selection


@dataclass(slots=True)
class RankJob:
    """One product on its way through index and reranking, which are one call: each way to a worker and back costs."""

    product: ShortlistJob
    selection: Selection
    found: Shortlisted | None = None
    """Set on the worker as soon as it is known: the answer's substance when reranking is cut."""
    found_at: float = 0.0
    """Of time.perf_counter()"""


@dataclass(slots=True)
class TitleRankJob:
    """One product whose title is being encoded, and which the same worker then ranks."""

    image_vectors: FloatArray
    """(I, D)"""
    rules: Rules
    title: str
    selection: Selection
    rerank_until: float
    """Of time.monotonic(): later than that there is time for the shortlist alone"""
    vector: FloatArray | None = None
    """The title's, set on the worker as soon as it is there, as all that follows is"""
    encoded_at: float = 0.0
    """Of time.perf_counter()"""
    encoded_moment: float = 0.0
    """Of time.monotonic()"""
    found: Shortlisted | None = None
    found_at: float = 0.0
    """Of time.perf_counter()"""

    def product(self) -> ShortlistJob:
        """Once the title is encoded."""
        return ShortlistJob(self.image_vectors, self.vector, self.rules, self.title)


@dataclass(slots=True)
class Finished:
    """What the answer says."""

    stage: StageName
    results: list[dict[str, Any]]


class Ranker:
    """The stages of one bundle."""

    def __init__(self, model: Model, queue: BatchQueue, max_batch: int) -> None:
        # Apart from this object: were they its own methods, it and its stages would hold each other.
        self._calls = calls = _Calls(model)
        self._queue = queue
        self.rank_titled = partial(_rank_titled, calls)
        """A ``Sequel`` of the title encoder for TitleRankJobs, to Finished: as many at once as were encoded together"""
        self._rank = queue.stage("rank", calls.rank, max_batch, step=2, bounded=False)
        self._shortlist = queue.stage("shortlist", calls.shortlist, max_batch, step=3, bounded=False)

    def work(self) -> dict[Stage[Any, Any], int]:
        """Items that every product brings to the queue."""
        return {self._rank: 1}

    def block(self, labels: Int64Array) -> None:
        """Labels that nobody gets from now on, whatever was blocked before."""
        self._calls.block(labels)

    async def rank(self, job: RankJob, seconds: float) -> Finished:
        """The results by the fused score; ``job.found`` is there before they are. Raises TimeoutError after ``seconds``."""
        return await self._queue.submit(self._rank, job, seconds)

    async def shortlist(self, job: ShortlistJob, seconds: float) -> Shortlisted:
        """Bag and nearest labels of one product, after its rules, where there is no time for more. Raises TimeoutError."""
        return await self._queue.submit(self._shortlist, job, seconds)

    async def finish(self, job: FinishJob) -> Finished:
        """The results by the shortlist's own score: there is no time for more, nor for waiting until a worker is free."""
        return await asyncio.to_thread(self._calls.finish, job)


def _rank_titled(calls: _Calls, jobs: Sequence[TitleRankJob], vectors: Sequence[FloatArray]) -> list[Finished]:
    now, moment = time.perf_counter(), time.monotonic()
    for job, vector in zip(jobs, vectors, strict=True):
        job.vector, job.encoded_at, job.encoded_moment = vector, now, moment
    finished: dict[int, Finished] = {}
    late = [row for row, job in enumerate(jobs) if moment > job.rerank_until]
    timely = [row for row, job in enumerate(jobs) if moment <= job.rerank_until]
    for rows, call in ((late, calls.shortlist_titled), (timely, calls.rank_titled)):
        if rows:
            finished.update(zip(rows, call([jobs[row] for row in rows]), strict=True))
    return [finished[row] for row in range(len(jobs))]


class _Allowed:
    """Which labels filters let through, a block list taken out. Thread-safe."""

    def __init__(self, labels: LabelStore, blocked: Int64Array | None = None) -> None:
        self._labels = labels
        self._kept: BoolArray | None = None
        """None: nothing is blocked"""
        if blocked is not None and len(blocked):
            self._kept = np.ones(labels.size, dtype=np.bool_)
            self._kept[blocked] = False
        self._masks: OrderedDict[str, BoolArray] = OrderedDict()
        self._lock = threading.Lock()

    def mask(self, key: str, filters: Mapping[str, Any]) -> BoolArray | None:
        """(L,) bool; ``key``: the filters' spelling. None: all labels."""
        if not filters:
            return self._kept
        with self._lock:
            mask = self._masks.get(key)
            if mask is not None:
                self._masks.move_to_end(key)
                return mask
        mask = self._labels.allowed_by(filters)
        if self._kept is not None:
            mask = mask & self._kept
        with self._lock:
            self._masks[key] = mask
            if len(self._masks) > _MASKS_KEPT:
                self._masks.popitem(last=False)
        return mask


class _Calls:
    """What runs on a worker, many products a call. Thread-safe."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._allowed = _Allowed(model.labels)

    def shortlist(self, jobs: Sequence[ShortlistJob]) -> list[Shortlisted]:
        allowed = self._allowed  # of one moment: a new block list replaces it whole
        bags = self._model.bag(
            [job.image_vectors for job in jobs], [job.title_vector for job in jobs], [job.title for job in jobs]
        )
        groups: dict[str, list[int]] = {}
        for row, job in enumerate(jobs):
            filters = job.rules.filters
            groups.setdefault(json.dumps(filters, sort_keys=True) if filters else "", []).append(row)
        found: list[Shortlisted | None] = [None] * len(jobs)
        for key, rows in groups.items():
            shortlists = self._model.shortlist_without(
                [bags[row] for row in rows],
                [jobs[row].rules.k for row in rows],
                allowed.mask(key, jobs[rows[0]].rules.filters),
                [self._excluded(jobs[row].rules) for row in rows],
            )
            for row, shortlist in zip(rows, shortlists, strict=True):
                found[row] = Shortlisted(bags[row], shortlist)
        return [own for own in found if own is not None]

    def block(self, labels: Int64Array) -> None:
        self._allowed = _Allowed(self._model.labels, labels)

    def _excluded(self, rules: Rules) -> Int64Array:
        found = (self._model.labels.index_of(label_id) for label_id in rules.exclude)
        named = np.asarray([index for index in found if index is not None], dtype=np.int64)
        if rules.product_id is None:
            return named
        return np.concatenate([named, self._model.labels.excluded(rules.product_id)])

    def shortlist_titled(self, jobs: Sequence[TitleRankJob]) -> list[Finished]:
        founds = self._find([job.product() for job in jobs], jobs)
        return [self.finish(FinishJob(own, job.selection)) for own, job in zip(founds, jobs, strict=True)]

    def rank_titled(self, jobs: Sequence[TitleRankJob]) -> list[Finished]:
        return self._ranked([job.product() for job in jobs], jobs)

    def rank(self, jobs: Sequence[RankJob]) -> list[Finished]:
        return self._ranked([job.product for job in jobs], jobs)

    def _find(self, products: Sequence[ShortlistJob], jobs: Sequence[RankJob | TitleRankJob]) -> list[Shortlisted]:
        founds = self.shortlist(products)
        now = time.perf_counter()
        for job, found in zip(jobs, founds, strict=True):
            job.found, job.found_at = found, now
        return founds

    def _ranked(self, products: Sequence[ShortlistJob], jobs: Sequence[RankJob | TitleRankJob]) -> list[Finished]:
        founds = self._find(products, jobs)
        return self._reranked_all([FinishJob(own, job.selection) for own, job in zip(founds, jobs, strict=True)])

    def _reranked_all(self, jobs: Sequence[FinishJob]) -> list[Finished]:
        founds = [job.found for job in jobs]
        scores = self._model.rerank([own.bag for own in founds], [own.shortlist for own in founds])
        return [self._reranked(job, classifier) for job, classifier in zip(jobs, scores, strict=True)]

    def finish(self, job: FinishJob) -> Finished:
        return self._select(job, Ranked.of_shortlist(job.found.shortlist))

    def _reranked(self, job: FinishJob, classifier: FloatArray) -> Finished:
        found, selection = job.found, job.selection
        wanted = selection.k if selection.is_cut else len(found.shortlist.labels)
        ranking = self._model.fuse(found.bag, found.shortlist, classifier, wanted)
        return self._select(job, Ranked.of_ranking(ranking))

    def _select(self, job: FinishJob, ranked: Ranked) -> Finished:
        """Business rules on the whole ranking, then the cut to k, then the labels' texts.

        Not on the event loop: texts are read from a mapped file, whose pages may have to come from disk.
        """
        store, selection = self._model.labels, job.selection
        ranked = ranked.probable(selection.min_probability)
        if selection.distinct_words:
            ranked = ranked.distinct(store, None if selection.diversity > 0 else selection.k)
        positions = np.arange(min(selection.k, len(ranked.labels)))
        if selection.diversity > 0 and len(ranked.labels):
            embeddings = store.embeddings(ranked.labels)
            unit = self._model.score_unit if ranked.stage == "reranked" else 1.0  # a shortlist's scores are cosines
            positions = diversify(ranked.scores / unit, embeddings, selection.k, selection.diversity)
        if selection.diversity > 0 or len(positions) < len(ranked.labels):
            ranked = ranked.take(positions)
        attention = self._attention(job, ranked.labels) if selection.slots is not None else None
        return Finished(ranked.stage, results(ranked, store, self._model.score_spec, selection.slots, attention))

    def _attention(self, job: FinishJob, labels: Int64Array) -> Sequence[FloatArray] | None:
        """Of each label (S, m), its used slots only; None without cross-attention."""
        weights = self._model.attention_weights(job.found.bag, labels) if len(labels) else None
        if weights is None:
            return None
        layouts = [self._model.labels.bag_layout(int(label)) for label in labels]
        return [weight[:, : images + has_title] for weight, (images, has_title) in zip(weights, layouts, strict=True)]


def diversify(scores: FloatArray, embeddings: FloatArray, k: int, diversity: float) -> Int64Array:
    """Positions of k items by maximal marginal scores (Carbonell and Goldstein 1998).

    scores: (n,) on the scale of cosines; embeddings: (n, D) unit length. Each pick maximises
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
