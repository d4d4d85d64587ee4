"""Connections that only sit there: no whole head after a while, or an answer that nobody reads, and they are closed.

uvicorn limits how long an idle connection is kept between requests, but not how long a head may take: a client that
sends a byte now and then would hold a file handle for ever. Knows connections by what uvicorn's protocols have in common.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Seen:
    connection: Any
    cycle: Any
    waiting: bool
    since: float


class ConnectionWatch:
    """Asked now and then to look at all connections of one server."""

    def __init__(self, head_seconds: float, answer_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``answer_seconds``: longest from a request's head to the last byte its client has taken."""
        self._head_seconds, self._answer_seconds = head_seconds, answer_seconds
        self._clock = clock
        self._seen: dict[int, _Seen] = {}

    def look(self, connections: Iterable[Any]) -> int:
        """Close what sat too long in one state; how many that were."""
        now, closed = self._clock(), 0
        before, self._seen = self._seen, {}
        for connection in list(connections):
            cycle = connection.cycle
            waiting = cycle is None or cycle.response_complete
            if waiting and connection.timeout_keep_alive_task is not None:
                continue  # idle between two requests: uvicorn's own limit holds
            seen = before.get(id(connection))
            # A new request makes a new cycle, and the time starts anew.
            if seen is None or seen.connection is not connection or seen.cycle is not cycle or seen.waiting != waiting:
                seen = _Seen(connection, cycle, waiting, now)
            if now - seen.since > (self._head_seconds if waiting else self._answer_seconds):
                # Not close(): that would wait for a peer that does not read.
                connection.transport.abort()
                closed += 1
            else:
                self._seen[id(connection)] = seen
        return closed
