"""Token buckets: in this process, shared through a real Redis, and when Redis is down, stalled, full or wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.errors import RateLimited
from service.rate_limit import Rate, RateLimiter
from service.redis_client import RedisClient
from tests.service.redis_process import redis_process

RATE = Rate(per_second=2.0, burst=3)


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def _takes(limiter: RateLimiter, times: int, caller: str = "shop", rate: Rate = RATE) -> int:
    """How many of so many tries are allowed."""
    allowed = 0
    for _ in range(times):
        with suppress(RateLimited):
            await limiter.take(caller, rate)
            allowed += 1
    return allowed


async def test_a_bucket_holds_the_burst_and_refills_at_its_rate() -> None:
    """And never holds more than the burst."""
    clock = Clock()
    limiter = RateLimiter(clock=clock)
    assert await _takes(limiter, 5) == 3
    clock.now += 0.5
    assert await _takes(limiter, 3) == 1
    clock.now += 3600
    assert await _takes(limiter, 9) == 3


async def test_callers_have_buckets_of_their_own() -> None:
    """One that asks too much takes nothing from another."""
    limiter = RateLimiter(clock=Clock())
    assert await _takes(limiter, 9) == 3
    assert await _takes(limiter, 2, "other") == 2


async def test_retry_after_says_when_a_product_is_allowed_again() -> None:
    """After a batch that took more than there was, its debt included; asking earlier is refused, then it is not."""
    clock = Clock()
    limiter = RateLimiter(clock=clock)
    await limiter.take("shop", RATE)
    await limiter.charge("shop", RATE, 9)
    with pytest.raises(RateLimited, match="2 products a second") as refused:
        await limiter.take("shop", RATE)
    assert (refused.value.reason, refused.value.retry_after_seconds) == ("rate_limit", 4)
    clock.now += 3.9
    clock.now += 0.1
    assert await _takes(limiter, 1) == 1


async def test_processes_share_a_bucket_through_redis(tmp_path: Path) -> None:
    """Two limiters, one budget; what is kept there expires by itself."""
    slow = Rate(per_second=0.01, burst=3)
    with redis_process(tmp_path) as server:
        clients = [RedisClient(server.url, 1.0) for _ in range(2)]
        first, second = (RateLimiter(client) for client in clients)
        assert await _takes(first, 2, rate=slow) == 2
        assert await _takes(second, 3, rate=slow) == 1
        assert await _takes(first, 1, rate=slow) == 0
        await first.charge("shop", slow, 5)
        seconds = await clients[0].ask(lambda redis: redis.ttl("mufin:v1:rate:shop"))
        assert seconds is not None
        assert 800 <= seconds <= 802
        for client in clients:
            await client.aclose()


async def test_redis_refills_by_its_own_clock(tmp_path: Path) -> None:
    """A process whose clock stands still gets its tokens back all the same."""
    with redis_process(tmp_path) as server:
        client = RedisClient(server.url, 1.0)
        limiter = RateLimiter(client, clock=Clock())
        quick = Rate(per_second=1000, burst=1)
        assert [await _takes(limiter, 1, rate=Rate(0.001, 1)) for _ in range(2)] == [1, 0]
        for _ in range(50):
            if await _takes(limiter, 1, rate=quick):
                break
        else:
            raise AssertionError("no token came back")
        await client.aclose()


async def test_without_redis_the_process_goes_on_where_redis_stopped(tmp_path: Path) -> None:
    """Killed: no error, and no new full bucket; back again, empty: it decides again."""
    slow = Rate(per_second=0.01, burst=5)
    with redis_process(tmp_path) as server:
        client = RedisClient(server.url, 1.0)
        limiter = RateLimiter(client)
        assert await _takes(limiter, 4, rate=slow) == 4
        server.kill()
        assert await _takes(limiter, 9, rate=slow) == 1
        assert client.breaker.is_open
        server.start()
        client.breaker.succeeded()
        assert await _takes(limiter, 9, rate=slow) == 5
        await client.aclose()


async def test_a_stalled_redis_decides_nothing(tmp_path: Path) -> None:
    """Each answer comes from this process."""
    with redis_process(tmp_path) as server:
        client = RedisClient(server.url, 0.05)
        limiter = RateLimiter(client, clock=Clock())
        server.stall()
        assert await _takes(limiter, 9) == 3
        await client.aclose()


async def test_a_full_redis_decides_nothing(tmp_path: Path) -> None:
    """maxmemory without eviction: writes are refused, requests are not."""
    with redis_process(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        client = RedisClient(server.url, 1.0)
        assert await _takes(RateLimiter(client, clock=Clock()), 9) == 3
        await client.aclose()


async def test_a_key_of_another_kind_decides_nothing(tmp_path: Path) -> None:
    """Somebody else's value under our name."""
    with redis_process(tmp_path) as server:
        client = RedisClient(server.url, 1.0)

        async def write(redis: Redis) -> None:
            await redis.set("mufin:v1:rate:shop", "nonsense")

        await client.ask(write)
        assert await _takes(RateLimiter(client, clock=Clock()), 9) == 3
        await client.aclose()
