"""An HTTP request to a recommender and its outcome to an HTTP answer: key, body, deadline, hang-ups, telemetry.

Knows no models; the only place where a request's outcome is recorded, once, when its answer has been sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.begun import within
from service.bundles import Endpoint
from service.errors import (
    ClientGone,
    DeadlinePassed,
    Fault,
    InvalidRequest,
    NothingUsable,
    ServiceError,
    Shed,
    reply_to,
)
from service.parsing import parse, parse_batch, parse_item
from service.parts import Parts
from service.peers import PEER, Peer
from service.problems import problem_values
from service.rate_limit import Rate
from service.recommender import Deadline, Outcome, Recommender
from service.schemas import RecommendRequest
from service.security import ApiKey, Scope, read_body, require_json
from service.telemetry import HEADERS, RECORD, get_logger, is_sampled, log_answer

Out = TypeVar("Out")

_LEAST_COUNTING_SECONDS = 0.02


class Answering:
    """Answers the two endpoints and their batches."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._in_flight = _InFlight(parts.settings.max_requests_in_flight)
        parts.metrics.requests_in_flight.set_function(lambda: self._in_flight.count)

    def check_key(self, request: Request, scope: Scope) -> ApiKey | None:
        """Raises Unauthenticated, Forbidden. Notes the caller's name for the log line."""
        if not self._parts.keys:
            return None
        key = self._parts.keys.check(_header(request, b"authorization"), _header(request, b"x-api-key"), scope)
        if key is not None:
            _log_facts(request)["caller"] = key.name
        return key

    def _rate(self, key: ApiKey | None) -> Rate | None:
        if key is None:
            return None
        settings = self._parts.settings
        per_second = key.per_second if key.per_second is not None else settings.rate_per_second
        return None if per_second is None else Rate(per_second, settings.rate_burst)

    async def _take_one(self, key: ApiKey | None, deadline: Deadline) -> None:
        """One product of the caller's rate, before any work is done for it. Raises RateLimited."""
        rate = self._rate(key)
        if key is not None and rate is not None:
            await self._parts.rate_limiter.take(key.name, rate, _counting_seconds(deadline))

    async def _charge(self, key: ApiKey | None, products: int, deadline: Deadline) -> None:
        """Further products of the caller's rate, of a batch that has begun."""
        rate = self._rate(key)
        if key is not None and rate is not None:
            await self._parts.rate_limiter.charge(key.name, rate, products, _counting_seconds(deadline))

    async def one(self, request: Request, endpoint: Endpoint) -> Response:
        """POST /recommend, POST /bid-queries."""
        settings = self._parts.settings
        deadline = self._deadline(request, settings.deadline_milliseconds)
        with self._in_flight:
            await self._take_one(self.check_key(request, endpoint), deadline)
            recommender = self._parts.recommender(endpoint)
            wanted = parse(RecommendRequest, await self._body(request, deadline))
            outcome = await _until_hung_up(request, recommender.recommend(wanted, deadline))
        request.scope["state"][RECORD] = partial(self._record, endpoint, outcome, request.scope["state"]["request_id"])
        facts = _log_facts(request)
        facts.update(stage=outcome.answer["stage"], results=len(outcome.answer["results"]))
        if outcome.degraded:
            facts["degraded"] = outcome.degraded
        return _json(outcome.answer)

    async def batch(self, request: Request, endpoint: Endpoint) -> Response:
        """POST /recommend/batch, POST /bid-queries/batch: item by item."""
        settings = self._parts.settings
        deadline = self._deadline(request, settings.max_deadline_milliseconds)
        with self._in_flight:
            key = self.check_key(request, endpoint)
            await self._take_one(key, deadline)
            recommender = self._parts.recommender(endpoint)
            items = parse_batch(await self._body(request, deadline), settings.max_batch_products)
            await self._charge(key, len(items) - 1, deadline)
            wanted = [_parsed(item) for item in items]
            images = sum(len(own.product.images) for own in wanted if isinstance(own, RecommendRequest))
            if images > settings.max_batch_images:
                detail = f"{images} images in all items, allowed are {settings.max_batch_images}"
                raise InvalidRequest("the batch has too many images", [Fault("/items", "too_many_images", detail)])
            request_id = request.state.request_id
            own = [
                partial(self._item, recommender, endpoint, each, deadline, request_id, place)
                for place, each in enumerate(wanted)
            ]
            answers = await _until_hung_up(request, _all(own))
        _log_facts(request).update(items=len(answers), failed=sum(own["status"] != 200 for own in answers))
        return _json({"items": answers})

    async def _item(
        self, recommender: Recommender, endpoint: Endpoint, wanted: RecommendRequest | InvalidRequest, deadline: Deadline,
        request_id: str, item: int,
    ) -> dict[str, Any]:  # fmt: skip
        """One item's answer or problem: a bad product never fails its neighbours."""
        try:
            if isinstance(wanted, InvalidRequest):
                raise wanted
            outcome = await recommender.recommend(wanted, deadline)
        except Exception as error:
            if not isinstance(error, ServiceError):
                get_logger().error("defect", request_id=request_id, exc_info=error)
            self.note_refusal(error)
            return {"status": reply_to(error).status, "problem": problem_values(error, request_id)}
        self._record(endpoint, outcome, request_id, item)
        return {"status": 200, "answer": outcome.answer}

    def note_refusal(self, error: Exception) -> None:
        """Count what was shed, and what became of the pictures of a product that nothing is left of."""
        if isinstance(error, Shed):
            self._parts.metrics.shed.add(error.reason)
        if isinstance(error, NothingUsable):
            self._note_parts(error.image_outcomes, error.lookups)

    def _note_parts(self, image_outcomes: Sequence[str], lookups: Sequence[tuple[str, str]]) -> None:
        for image_outcome in image_outcomes:
            self._parts.metrics.image_fetches.add(image_outcome)
        for kind, lookup in lookups:
            self._parts.metrics.cache_requests.add(kind, lookup)

    def _record(self, endpoint: Endpoint, outcome: Outcome, request_id: str, item: int | None = None) -> None:
        metrics = self._parts.metrics
        if is_sampled(request_id, self._parts.settings.event_share):
            log_answer(endpoint, outcome.answer, request_id, item)
        metrics.observe_answer(endpoint, outcome.answer, outcome.title_tokens)
        for step, seconds in outcome.timings.seconds.items():
            metrics.stage_seconds.observe(seconds, step)
        self._note_parts(outcome.image_outcomes, outcome.lookups)
        for reason in outcome.degraded:
            metrics.degraded.add(reason)

    def _deadline(self, request: Request, milliseconds: int) -> Deadline:
        text = _header(request, b"x-request-timeout-ms")
        if text is not None:
            if not text.isascii() or not text.isdigit() or int(text[:10]) == 0:
                detail = "X-Request-Timeout-Ms must be a whole number of milliseconds above 0"
                fault = Fault("", "invalid_header", detail)
                raise InvalidRequest("a header is invalid", [fault])
            milliseconds = min(int(text[:10]), self._parts.settings.max_deadline_milliseconds)
        return Deadline.after(milliseconds / 1000)

    async def _body(self, request: Request, deadline: Deadline) -> bytes:
        require_json(_header(request, b"content-type"), _header(request, b"content-encoding"))
        try:
            most = self._parts.settings.max_body_bytes
            reading = read_body(request.receive, _header(request, b"content-length"), most)
            return await within(deadline.remaining(), reading)
        except TimeoutError as error:
            raise DeadlinePassed("the body did not arrive within the deadline") from error


class _InFlight:
    """Counts what is being answered; ``with`` one request. Raises Shed where there are too many already."""

    def __init__(self, most: int) -> None:
        self._most, self.count = most, 0

    def __enter__(self) -> None:
        if self.count >= self._most:
            raise Shed("too_many_requests", f"{self.count} requests are being answered, {self._most} are allowed")
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


def _counting_seconds(deadline: Deadline) -> float:
    """What asking the shared count of a key's products may take. Callers choose their deadlines, but not who counts."""
    return max(deadline.far_seconds(), _LEAST_COUNTING_SECONDS)


def _header(request: Request, name: bytes) -> str | None:
    value: bytes | None = request.scope["state"][HEADERS].get(name)
    return None if value is None else value.decode("latin-1")


async def _until_hung_up(request: Request, work: Coroutine[Any, Any, Out]) -> Out:
    """The work's result; when nobody waits for it any more it is cancelled. Raises ClientGone."""
    own = asyncio.current_task()
    assert own is not None
    peer: Peer | None = request.scope.get(PEER)
    if peer is None:  # another server than ours
        return await _watched(request, work, own)
    if peer.has_gone():
        work.close()
        raise ClientGone("the client hung up")
    peer.when_gone = own.cancel
    try:
        return await work
    except asyncio.CancelledError:
        if peer.has_gone():
            own.uncancel()
            raise ClientGone("the client hung up") from None
        raise
    finally:
        peer.when_gone = None


async def _watched(request: Request, work: Coroutine[Any, Any, Out], own: asyncio.Task[Any]) -> Out:
    working = True

    def cut(done: asyncio.Future[None]) -> None:
        if working and not done.cancelled():
            own.cancel()

    watcher = asyncio.ensure_future(_hung_up(request))
    watcher.add_done_callback(cut)
    try:
        return await work
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            own.uncancel()
            raise ClientGone("the client hung up") from None
        raise
    finally:
        working = False
        watcher.cancel()


async def _hung_up(request: Request) -> None:
    """Ends when the client does. The body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _all(work: Sequence[Callable[[], Coroutine[Any, Any, Out]]]) -> list[Out]:
    """Nothing is begun before this is: a batch whose client has gone costs nothing."""
    return await asyncio.gather(*(begin() for begin in work))


def _parsed(item: Any) -> RecommendRequest | InvalidRequest:
    try:
        return parse_item(RecommendRequest, item)
    except InvalidRequest as error:
        return error.with_traceback(None)


def _json(values: dict[str, Any]) -> Response:
    # NaN or infinity in metadata would be written as null; anything else unknown is a defect and raises.
    return Response(orjson.dumps(values), media_type="application/json")


def _log_facts(request: Request) -> dict[str, Any]:
    facts: dict[str, Any] = request.scope["state"].setdefault("log", {})
    return facts
