"""Threads that run what they are given: a ThreadPoolExecutor without a future, its locks and its condition for every call.

Those cost a lone request some thirty calls, behind a model call that has left the caches cold. Knows no batches.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

Work = Callable[[], None]

# At the process's end: a call that hangs must not keep it.
_LAST_CALL_SECONDS = 2.0


class Workers:
    """Started when they are needed first; they end with this object, or by ``close``."""

    def __init__(self, most: int, name: str) -> None:
        """``most``: threads at once; ``name``: of each, before its number."""
        self._most, self._name = most, name
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Not a method: a thread, or this, would keep the object and what it is part of.
        weakref.finalize(self, _end, self._queue, self._threads).atexit = False
        _alive.add(self)

    def submit(self, work: Work) -> None:
        """Have it called soon, once; it must not raise. Raises RuntimeError when there is no thread and none can start."""
        if len(self._threads) < self._most:
            self._start_another()
        self._queue.put(work)

    def close(self) -> None:
        """Let running calls end, forget those that have not begun."""
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                break
        _end(self._queue, self._threads)

    def wait_until(self, moment: float) -> None:
        """For calls that run, until time.monotonic() is there."""
        for thread in self._threads:
            thread.join(max(0.0, moment - time.monotonic()))

    def _start_another(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        # A daemon, as the interpreter would wait for any other without end; _last_calls waits for a while.
        thread = threading.Thread(target=_work_on, args=(self._queue,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no further thread is allowed
            if not self._threads:
                raise
            return
        self._threads.append(thread)


def _work_on(queue: SimpleQueue[Work | None]) -> None:
    while (work := queue.get()) is not None:
        work()
        del work  # what it holds must not stay until the next one comes


def _end(queue: SimpleQueue[Work | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        queue.put(None)


_alive: weakref.WeakSet[Workers] = weakref.WeakSet()


@atexit.register
def _last_calls() -> None:
    until, workers = time.monotonic() + _LAST_CALL_SECONDS, list(_alive)
    for own in workers:
        own.close()
    for own in workers:
        own.wait_until(until)
