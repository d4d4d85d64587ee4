"""Waiting for work at most so long, without a timer where there is nothing to wait for.

A body that came with its head, a cache in this process: most of what a request awaits is there already, and arming a timer
costs more than looking. Knows no requests.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

Out = TypeVar("Out")


async def within(seconds: float, work: Coroutine[Any, Any, Out]) -> Out:
    """The work's result. Raises TimeoutError when it waits, and for longer than that; and what the work raised."""
    try:
        awaited = work.send(None)
    except StopIteration as end:
        result: Out = end.value
        return result
    async with asyncio.timeout(seconds):
        return await _rest(work, awaited)


@types.coroutine
def _rest(work: Coroutine[Any, Any, Out], awaited: Any) -> Generator[Any, Any, Out]:
    """Of work that has run, in the same task, up to where it waits first: for ``awaited``."""
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                awaited = work.throw(error)
            else:
                awaited = work.send(sent)
    except StopIteration as end:
        result: Out = end.value
        return result
