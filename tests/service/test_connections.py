"""Which connections are closed, and which are left alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.connections import ConnectionWatch


@dataclass
class Cycle:
    """A request and its answer, as uvicorn keeps it."""

    response_complete: bool = False


@dataclass
class Connection:
    """What uvicorn's protocols have in common."""

    cycle: Cycle | None = None
    timeout_keep_alive_task: object | None = None
    aborted: bool = False
    transport: Any = field(init=False)

    def __post_init__(self) -> None:
        self.transport = self

    def abort(self) -> None:
        """What the watch calls."""
        self.aborted = True


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _look(watch: ConnectionWatch, clock: Clock, seconds: float, *connections: Connection) -> list[bool]:
    """Half a second at a time, for so long: who was closed."""
    for _ in range(int(seconds * 2)):
        clock.now += 0.5
        watch.look([own for own in connections if not own.aborted])
    return [own.aborted for own in connections]


def test_a_head_that_does_not_come_closes_the_connection() -> None:
    """The first one, or one after an answer whose first bytes have come; idle between requests is uvicorn's matter."""
    clock = Clock()
    watch = ConnectionWatch(2, 10, clock)
    silent, begun, idle = Connection(), Connection(Cycle(True)), Connection(Cycle(True), object())
    assert _look(watch, clock, 2, silent, begun, idle) == [False, False, False]
    assert _look(watch, clock, 1, silent, begun, idle) == [True, True, False]


def test_an_answer_has_its_own_time() -> None:
    """A request under way is no slow head; one whose answer nobody reads ends in the end."""
    clock = Clock()
    watch = ConnectionWatch(2, 10, clock)
    busy = Connection(Cycle())
    assert _look(watch, clock, 10, busy) == [False]
    assert _look(watch, clock, 1, busy) == [True]


def test_every_request_begins_anew() -> None:
    """A connection that asks often is never closed, nor one that took a closed one's place in memory."""
    clock = Clock()
    watch = ConnectionWatch(2, 3, clock)
    diligent = Connection(Cycle())
    for _ in range(20):
        assert _look(watch, clock, 1.5, diligent) == [False]
        diligent.cycle = Cycle(not diligent.cycle.response_complete if diligent.cycle else True)
    assert watch.look([]) == 0
