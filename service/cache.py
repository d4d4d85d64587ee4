"""Embeddings and URL facts by content: the Cache protocol, the in-process cache, single flight, keys.

Knows neither what the bytes mean nor who asks. How it behaves: docs/operations.md, Cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, Literal, Protocol, TypeVar

Out = TypeVar("Out")
More = TypeVar("More")

Kind = Literal["title", "image", "url"]

# What an entry costs beside key and value: dict slot, tuple, two headers; measured on CPython 3.11.
_ENTRY_BYTES = 200


class Cache(Protocol):
    """Bytes by key, for a while. A cache never fails: what it cannot do, it leaves out."""

    async def get_many(self, keys: Sequence[str], seconds: float = math.inf) -> list[bytes | None]:
        """Values in the order of the keys; None where there is none, or it is not here within ``seconds``."""
        ...

    async def put_many(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """Keep values; they may be forgotten earlier."""
        ...

    def put_soon(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """The same without being waited for. What is near is there at once."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


class MemoryCache:
    """In-process cache, bounded in bytes; what was used longest ago goes first."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What the entries cost, overhead included."""
        return self._used_bytes

    async def get_many(self, keys: Sequence[str], seconds: float = math.inf) -> list[bytes | None]:
        """Values in the order of the keys."""
        return [self._get(key) for key in keys]

    async def put_many(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """Keep values, making room."""
        self.put_soon(values, ttl_seconds)

    def put_soon(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """The same: there is nothing to wait for."""
        until = self._clock() + ttl_seconds
        for key, value in values.items():
            self._forget(key)
            if _cost(key, value) <= self._max_bytes:
                self._entries[key] = (value, until)
                self._used_bytes += _cost(key, value)
        while self._used_bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    async def aclose(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._used_bytes = 0

    def _get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= self._clock():
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._used_bytes -= _cost(key, entry[0])


class LayeredCache:
    """A near cache before a far one; what the far one knows is kept near for a while."""

    def __init__(self, near: Cache, far: Cache, near_ttl_seconds: float = 3600.0) -> None:
        self._near = near
        self._far = far
        self._near_ttl_seconds = near_ttl_seconds

    async def get_many(self, keys: Sequence[str], seconds: float = math.inf) -> list[bytes | None]:
        """Values in the order of the keys; one question to the far cache at most."""
        values = await self._near.get_many(keys, seconds)
        missing = [key for key, value in zip(keys, values, strict=True) if value is None]
        if not missing:
            return values
        found = dict(zip(missing, await self._far.get_many(missing, seconds), strict=True))
        known = {key: value for key, value in found.items() if value is not None}
        if known:
            await self._near.put_many(known, self._near_ttl_seconds)
        return [found.get(key) if value is None else value for key, value in zip(keys, values, strict=True)]

    async def put_many(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """Keep in both."""
        await self._near.put_many(values, ttl_seconds)
        await self._far.put_many(values, ttl_seconds)

    def put_soon(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """Near at once, far when it is its turn."""
        self._near.put_soon(values, ttl_seconds)
        self._far.put_soon(values, ttl_seconds)

    async def aclose(self) -> None:
        """Close both."""
        await self._near.aclose()
        await self._far.aclose()


class SingleFlight(Generic[Out]):
    """Concurrent identical work is done once; it goes on while anybody waits for it."""

    def __init__(self) -> None:
        self._flights: dict[str, tuple[asyncio.Future[Out], int]] = {}

    def is_under_way(self, key: str) -> bool:
        """Whether somebody's work for this key has begun and not ended."""
        return key in self._flights

    async def run(self, key: str, work: Callable[[], Awaitable[Out]]) -> Out:
        """The result of ``work``, shared by all who ask for the same key meanwhile."""
        while True:
            flight, waiters = self._flights.get(key, (None, 0))
            if flight is None:
                flight = asyncio.ensure_future(_awaited(work))
            self._flights[key] = (flight, waiters + 1)
            try:
                return await asyncio.shield(flight)
            except asyncio.CancelledError:
                own = asyncio.current_task()
                if not flight.cancelled() or own is None or own.cancelling():
                    raise
                # Whoever led it was cut, we were not: the work is begun anew.
            finally:
                self._leave(key, flight)

    async def lead(self, key: str, work: Awaitable[tuple[Out, More]]) -> tuple[Out, More]:
        """Work that nobody has begun, in the caller's own task, which spares one; others who ask share the first result.

        When the caller is cut, or runs out of time, so is the work, and those who waited for it begin anew.
        """
        flight: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._flights[key] = (flight, 1)
        try:
            found = await work
        except (asyncio.CancelledError, TimeoutError):
            flight.cancel()
            raise
        except BaseException as error:
            flight.set_exception(error)
            raise
        else:
            flight.set_result(found[0])
            return found
        finally:
            self._leave(key, flight)

    def _leave(self, key: str, flight: asyncio.Future[Out]) -> None:
        current, waiters = self._flights.get(key, (None, 0))
        if current is not flight:
            return
        if waiters > 1 and not flight.done():
            self._flights[key] = (flight, waiters - 1)
            return
        del self._flights[key]
        if not flight.done():
            flight.cancel()
        elif not flight.cancelled():
            flight.exception()  # seen: the leader may have been cancelled in the moment it failed


async def _awaited(work: Callable[[], Awaitable[Out]]) -> Out:
    return await work()


def cache_key(encoder_id: str, kind: Kind, *fields: bytes) -> str:
    """mufin:v1:{encoder_id}:{kind}:{hash}. Fields are length-prefixed, so that no two splits of one text meet."""
    digest = hashlib.sha256()
    for part in fields:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return f"mufin:v1:{encoder_id}:{kind}:{digest.hexdigest()}"


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_BYTES
