"""How many products a caller may ask for: a token bucket a caller, in this process or shared through Redis.

Knows callers by name only, and neither keys nor requests. Never fails: what Redis does not answer, this process decides.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from service.errors import RateLimited
from service.redis_client import RedisClient

# Callers are named by the operator's keys, so there are few; the bound is for mistakes.
_MOST_CALLERS = 10_000
_KEY_PREFIX = "mufin:v1:rate:"

# One step for read, refill and take, by Redis's own clock: processes whose clocks differ share one bucket. A bucket
# that is missing is full. KEYS: bucket; ARGV: tokens a second, most tokens, tokens to take, whether to take them in
# any case. Answers {1 when taken, thousandths of tokens left}.
_TAKE = """
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1000000
local rate, most, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(kept[1]) or most, tonumber(kept[2]) or seconds
tokens = math.min(most, tokens + math.max(0, seconds - at) * rate)
local taken = 0
if ARGV[4] == '1' or tokens >= 1 then
  taken, tokens = 1, tokens - cost
end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', string.format('%.6f', seconds))
redis.call('PEXPIRE', KEYS[1], math.ceil((most - tokens) / rate * 1000) + 1000)
return {taken, math.floor(tokens * 1000)}
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one caller may have."""

    per_second: float
    burst: float
    """Most tokens saved up."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class RateLimiter:
    """The buckets of all callers; lives in one event loop."""

    def __init__(self, client: RedisClient | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    async def take(self, caller: str, rate: Rate, seconds: float = math.inf) -> None:
        """One token; raises RateLimited when less than one is left. ``seconds``: what Redis may take for it at most."""
        taken, tokens = await self._take(caller, rate, 1, seconds, in_any_case=False)
        if not taken:
            wait = max(1, math.ceil((1 - tokens) / rate.per_second))
            raise RateLimited(f"the API key may ask for {rate.per_second:g} products a second", wait)

    async def charge(self, caller: str, rate: Rate, tokens: int, seconds: float = math.inf) -> None:
        """Tokens for what is already under way; the bucket may go below zero, and later requests wait for it."""
        if tokens > 0:
            await self._take(caller, rate, tokens, seconds, in_any_case=True)

    async def _take(
        self, caller: str, rate: Rate, cost: int, seconds: float, *, in_any_case: bool
    ) -> tuple[bool, float]:
        answer = await self._ask(caller, rate, cost, seconds, in_any_case)
        if answer is not None:
            # Kept in step, so that a Redis that goes down does not give everybody a new full bucket.
            self._bucket(caller, rate).tokens = answer[1]
            return answer
        bucket = self._bucket(caller, rate)
        taken = in_any_case or bucket.tokens >= 1
        if taken:
            bucket.tokens -= cost
        return taken, bucket.tokens

    async def _ask(
        self, caller: str, rate: Rate, cost: int, seconds: float, in_any_case: bool
    ) -> tuple[bool, float] | None:
        """What Redis says; None without one, or when it says nothing of use."""
        if self._client is None:
            return None
        arguments = (str(rate.per_second), str(rate.burst), str(cost), "1" if in_any_case else "0")

        async def evaluate(redis: Redis) -> Any:
            return await redis.eval(_TAKE, 1, _KEY_PREFIX + caller, *arguments)

        answer = await self._client.ask(evaluate, seconds)
        if not isinstance(answer, list) or len(answer) != 2 or not all(isinstance(own, int) for own in answer):
            return None
        return bool(answer[0]), answer[1] / 1000

    def _bucket(self, caller: str, rate: Rate) -> _Bucket:
        """The caller's bucket of this process, refilled up to now."""
        now = self._clock()
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._buckets[caller] = _Bucket(rate.burst, now)
            if len(self._buckets) > _MOST_CALLERS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(caller)
        bucket.tokens = min(rate.burst, bucket.tokens + (now - bucket.at) * rate.per_second)
        bucket.at = now
        return bucket
