"""Waiting for work at most so long, without a timer where there is nothing to wait for.

A body that came with its head, a cache in this process: most of what a request awaits is there already, and arming a timer
costs more than looking. Knows no requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

Out = TypeVar("Out")


async def within(seconds: float, work: Coroutine[Any, Any, Out]) -> Out:
    """The work's result. Raises TimeoutError when it waits, and for longer than that; and what the work raised."""
    begun = _Begun(work)
    if begun.is_done:
        return await begun
    async with asyncio.timeout(seconds):
        return await begun


class _Begun(Generic[Out]):
    """A coroutine that has run up to where it waits for the first time. To be awaited once, in the same task."""

    def __init__(self, work: Coroutine[Any, Any, Out]) -> None:
        self._work = work
        self._result: list[Out] = []
        self._awaited: Any = None
        self.is_done = False
        """Whether it never had to wait"""
        try:
            self._awaited = work.send(None)
        except StopIteration as end:
            self._result.append(end.value)
            self.is_done = True

    def __await__(self) -> Generator[Any, Any, Out]:
        if self._result:
            return self._result[0]
        try:
            while True:
                try:
                    sent = yield self._awaited
                except BaseException as error:
                    self._awaited = self._work.throw(error)
                else:
                    self._awaited = self._work.send(sent)
        except StopIteration as end:
            result: Out = end.value
            return result
