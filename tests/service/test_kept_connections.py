"""Connections that stay open between fetches: used again while they live, never after the server has ended them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from service.fetching import Fetcher, FetchLimits
from service.picture_urls import UrlPolicy
from tests.service.serving import picture

BOTH_LOOPS = True
PNG = picture()


class KeepingServer:
    """Answers every request with a picture and keeps its connections until it is told to end some."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        """Of every connection, in the order in which they came"""
        self.together = 1
        """Requests that must be there before one is answered"""
        self._waiting = asyncio.Condition()
        self._asked = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.writers.append(writer)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                async with self._waiting:
                    self._asked += 1
                    wanted = -(-self._asked // self.together) * self.together
                    self._waiting.notify_all()
                    while self._asked < wanted:
                        await self._waiting.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def kept(connections: int) -> AsyncIterator[tuple[Fetcher, KeepingServer, str]]:
    """A fetcher that keeps so many connections, their server, and a URL."""
    keeping = KeepingServer()
    server = await asyncio.start_server(keeping.handle, "127.0.0.1", 0)
    origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    fetcher = Fetcher(UrlPolicy(trusted_origins=frozenset({origin})), FetchLimits(max_fetches_per_host=connections))
    try:
        keeping.together = connections
        await asyncio.gather(*(fetcher.fetch(f"{origin}/{number}") for number in range(connections)))
        keeping.together = 1
        assert len(keeping.writers) == connections
        yield fetcher, keeping, origin
    finally:
        await fetcher.aclose()
        server.close()
        for writer in keeping.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_connections_that_the_server_ended_are_not_used_again() -> None:
    """Every picture comes, by those that are left and by new ones."""
    async with kept(5) as (fetcher, keeping, origin):
        for writer in keeping.writers[1:4]:
            writer.close()
        await asyncio.sleep(0.05)
        keeping.together = 5
        fetched = await asyncio.gather(*(fetcher.fetch(f"{origin}/{number}") for number in range(5)))
        assert [own.content for own in fetched] == [PNG] * 5
        assert len(keeping.writers) == 5 + 3
