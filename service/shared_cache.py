"""The Cache shared by all processes: Redis.

Knows no embeddings; a Redis that is down is a cache that knows nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from service.redis_client import RedisClient


class RedisCache:
    """One MGET a question, one pipeline an answer to keep."""

    def __init__(self, client: RedisClient, longest_ttl_seconds: float) -> None:
        self._client = client
        self._longest_ttl_seconds = longest_ttl_seconds
        self._putting: set[asyncio.Task[None]] = set()

    async def get_many(self, keys: Sequence[str], seconds: float = math.inf) -> list[bytes | None]:
        """Values in the order of the keys."""
        if not keys:
            return []
        found = await self._client.ask(lambda redis: redis.mget(list(keys)), seconds)
        if not isinstance(found, list) or len(found) != len(keys):
            return [None] * len(keys)
        return [value if isinstance(value, bytes) else None for value in found]

    async def put_many(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """Keep values for the time, at most the longest."""
        milliseconds = max(1, int(min(ttl_seconds, self._longest_ttl_seconds) * 1000))

        async def put(redis: Redis) -> list[Any]:
            async with redis.pipeline(transaction=False) as pipeline:
                for key, value in values.items():
                    pipeline.set(key, value, px=milliseconds)
                return list(await pipeline.execute())

        if values:
            await self._client.ask(put)

    def put_soon(self, values: Mapping[str, bytes], ttl_seconds: float) -> None:
        """In a task of its own."""
        task = asyncio.ensure_future(self.put_many(values, ttl_seconds))
        self._putting.add(task)
        task.add_done_callback(self._putting.discard)

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()
