"""A picture server that answers by a script, a fetcher for it, and a transport that goes nowhere.

Knows no test; hostile plays, which need no script by connection and request, stand in ``hostile_server``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from service.errors import PictureError
from service.fetching import Fetcher, FetchLimits
from service.picture_urls import UrlPolicy
from tests.service.serving import eventually, picture

PNG = picture()
OTHER = PNG + b"other"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nX: y\r\n\r\n"


def whole(body: bytes = PNG, *headers: bytes) -> bytes:
    """An answer with its length."""
    return OK + b"".join(own + b"\r\n" for own in headers) + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


async def _at_once() -> None:
    pass


class Server:
    """Answers with what a script gives for (connection, request), both from 0; b"" ends the connection unanswered."""

    def __init__(self, script: Callable[[int, int], bytes]) -> None:
        self.script = script
        self.heads: list[list[bytes]] = []
        """Of each connection, the heads that came"""
        self.writers: list[asyncio.StreamWriter] = []
        self.before: Callable[[], Awaitable[object]] = _at_once
        """Awaited before every answer"""
        self.fetcher: Any = None
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        number, mine = len(self.heads), list[bytes]()
        self.heads.append(mine)
        self.writers.append(writer)
        try:
            while True:
                mine.append(await reader.readuntil(b"\r\n\r\n"))
                await self.before()
                answer = self.script(number, len(mine) - 1)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def requests(self) -> list[int]:
        """How many came on each connection."""
        return [len(own) for own in self.heads]


@asynccontextmanager
async def serving(
    script: Callable[[int, int], bytes], limits: FetchLimits | None = None
) -> AsyncIterator[tuple[Callable[..., Awaitable[str | bytes]], Server]]:
    """A function that fetches, and gives a picture's bytes or an error's code; and the server."""
    own = Server(script)
    server = await asyncio.start_server(own.handle, "127.0.0.1", 0)
    own.port = server.sockets[0].getsockname()[1]
    origin = f"http://127.0.0.1:{own.port}"
    limits = limits or FetchLimits(first_byte_seconds=20, total_seconds=20)
    fetcher = own.fetcher = Fetcher(UrlPolicy(trusted_origins=frozenset({origin})), limits)

    async def fetch(etag: str | None = None) -> str | bytes:
        try:
            return (await fetcher.fetch(f"{origin}/1.png", etag)).content or b""
        except PictureError as error:
            return error.code

    try:
        yield fetch, own
    finally:
        await fetcher.aclose()
        try:
            await eventually(lambda: all(writer.is_closing() for writer in own.writers))
        finally:
            server.close()
            for writer in own.writers:  # or uvloop would wait for them, where a test failed
                writer.transport.abort()
            await asyncio.sleep(0.01)


class FakeTransport(asyncio.Transport):
    """Takes everything, and notes whether it was told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def write(self, data: Any) -> None:
        """Into nothing."""

    def is_closing(self) -> bool:
        """Whether it was aborted."""
        return self.is_aborted

    def abort(self) -> None:
        """Noted."""
        self.is_aborted = True

    def pause_reading(self) -> None:
        """The tests send on."""

    def resume_reading(self) -> None:
        """The same."""
