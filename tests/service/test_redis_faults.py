"""A real Redis stalled, killed and started again under load: no request fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service.bundles import open_from_disk
from service.cache import cache_key
from service.redis_client import FAILURES, RedisClient
from service.shared_cache import RedisCache
from tests.bundle_factory import COLOURS, KINDS, make_tiny_bundle
from tests.service.memory_model import DIMENSION, MemoryModel, shop
from tests.service.redis_process import redis_process
from tests.service.serving import eventually, running

_CALLERS = 8


async def test_redis_stalled_and_killed_under_load_costs_no_request(tmp_path: Path) -> None:
    """Every answer is whole and the same as before; readiness stays; afterwards the cache is used again."""
    bundle = make_tiny_bundle(tmp_path / "bundle")
    with redis_process(tmp_path) as redis:
        async with running(
            open_model=open_from_disk, recommend_bundle=bundle, bid_queries_bundle=None, redis_url=redis.url,
            cache_bytes=0,
        ) as (client, app):  # fmt: skip
            answers: dict[str, set[str]] = {}
            asked, stopping = 0, False

            async def ask(caller: int) -> None:
                nonlocal asked
                while not stopping:
                    title = f"{COLOURS[asked % 5]} {KINDS[(asked // 5) % 4]}"
                    asked += 1
                    response = await client.post("/recommend", json={"product": {"title": title}, "k": 5})
                    assert response.status_code == 200, response.text
                    values = response.json()
                    assert values["stage"] == "reranked"
                    answers.setdefault(title, set()).add(str([result["id"] for result in values["results"]]))

            async def some_more(requests: int) -> None:
                wanted = asked + requests
                await eventually(lambda: asked >= wanted or any(own.done() for own in callers))

            cache_client = app.state.parts.cache._far._client
            callers = [asyncio.ensure_future(ask(number)) for number in range(_CALLERS)]
            await some_more(60)
            assert not cache_client.breaker.is_open
            redis.stall()
            await some_more(100)
            assert cache_client.breaker.is_open
            assert (await client.get("/readyz")).status_code == 200
            redis.go_on()
            redis.kill()
            cache_client.breaker.succeeded()  # as after its rest
            await some_more(60)
            assert cache_client.breaker.is_open
            redis.start()
            cache_client.breaker.succeeded()
            await some_more(60)
            assert not cache_client.breaker.is_open
            stopping = True
            await asyncio.gather(*callers)
            assert asked > 280 > FAILURES
            assert len(answers) == 20
            assert all(len(own) == 1 for own in answers.values())
            keys = await cache_client.ask(lambda own: own.dbsize())
            assert keys == 20


async def test_a_stalled_redis_costs_no_request_with_little_time(tmp_path: Path) -> None:
    """Less time than Redis itself is given: a quarter of it at most goes to the question, so that the rest is enough."""
    headers = {"X-Request-Timeout-Ms": "600"}
    with redis_process(tmp_path) as redis:
        async with running(redis_url=redis.url, redis_timeout_milliseconds=2000.0) as (client, app):
            assert (await client.post("/recommend", json={"product": {"title": "warm"}})).status_code == 200
            redis.stall()
            for number in range(3):
                body = {"product": {"title": f"red shoes {number}"}}
                assert (await client.post("/recommend", json=body, headers=headers)).status_code == 200
            # Three impatient callers say little against Redis.
            assert not app.state.parts.cache._far._client.breaker.is_open
            redis.go_on()


async def test_impatient_callers_alone_make_a_stalled_redis_known(tmp_path: Path) -> None:
    """What they wait in vain adds up, but for what they wait side by side; an answer ends it."""
    with redis_process(tmp_path) as redis:
        client = RedisClient(redis.url, 0.2)
        for _ in range(12):
            assert await client.ask(lambda own: own.ping(), 5.0)
            redis.stall()
            assert await client.ask(lambda own: own.ping(), 0.03) is None
            redis.go_on()
        assert client.breaker._in_a_row == 0
        redis.stall()
        await asyncio.gather(*(client.ask(lambda own: own.ping(), 0.03) for _ in range(20)))
        assert client.breaker._in_a_row == 0
        for _ in range(20):
            await client.ask(lambda own: own.ping(), 0.03)
        assert client.breaker.is_open
        redis.go_on()
        await client.aclose()


async def test_callers_who_leave_a_stalled_redis_make_it_known(tmp_path: Path) -> None:
    """One that waited long enough in vain counts, also when it was cut."""
    with redis_process(tmp_path) as redis:
        client = RedisClient(redis.url, 0.2)
        assert await client.ask(lambda own: own.ping())
        redis.stall()
        for _ in range(FAILURES):
            assert not client.breaker.is_open
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.15):
                    await client.ask(lambda own: own.ping())
        assert client.breaker.is_open
        redis.go_on()
        await client.aclose()


async def test_many_questions_at_once_are_all_answered(tmp_path: Path) -> None:
    """More than there are connections: they wait for one, and Redis is not blamed."""
    with redis_process(tmp_path) as redis:
        client = RedisClient(redis.url, 5.0)
        cache = RedisCache(client, 100.0)
        await cache.put_many({str(number): b"x" for number in range(300)}, 100.0)
        found = await asyncio.gather(*(cache.get_many([str(number)]) for number in range(300)))
        assert found == [[b"x"]] * 300
        assert client.breaker._in_a_row == 0
        await cache.aclose()


async def test_a_key_of_another_type_is_no_broken_redis(tmp_path: Path) -> None:
    """It answers: whoever asks for something else goes on doing so."""
    with redis_process(tmp_path) as redis:
        client = RedisClient(redis.url, 5.0)
        await client.ask(lambda own: own.set("text", "l1"))
        for _ in range(2 * FAILURES):
            assert await client.ask(lambda own: own.smembers("text")) is None
        assert not client.breaker.is_open
        assert await client.ask(lambda own: own.get("text")) == b"l1"
        await client.aclose()


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_vectors_that_are_no_numbers_are_encoded_anew(tmp_path: Path, value: float) -> None:
    """Garbage of the right size in the shared cache answers as if nothing were there."""
    model, title = MemoryModel(shop()), "red running shoes"
    with redis_process(tmp_path) as redis:
        async with running(model, redis_url=redis.url) as (client, app):
            key = cache_key(model.encoder_id, "title", title.encode())
            garbage = np.full(DIMENSION, value, np.float16).tobytes()
            assert await app.state.parts.cache._far._client.ask(lambda own: own.set(key, garbage))
            answer = (await client.post("/recommend", json={"product": {"title": title}, "k": 1})).json()
            assert answer["results"][0]["title"] == title
            assert sum(model.title_batches) == 1
