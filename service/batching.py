"""Single awaits to batched calls: one bounded queue, the worker threads behind it.

Knows no models: a stage is a name, a function from many items to as many results, and a batch size.
A lone item never waits for company: a batch is what waits at the moment a worker is free.
Source: text-embeddings-inference queue.rs.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, TypeVar

from service.errors import NotReady, Shed
from service.workers import Workers

In = TypeVar("In")
Out = TypeVar("Out")

ObserveBatch = Callable[[str, int, float], None]
"""Told of every batch: stage, items, seconds."""

_AVERAGE_KEEPS, _CROWD_KEEPS = 0.9, 0.5
# A lone item of 1 ms that the machine holds up for 300 would make the average 31 ms, and whoever comes then would be refused
# until it has forgotten. Items that really take longer are known for it within some ten batches.
_HELD_UP = 4.0
# Of the time a request allows, what may pass until all accepted before it is done: the rest is for its own work, for the
# spread of the estimate and for the way there and back. Without it, accepted requests come just too late. A long deadline
# needs a smaller share of it for that: 320 of 800 ms may pass, and 3.7 of 5 s.
_WAIT_SHARE, _LONG_WAIT_SHARE, _LONG_WAIT_SECONDS = 0.4, 0.8, 0.32
_LONGEST_BATCH_SECONDS = 0.08
# Requests with less to do suffer from long batches. Where none has come for a while, what the next one may wait once is worth
# a tenth of the encoder's time for pictures, calls of four take 8 % less each than calls of two; and on a slow machine for
# titles, of which 80 ms hold six there: twelve take 4 % less each.
_LONGER_AMONG_LIKE, _LATELY_SECONDS = 2.0, 5.0
_STOPPED = "the service is stopping"
_STEP = attrgetter("step")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[In, Out]):
    item: In
    answer: asyncio.Future[Out]
    number: int
    """In the order of arrival."""
    taken: bool = False


@dataclass(slots=True, eq=False)
class Stage(Generic[In, Out]):
    """One kind of work; made by ``BatchQueue.stage``. The queue holds it only while something waits in it."""

    name: str
    run: Callable[[Sequence[In]], Sequence[Out]]
    """Called on a worker thread with 1..max_batch items; answers in their order."""
    max_batch: int
    step: int
    """How far a request has come when it gets here; later steps go first."""
    bounded: bool
    """Whether items are refused when the queue is full; later steps of an accepted request are not."""
    longest_batch_seconds: float
    """What a batch of slow items may take: it is not interrupted, and what comes after it waits for its end."""
    waiting: deque[_Waiting[In, Out]] = field(default_factory=deque)
    seconds_per_item: float = 0.0
    """Moving average, from a batch's start to its answers; 0 before the first batch."""

    def took(self, seconds: float, items: int) -> None:
        """A batch was answered. One that was held up moves the average by a few batches' worth at the most.

        One that was quick tells as much as its items would, up to a half: what they cost one by one, before a crowd came,
        says little of what they cost together, and waits and batches are reckoned from the average.
        """
        average = self.seconds_per_item
        if not average:
            self.seconds_per_item = seconds / items
            return
        own = min(seconds / items, _HELD_UP * average)
        keeps = max(_CROWD_KEEPS, _AVERAGE_KEEPS**items) if own < average else _AVERAGE_KEEPS
        self.seconds_per_item = keeps * average + (1 - keeps) * own

    def fair_batch(self, among_its_like: bool = False) -> int:
        """As many items as a batch may hold without holding up everybody else for long.

        ``among_its_like``: nobody with less to do has come lately, so a batch may take longer, which saves time for all.
        """
        longest = self.longest_batch_seconds * (_LONGER_AMONG_LIKE if among_its_like else 1.0)
        if self.seconds_per_item * self.max_batch <= longest:
            return self.max_batch
        return max(1, int(longest / self.seconds_per_item))

    def take(self, among_its_like: bool = False) -> list[_Waiting[In, Out]]:
        """Those that came first, at most ``fair_batch()``; they wait no more."""
        if len(self.waiting) == 1:
            return [self.waiting.popleft()]
        return [self.waiting.popleft() for _ in range(min(self.fair_batch(among_its_like), len(self.waiting)))]


class Ticket:
    """The work promised to one accepted request; whatever is not done when it ends is taken back."""

    def __init__(self, work: Mapping[Stage[Any, Any], int], promised: dict[Stage[Any, Any], int]) -> None:
        """``promised``: of all requests; this one's is added to it."""
        # Plain dictionaries: a Counter's own methods cost more than all else here.
        self._left = dict(work)
        self._promised = promised
        for stage, items in self._left.items():
            promised[stage] = promised.get(stage, 0) + items

    def done(self, stage: Stage[Any, Any]) -> None:
        """One item of a stage is done, or not needed after all."""
        left = self._left.get(stage, 0)
        if left > 1:
            self._left[stage] = left - 1
        elif left:
            del self._left[stage]
        if left:
            self._take_back(stage, 1)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        for stage, items in self._left.items():
            self._take_back(stage, items)
        self._left.clear()

    def _take_back(self, stage: Stage[Any, Any], items: int) -> None:
        self._promised[stage] -= items
        if not self._promised[stage]:
            del self._promised[stage]


class BatchQueue:
    """The queue and its workers; lives in one event loop."""

    def __init__(
        self, workers: int, max_waiting_items: int, observe: ObserveBatch | None = None,
        longest_batch_seconds: float = _LONGEST_BATCH_SECONDS,
    ) -> None:  # fmt: skip
        self._workers, self._threads = workers, Workers(workers, "mufin-model")
        self._max_waiting_items = max_waiting_items
        self._observe = observe
        self._longest_batch_seconds = longest_batch_seconds
        self._stages: list[Stage[Any, Any]] = []
        """Those in which something waits."""
        self._promised: dict[Stage[Any, Any], int] = {}
        """Items of accepted requests that are not done, also those that have not come to the queue yet."""
        self._arrivals = 0
        self._running: dict[object, float] = {}
        """When each of the batches began that workers are busy with"""
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting_items = 0
        self._came: dict[float, float] = {}
        """When a request that begins with a step was last taken on, of time.monotonic()"""
        self._stopped = False

    def stage(
        self, name: str, run: Callable[[Sequence[In]], Sequence[Out]], max_batch: int, *,
        step: int = 0, bounded: bool = True,
    ) -> Stage[In, Out]:  # fmt: skip
        """A new kind of work. Stages of a later step go first: what finishes a request before what begins one."""
        return Stage(name, run, max_batch, step, bounded, self._longest_batch_seconds)

    @property
    def waiting_items(self) -> int:
        """Items that no worker has taken yet."""
        return self._waiting_items

    @property
    def longest_running_seconds(self) -> float:
        """Age of the oldest batch a worker is busy with; 0 when all are free."""
        return time.monotonic() - min(self._running.values()) if self._running else 0.0

    def estimated_wait_seconds(self, work: Mapping[Stage[Any, Any], int] | None = None) -> float:
        """How long what is promised or waiting will take, by the moving averages.

        ``work``: of one request; then only what does not go behind it counts. A product whose vectors are known
        passes those that wait for an encoder.
        """
        first = -math.inf if work is None else _first_step(work)
        seconds = 0.0
        for stage in {*self._stages, *self._promised}:
            if stage.step >= first:
                seconds += max(self._promised.get(stage, 0), len(stage.waiting)) * stage.seconds_per_item
        return seconds / self._workers

    def admit(self, work: Mapping[Stage[Any, Any], int], remaining_seconds: float) -> Ticket:
        """Take a request's work on, or refuse it before anything is done for it. ``work``: items of each stage, at least one.

        Raises Shed when its items do not fit the queue, or when what was accepted before would take too much of the
        request's time. What has been accepted counts from here on, wherever it is: a picture that is still being
        fetched will need the worker as surely as one that waits for it.
        """
        wait, items = self.estimated_wait_seconds(work), sum(work.values())
        retry_after = max(1, math.ceil(wait))
        if self._waiting_items and self._waiting_items + items > self._max_waiting_items:
            detail = f"{self._waiting_items} items are waiting, {self._max_waiting_items} are allowed"
            raise Shed("queue_full", detail, retry_after)
        if wait > max(remaining_seconds * _WAIT_SHARE, remaining_seconds * _LONG_WAIT_SHARE - _LONG_WAIT_SECONDS):
            detail = f"the wait is about {wait:.1f} s, the request allows {remaining_seconds:.1f} s"
            raise Shed("wait_too_long", detail, retry_after)
        self._came[_first_step(work)] = time.monotonic()
        return Ticket(work, self._promised)

    async def submit(self, stage: Stage[In, Out], item: In, seconds: float | None = None) -> Out:
        """One item's result. Cancelling the caller takes the item out. Raises Shed, NotReady, what ``run`` raised.

        ``seconds``: TimeoutError when there is none by then; cheaper than asyncio.timeout around this.
        """
        if self._stopped:
            raise NotReady(_STOPPED)
        if stage.bounded and self._waiting_items >= self._max_waiting_items:
            detail = f"{self._waiting_items} items are waiting, {self._max_waiting_items} are allowed"
            raise Shed("queue_full", detail, max(1, math.ceil(self.estimated_wait_seconds())))
        self._arrivals += 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Out] = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _give_up, answer)
        # Not _Waiting[In, Out](...): that costs more than all else here.
        waiting: _Waiting[In, Out] = _Waiting(item, answer, self._arrivals)
        if not stage.waiting:
            self._stages.append(stage)
        stage.waiting.append(waiting)
        self._waiting_items += 1
        self._start_batches()
        try:
            return await answer
        finally:
            if timer is not None:
                timer.cancel()
            if not waiting.taken:
                stage.waiting.remove(waiting)
                self._waiting_items -= 1
                if not stage.waiting:
                    self._stages.remove(stage)

    async def aclose(self, grace_seconds: float = 0.0) -> None:
        """Take no more, let running batches end within the grace, answer whoever is left with NotReady."""
        self._stopped = True
        for stage in self._stages:
            for waiting in stage.waiting:
                if not waiting.answer.done():
                    waiting.answer.set_exception(NotReady(_STOPPED))
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        self._threads.close()

    def _start_batches(self) -> None:
        while len(self._running) < self._workers and not self._stopped:
            if not self._stages:
                return
            stage = self._stages[0] if len(self._stages) == 1 else max(self._stages, key=_urgency)
            taken = stage.take(len(stage.waiting) > 1 and stage.bounded and self._among_its_like(stage))
            if not stage.waiting:
                self._stages.remove(stage)
            self._waiting_items -= len(taken)
            batch = []
            for waiting in taken:
                waiting.taken = True
                if not waiting.answer.done():
                    batch.append(waiting)
            if batch:
                self._start(stage, batch)

    def _among_its_like(self, stage: Stage[Any, Any]) -> bool:
        """Whether no request that begins after this stage has come lately: nobody with less to do waits for its batches."""
        lately = time.monotonic() - _LATELY_SECONDS
        return all(step <= stage.step or came < lately for step, came in self._came.items())

    def _start(self, stage: Stage[In, Out], batch: Sequence[_Waiting[In, Out]]) -> None:
        began, loop, running = time.monotonic(), asyncio.get_running_loop(), object()
        items = [waiting.item for waiting in batch]

        def finish(outcomes: Sequence[Out | Exception]) -> None:
            del self._running[running]
            if not self._running:
                self._idle.set()
            seconds = time.monotonic() - began
            stage.took(seconds, len(batch))
            if self._observe is not None:
                self._observe(stage.name, len(batch), seconds)
            _answer(batch, outcomes)
            self._start_batches()

        def work() -> None:
            outcomes = run_batch(stage.run, items)
            try:
                loop.call_soon_threadsafe(finish, outcomes)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

        try:
            self._threads.submit(work)
        except RuntimeError as error:  # no further thread is allowed: whoever waits must not wait for ever
            for waiting in batch:
                waiting.answer.set_exception(error)
            return
        self._running[running] = began
        self._idle.clear()


def _first_step(work: Mapping[Stage[Any, Any], int]) -> float:
    return min(map(_STEP, work), default=math.inf)


def _urgency(stage: Stage[Any, Any]) -> tuple[int, int]:
    return stage.step, -stage.waiting[0].number


def _give_up(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def run_batch(run: Callable[[Sequence[In]], Sequence[Out]], items: Sequence[In]) -> list[Out | Exception]:
    """A result or an exception for each item: when a batch fails, its items are tried one by one, once."""
    try:
        results = list(run(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(items)} items went in, {len(results)} results came out")
        return [*results]
    except BaseException as error:
        # An exit raised on a worker must end neither the worker nor, passed on, the event loop.
        if len(items) == 1:
            return [error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__} in a model call")]
    return [outcome for item in items for outcome in run_batch(run, [item])]


def _answer(batch: Sequence[_Waiting[In, Out]], outcomes: Sequence[Out | Exception]) -> None:
    """Every waiter gets an answer, whatever became of the batch."""
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(outcome, Exception):
            waiting.answer.set_exception(outcome)
        else:
            waiting.answer.set_result(outcome)
