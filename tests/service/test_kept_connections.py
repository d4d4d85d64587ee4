"""Connections that stay open between fetches: used again while they live, never after the server has ended them."""

from __future__ import annotations

import asyncio

from service.fetching import FetchLimits
from tests.service.scripted_server import PNG, serving, whole
from tests.service.serving import eventually

BOTH_LOOPS = True


async def test_connections_that_the_server_ended_are_not_used_again() -> None:
    """Every picture comes, by those that are left and by new ones."""
    limits = FetchLimits(max_fetches_per_host=5, first_byte_seconds=20, total_seconds=20)
    async with serving(lambda *_: whole(), limits) as (fetch, server):
        server.before = asyncio.Barrier(5).wait  # no answer until all five are there, each on a connection of its own
        assert await asyncio.gather(*(fetch() for _ in range(5))) == [PNG] * 5
        for writer in server.writers[1:4]:
            writer.close()
        await eventually(lambda: [own.is_closing() for own in server.writers] == [False, True, True, True, False])
        await asyncio.sleep(0.05)  # until the client has read of the three ends
        assert await asyncio.gather(*(fetch() for _ in range(5))) == [PNG] * 5
        assert sorted(server.requests) == [1] * 6 + [2] * 2
