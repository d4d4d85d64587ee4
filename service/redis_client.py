"""A Redis that may be down, slow or wrong without anybody noticing: short timeout, breaker, no exceptions.

Knows no keys and no values; every call answers None when Redis did not.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from opentelemetry.trace import SpanKind
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError, ResponseError

from service.breaker import Breaker
from service.tracing import span

Out = TypeVar("Out")

# After 3 failures in a row Redis is left alone for 30 s.
FAILURES, REST_SECONDS = 3, 30.0

# Calls at once; others wait for one of them to end, which says nothing against Redis.
_CONNECTIONS = 64
# A caller may have less patience than Redis is given: waits in vain, one after the other, count as a failure when they come
# to this share of it.
_TELLING_SHARE = 0.5

# Made once: each connection would else look up the version in files, on the event loop.
_DRIVER = DriverInfo()


class RedisClient:
    """One pool of connections behind a breaker."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self.breaker = Breaker(FAILURES, REST_SECONDS)
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            max_connections=_CONNECTIONS,
            driver_info=_DRIVER,
        )
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._in_vain, self._in_vain_until = 0.0, -math.inf

    async def ask(self, call: Callable[[Redis], Awaitable[Out]], seconds: float = math.inf) -> Out | None:
        """The answer to a call, or None when Redis is left alone, late or broken.

        ``seconds``: the caller's patience, where it has less than Redis is given.
        """
        if not self.breaker.allow():
            return None
        began = math.inf
        try:
            with span("redis", SpanKind.CLIENT):
                async with asyncio.timeout(min(self._timeout_seconds, seconds)), self._free:
                    began = self.breaker.clock()
                    answer = await call(self._redis)
        except ResponseError:  # of another type, not permitted, out of memory: it answers
            self.breaker.succeeded()
            return None
        except (TimeoutError, asyncio.CancelledError) as error:
            self._waited_in_vain(began)
            if isinstance(error, asyncio.CancelledError):
                raise
            return None
        except (RedisError, OSError, ValueError, UnicodeError):
            self.breaker.failed(began)
            return None
        self.breaker.succeeded()
        self._in_vain = 0.0
        return answer

    def _waited_in_vain(self, began: float) -> None:
        """Since ``began``; infinity: no connection was free. What passes side by side is counted once."""
        now = self.breaker.clock()
        self._in_vain += max(0.0, now - max(began, self._in_vain_until))
        self._in_vain_until = now
        if self._in_vain >= _TELLING_SHARE * self._timeout_seconds:
            self._in_vain = 0.0
            self.breaker.failed(began)

    async def aclose(self) -> None:
        """Close the connections."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._redis.aclose()
        except (RedisError, OSError, TimeoutError):
            return
