"""A real Redis stalled, killed and started again under load: no request fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service.bundles import open_from_disk
from service.redis_client import FAILURES
from tests.bundle_factory import COLOURS, KINDS, make_tiny_bundle
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
