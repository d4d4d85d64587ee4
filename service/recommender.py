"""One request, read top to bottom: cache, fetch, prepare, rank, answer.

Knows no HTTP: a validated request and a deadline in, an answer of plain values out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mufin.inputs import FloatArray
from service.answers import Slots
from service.batching import BatchQueue, Ticket
from service.bundles import OpenBundle
from service.cache import Kind
from service.errors import DeadlinePassed, Fault, InvalidRequest, NothingUsable
from service.ranking import Finished, FinishJob, Ranker, Rules, Selection, ShortlistJob
from service.schemas import RecommendRequest
from service.telemetry import Timings
from service.tracing import span
from service.vectors import CacheOutcome, ImageOutcome, Vectors, usable_title

# Of the time that is left, the share that images may use at most when the reserve would take more.
_LEAST_IMAGE_SHARE = 0.5
# Kept for writing the answer once ranking is over.
_ANSWER_SECONDS = 0.01
_DURATIONS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Deadline:
    """When nobody waits any more, on the monotonic clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """From now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.at - time.monotonic())


@dataclass(slots=True)
class Outcome:
    """An answer and what telemetry wants to know of it."""

    answer: dict[str, Any]
    timings: Timings
    image_outcomes: list[str] = field(default_factory=list)
    lookups: list[tuple[Kind, CacheOutcome]] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    title_tokens: tuple[int, int] = (0, 0)
    """(known, unknown) of a title that was encoded for this answer"""


@dataclass(slots=True)
class _Prepared:
    """A product as vectors."""

    images: list[tuple[int, FloatArray]]
    """(position in the request, vector)"""
    title: FloatArray | None
    warnings: list[dict[str, Any]]
    image_outcomes: list[str]
    lookups: list[tuple[Kind, CacheOutcome]]
    title_tokens: tuple[int, int] = (0, 0)

    def slots(self) -> Slots:
        names = [f"image {position}" for position, _ in self.images]
        return Slots((*names, "title") if self.title is not None else tuple(names))


class Recommender:
    """Answers for one bundle; shared by all requests."""

    def __init__(
        self,
        bundle: OpenBundle,
        queue: BatchQueue,
        vectors: Vectors,
        ranker: Ranker,
        *,
        image_reserve_seconds: float,
        distinct_words: bool,
    ) -> None:
        """``distinct_words``: labels with the same words collapse into the best one (bid queries)."""
        self.bundle = bundle
        self.blocked_ids: frozenset[str] | None = None
        """Given to ``block`` last"""
        self._model = bundle.model
        self._queue, self._vectors, self._ranker = queue, vectors, ranker
        self._image_reserve_seconds = image_reserve_seconds
        self._distinct_words = distinct_words
        self._rank_seconds: deque[float] = deque(maxlen=_DURATIONS_KEPT)
        self._rerank_seconds: deque[float] = deque(maxlen=_DURATIONS_KEPT)

    def block(self, label_ids: frozenset[str]) -> int:
        """Nobody gets these labels from now on; returns how many of the ids are labels of this bundle.

        Takes some 20 microseconds an id: not for the event loop.
        """
        found = (self._model.labels.index_of(label_id) for label_id in label_ids)
        labels = np.asarray([index for index in found if index is not None], dtype=np.int64)
        self._ranker.block(labels)
        self.blocked_ids = label_ids
        return len(labels)

    async def recommend(self, request: RecommendRequest, deadline: Deadline) -> Outcome:
        """Answer one product. Raises InvalidRequest, NothingUsable, Shed, NotReady, DeadlinePassed."""
        timings = Timings()
        self._check_filter(request)
        images = request.product.images[: self._model.input_spec.max_images]
        try:
            async with asyncio.timeout(deadline.remaining()):
                title = usable_title(request.product.title)
                with span("cache"):
                    known = await self._vectors.known(title, images)
                work = {**self._vectors.work(title, images, known), **self._ranker.work()}
                with self._queue.admit(work, deadline.remaining()) as ticket:
                    prepared = await self._prepare(request, images, known, ticket, deadline, timings)
                    finished = await self._rank(request, prepared, deadline, timings)
                    return self._answer(request, prepared, finished, timings)
        except TimeoutError as error:
            raise DeadlinePassed("no answer was ready within the deadline") from error

    def _check_filter(self, request: RecommendRequest) -> None:
        """A key that no label has is a typo, and a typo must not answer nothing."""
        keys = self._model.labels.filter_keys if request.filter else ()
        unknown = [key for key in request.filter if key not in keys]
        if unknown:
            known = ", ".join(keys[:20]) or "none"
            faults = [
                Fault("/filter/" + key.replace("~", "~0").replace("/", "~1"), "unknown_key", f"there are: {known}")
                for key in unknown
            ]
            raise InvalidRequest("the filter names keys that are in no label's metadata", faults)

    async def _prepare(
        self,
        request: RecommendRequest,
        images: Sequence[str],
        known: Mapping[str, bytes],
        ticket: Ticket,
        deadline: Deadline,
        timings: Timings,
    ) -> _Prepared:
        """Title and images side by side; what cannot be had becomes a warning."""
        title = usable_title(request.product.title)
        image_tasks = [asyncio.ensure_future(self._vectors.image(url, known)) for url in images]
        for url, image_task in zip(images, image_tasks, strict=True):
            if self._vectors.is_new(url, known):
                image_task.add_done_callback(lambda _: ticket.done(self._vectors.image_stage))
        title_task = asyncio.ensure_future(self._vectors.title(title, known)) if title else None
        try:
            outcomes = await self._await_images(image_tasks, deadline)
            titled = await title_task if title_task is not None else None
        finally:
            for task in (*image_tasks, *([title_task] if title_task is not None else [])):
                task.cancel()
        prepared = _collect(outcomes, timings)
        if titled is not None:
            ticket.done(self._vectors.title_stage)
            prepared.title = titled.vector
            prepared.lookups.append(("title", titled.lookup))
            if titled.lookup == "miss":
                timings.add("encode", titled.seconds)
                prepared.title_tokens = titled.tokens
        surplus = len(request.product.images) - len(images)
        if surplus:
            detail = f"this bundle uses {len(images)} images a product; the last {surplus} were left out"
            prepared.warnings.append({"code": "too_many_images", "image": len(images), "detail": detail})
        if prepared.title is None and not prepared.images:
            raise _nothing_usable(prepared, images)
        return prepared

    async def _await_images(
        self, tasks: Sequence[asyncio.Future[ImageOutcome]], deadline: Deadline
    ) -> list[ImageOutcome | None]:
        """Outcomes in order; None for what is not there when ranking must begin."""
        if not tasks:
            return []
        left = deadline.remaining()
        reserve = max(self._image_reserve_seconds, _percentile_95(self._rank_seconds))
        done, _ = await asyncio.wait(tasks, timeout=max(left - reserve, left * _LEAST_IMAGE_SHARE))
        return [task.result() if task in done else None for task in tasks]

    async def _rank(
        self, request: RecommendRequest, prepared: _Prepared, deadline: Deadline, timings: Timings
    ) -> Finished:
        """Shortlist and rerank; near the deadline the shortlist's own order is the answer."""
        began = time.perf_counter()
        vectors = [vector for _, vector in prepared.images]
        stacked = np.stack(vectors) if vectors else np.zeros((0, self._model.dimension), dtype=np.float32)
        rules = Rules(request.k, request.product.id, request.exclude, request.plain_filter())
        shortlist = ShortlistJob(stacked, prepared.title, rules, usable_title(request.product.title))
        with timings.step("shortlist"), span("shortlist"):
            found = await self._ranker.shortlist(shortlist)
        slots = prepared.slots() if request.explain else None
        selection = Selection(request.k, request.min_probability, request.diversity, self._distinct_words, slots)
        job = FinishJob(found, selection)
        left = deadline.remaining() - _ANSWER_SECONDS
        if left < _percentile_95(self._rerank_seconds):
            # Noted as if it would have fitted, so that a slow spell is forgotten and reranking tried again.
            self._rerank_seconds.append(max(0.0, left))
            return await self._ranker.finish(job)
        try:
            async with asyncio.timeout(left):
                with timings.step("rerank"), span("rerank"):
                    finished = await self._ranker.rerank(job)
        except TimeoutError:
            return await self._ranker.finish(job)
        finally:
            # Slow ones count as well, or one slow spell would never be noticed.
            self._rerank_seconds.append(timings.seconds.get("rerank", left))
        self._rank_seconds.append(time.perf_counter() - began)
        return finished

    def _answer(self, request: RecommendRequest, prepared: _Prepared, finished: Finished, timings: Timings) -> Outcome:
        warnings, degraded = list(prepared.warnings), [w["code"] for w in prepared.warnings]
        if finished.stage == "shortlist":
            degraded.append("shortlist")
            if request.min_probability > 0:
                detail = "probabilities need reranking, which the deadline cut"
                warnings.append({"code": "min_probability_not_applied", "detail": detail})
        used = (["title"] if prepared.title is not None else []) + (["image"] if prepared.images else [])
        answer = {
            "bundle": {"id": self._model.bundle_id, "name": self._model.name},
            "results": finished.results,
            "stage": finished.stage,
            "modalities_used": used,
            "warnings": warnings,
            "timings_ms": timings.milliseconds(),
        }
        return Outcome(answer, timings, prepared.image_outcomes, prepared.lookups, degraded, prepared.title_tokens)


def _collect(outcomes: Sequence[ImageOutcome | None], timings: Timings) -> _Prepared:
    prepared = _Prepared([], None, [], [], [])
    for position, outcome in enumerate(outcomes):
        if outcome is None:
            _warn(prepared, "image_timeout", position, "the image was not there when ranking had to begin")
            continue
        for step, seconds in (outcome.seconds or {}).items():
            timings.add(step, seconds)
        prepared.lookups.extend(outcome.lookups)
        if outcome.vector is not None:
            prepared.images.append((position, outcome.vector))
            prepared.image_outcomes.append("ok")
        elif outcome.error is not None:
            _warn(prepared, outcome.error.code, position, str(outcome.error))
    return prepared


def _warn(prepared: _Prepared, code: str, position: int, detail: str) -> None:
    prepared.warnings.append({"code": code, "image": position, "detail": detail})
    prepared.image_outcomes.append(code)


def _nothing_usable(prepared: _Prepared, images: Sequence[str]) -> NothingUsable:
    faults = [Fault(f"/product/images/{w['image']}", w["code"], w["detail"]) for w in prepared.warnings if "image" in w]
    count = f"{len(images)} image{'s' if len(images) > 1 else ''}"
    return NothingUsable(f"there is no title, and none of the {count} could be used", faults)


def _percentile_95(durations: Sequence[float]) -> float:
    """Of the durations noted last; 0 before there are enough to tell."""
    if len(durations) < 20:
        return 0.0
    ordered = sorted(durations)
    return ordered[int(len(ordered) * 0.95)]
