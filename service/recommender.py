"""One request, read top to bottom: cache, fetch, prepare, rank, answer.

Knows no HTTP: a validated request and a deadline in, an answer of plain values out.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mufin.inputs import FloatArray
from service.answers import Slots
from service.batching import BatchQueue, Ticket
from service.begun import within
from service.bundles import OpenBundle
from service.cache import Kind
from service.errors import DeadlinePassed, Fault, InvalidRequest, NothingUsable
from service.ranking import (
    Finished,
    FinishJob,
    Ranker,
    RankJob,
    Rules,
    Selection,
    Shortlisted,
    ShortlistJob,
    TitleRankJob,
)
from service.schemas import RecommendRequest
from service.telemetry import Timings
from service.tracing import past_span, span
from service.vectors import CacheOutcome, ImageOutcome, Known, TitleOutcome, Vectors, usable_title

# Of the time that is left, the share that images may use at most when the reserve would take more.
_LEAST_IMAGE_SHARE = 0.5
# Kept for writing the answer once ranking is over.
_ANSWER_SECONDS = 0.01
# Beyond the deadline, for a shortlist's texts.
_FINISH_SECONDS = 0.1
_DURATIONS_KEPT, _DURATIONS_NEEDED, _DURATIONS_STEP = 256, 20, 5


@dataclass(slots=True)
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

    def far_seconds(self) -> float:
        """What a question to another machine may take that can be done without: a quarter of what is left."""
        return self.remaining() / 4


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
    """(D,)"""
    warnings: list[dict[str, Any]]
    image_outcomes: list[str]
    lookups: list[tuple[Kind, CacheOutcome]]
    title_tokens: tuple[int, int] = (0, 0)
    title_text: str = ""
    """Normalised"""

    def add_title(self, titled: TitleOutcome) -> None:
        self.title = titled.vector
        self.lookups.append(("title", titled.lookup))
        self.title_tokens = titled.tokens

    def stacked_images(self, dimension: int) -> FloatArray:
        """(I, D)"""
        vectors = [vector for _, vector in self.images]
        return np.stack(vectors) if vectors else np.zeros((0, dimension), dtype=np.float32)

    def slots(self, *, titled: bool) -> Slots:
        names = [f"image {position}" for position, _ in self.images]
        return Slots((*names, "title") if titled else tuple(names))


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
        self._rank_seconds = _Durations()
        self._titled_rank_seconds = _Durations()
        """Where no way to a worker is part of it"""

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
        title = usable_title(request.product.title)
        try:
            with span("cache"):
                known = await within(deadline.remaining(), self._vectors.known(title, images, deadline.far_seconds))
            work = self._vectors.work(title, known)
            if self._vectors.may_continue(title, known):
                with self._queue.admit(work, deadline.remaining()):
                    prepared, finished = await self._encode_and_rank(request, title, known, deadline, timings)
                    return self._answer(request, prepared, finished, timings)
            with self._queue.admit({**work, **self._ranker.work()}, deadline.remaining()) as ticket:
                preparing = self._prepare(request, images, title, known, ticket, deadline, timings)
                prepared = await within(deadline.remaining(), preparing)
                finished = await self._rank(request, prepared, deadline, timings)
                return self._answer(request, prepared, finished, timings)
        except TimeoutError as error:
            raise DeadlinePassed("no answer was ready within the deadline") from error

    def _check_filter(self, request: RecommendRequest) -> None:
        """A key that no label has is a typo, and a typo must not answer nothing."""
        if not request.filter:
            return
        keys = self._model.labels.filter_keys
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
        title: str,
        known: Known,
        ticket: Ticket,
        deadline: Deadline,
        timings: Timings,
    ) -> _Prepared:
        """Title and images side by side; what cannot be had becomes a warning."""
        outcomes = list(known.images)
        tasks = {
            place: asyncio.ensure_future(self._vectors.image(url, known))
            for place, url in enumerate(images)
            if outcomes[place] is None
        }
        for task in tasks.values():
            task.add_done_callback(lambda _: ticket.done(self._vectors.image_stage))
        titled = known.title
        if tasks:
            title_task = asyncio.ensure_future(self._vectors.title(title)) if title and titled is None else None
            try:
                for place, outcome in zip(tasks, await self._await_images(list(tasks.values()), deadline), strict=True):
                    outcomes[place] = outcome
                titled = await title_task if title_task is not None else titled
            finally:
                for pending in (*tasks.values(), title_task):
                    if pending is not None:
                        pending.cancel()
        elif title and titled is None:
            titled = await self._vectors.title(title)
        prepared = _collect(request, outcomes, timings)
        prepared.title_text = title
        if titled is not None:
            ticket.done(self._vectors.title_stage)
            prepared.add_title(titled)
            if titled.lookup == "miss":
                timings.add("encode", titled.seconds)
        if prepared.title is None and not prepared.images:
            raise _nothing_usable(prepared, images)
        return prepared

    async def _encode_and_rank(
        self, request: RecommendRequest, title: str, known: Known, deadline: Deadline, timings: Timings
    ) -> tuple[_Prepared, Finished]:
        """Of a product that lacks its title's vector alone: the worker that encodes the title goes on to rank it."""
        prepared = _collect(request, known.images, timings)
        images, until = prepared.stacked_images(self._model.dimension), deadline.at - _ANSWER_SECONDS
        selection = self._selection(request, prepared.slots(titled=True))
        rerank_until = until - self._titled_rank_seconds.percentile_95
        job = TitleRankJob(images, _rules(request), title, selection, rerank_until)
        found: Shortlisted | None = None
        finished: Finished | None = None
        began = time.perf_counter()
        try:
            seconds = max(0.0, until - time.monotonic())
            titled, finished = await self._vectors.title_and(
                title, known.title_key, self._ranker.rank_titled, job, seconds
            )
        except TimeoutError:
            found = job.found
            if found is None or job.vector is None:
                raise
            self._vectors.keep(known.title_key, job.vector)
            titled = TitleOutcome(job.vector, 0.0, "miss")
        finally:
            # As in _rank: what was cut counts as well, and what was not tried as if it would have fitted.
            if job.encoded_at:
                skipped = finished is not None and finished.stage == "shortlist"
                spent = min(time.perf_counter() - job.encoded_at, until - job.encoded_moment if skipped else math.inf)
                self._titled_rank_seconds.note(max(0.0, spent))
        prepared.add_title(titled)
        _note(timings, "encode", began, job.encoded_at, modality="title")
        _note(timings, "shortlist", job.encoded_at, job.found_at)
        if found is not None:
            return prepared, await self._finish(found, selection, deadline)
        assert finished is not None
        if finished.stage == "reranked":
            _note(timings, "rerank", job.found_at, time.perf_counter())
        return prepared, finished

    async def _finish(self, found: Shortlisted, selection: Selection, deadline: Deadline) -> Finished:
        """An answer that is all but there is waited for a little longer, but for no disk that hangs."""
        work = self._ranker.finish(FinishJob(found, selection))
        return await within(deadline.remaining() + _FINISH_SECONDS, work)

    def _selection(self, request: RecommendRequest, slots: Slots) -> Selection:
        asked = slots if request.explain else None
        return Selection(request.k, request.min_probability, request.diversity, self._distinct_words, asked)

    async def _await_images(
        self, tasks: Sequence[asyncio.Future[ImageOutcome]], deadline: Deadline
    ) -> list[ImageOutcome | None]:
        """Outcomes in order; None for what is not there when ranking must begin."""
        if not tasks:
            return []
        left = deadline.remaining()
        reserve = max(self._image_reserve_seconds, self._rank_seconds.percentile_95)
        done, _ = await asyncio.wait(tasks, timeout=max(left - reserve, left * _LEAST_IMAGE_SHARE))
        return [task.result() if task in done else None for task in tasks]

    async def _rank(
        self, request: RecommendRequest, prepared: _Prepared, deadline: Deadline, timings: Timings
    ) -> Finished:
        """Shortlist and rerank; near the deadline the shortlist's own order is the answer."""
        began = time.perf_counter()
        stacked = prepared.stacked_images(self._model.dimension)
        product = ShortlistJob(stacked, prepared.title, _rules(request), prepared.title_text)
        selection = self._selection(request, prepared.slots(titled=prepared.title is not None))
        left = deadline.remaining() - _ANSWER_SECONDS
        if left < self._rank_seconds.percentile_95:
            # Noted as if it would have fitted, so that a slow spell is forgotten and reranking tried again.
            self._rank_seconds.note(max(0.0, left))
            with timings.step("shortlist"), span("shortlist"):
                found = await self._ranker.shortlist(product, deadline.remaining())
            return await self._finish(found, selection, deadline)
        job = RankJob(product, selection)
        try:
            finished = await self._ranker.rank(job, left)
        except TimeoutError:
            if job.found is None:
                raise
            _note(timings, "shortlist", began, job.found_at)
            return await self._finish(job.found, selection, deadline)
        finally:
            # Slow ones count as well, or one slow spell would never be noticed.
            self._rank_seconds.note(time.perf_counter() - began)
        _note(timings, "shortlist", began, job.found_at)
        _note(timings, "rerank", job.found_at, time.perf_counter())
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


def _rules(request: RecommendRequest) -> Rules:
    return Rules(request.k, request.product.id, request.exclude, request.plain_filter())


def _collect(request: RecommendRequest, outcomes: Sequence[ImageOutcome | None], timings: Timings) -> _Prepared:
    """What became of the images that are used; those that are not are a warning, too."""
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
    surplus = len(request.product.images) - len(outcomes)
    if surplus:
        detail = f"this bundle uses {len(outcomes)} images a product; the last {surplus} were left out"
        prepared.warnings.append({"code": "too_many_images", "image": len(outcomes), "detail": detail})
    return prepared


def _warn(prepared: _Prepared, code: str, position: int, detail: str) -> None:
    prepared.warnings.append({"code": code, "image": position, "detail": detail})
    prepared.image_outcomes.append(code)


def _nothing_usable(prepared: _Prepared, images: Sequence[str]) -> NothingUsable:
    faults = [Fault(f"/product/images/{w['image']}", w["code"], w["detail"]) for w in prepared.warnings if "image" in w]
    count = f"{len(images)} image{'s' if len(images) > 1 else ''}"
    detail = f"there is no title, and none of the {count} could be used"
    return NothingUsable(detail, faults, prepared.image_outcomes, prepared.lookups)


def _note(timings: Timings, step: str, began: float, ended: float, **attributes: str) -> None:
    timings.add(step, ended - began)
    past_span(step, began, ended, **attributes)


class _Durations:
    """Seconds that something took the last times."""

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=_DURATIONS_KEPT)
        self._noted = 0
        self.percentile_95 = 0.0
        """0 before there are enough to tell; looked up anew now and then, for sorting costs"""

    def note(self, seconds: float) -> None:
        """One more."""
        self._kept.append(seconds)
        self._noted += 1
        if self._noted >= _DURATIONS_NEEDED and self._noted % _DURATIONS_STEP == 0:
            self.percentile_95 = sorted(self._kept)[int(len(self._kept) * 0.95)]
