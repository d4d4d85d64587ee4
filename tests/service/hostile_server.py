"""Plays of a hostile picture server: what it does on a connection, put together from small pieces.

Knows no fetcher and no test. A play gets the connection and does what it likes; afterwards the connection is closed.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.service.serving import picture

PNG = picture()
MAGIC = PNG[:20]
"""Enough to pass for a picture, whatever follows."""


@dataclass
class Connection:
    """One connection as a play sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    port: int
    """Of the server."""

    async def head(self) -> str:
        """What the client asks, up to the empty line."""
        return (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")

    async def send(self, content: bytes) -> None:
        """Send and wait until the client has room for more."""
        self.writer.write(content)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with a reset instead of an end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Play = Callable[[Connection], Awaitable[None]]


def answer(body: bytes = PNG, *headers: str, status: str = "200 OK", length: int | str | None = None) -> Play:
    """A whole answer, with a Content-Length that may lie."""
    told = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {told}", *headers, "Connection: close", "", ""]
    return raw("\r\n".join(lines).encode("latin-1") + body)


def raw(content: bytes) -> Play:
    """These bytes after the client has asked."""

    async def play(connection: Connection) -> None:
        await connection.head()
        await connection.send(content)

    return play


def redirect(location: str, status: str = "302 Found") -> Play:
    """A redirect; ``{port}`` in the location is the server's own."""

    async def play(connection: Connection) -> None:
        await answer(b"", "Location: " + location.replace("{port}", str(connection.port)), status=status)(connection)

    return play


def routes(plays: Mapping[str, Play]) -> Play:
    """A play by the path asked for."""

    async def play(connection: Connection) -> None:
        path = (await connection.head()).split(" ")[1]
        # The play itself waits for a head.
        connection.reader.feed_data(b"\r\n\r\n")
        await plays[path](connection)

    return play


def repeat(head: bytes, piece: bytes, pause_seconds: float = 0.0) -> Play:
    """The head, then the same piece for ever."""

    async def play(connection: Connection) -> None:
        await connection.head()
        await connection.send(head)
        while True:
            await connection.send(piece)
            await asyncio.sleep(pause_seconds)

    return play


def encoded(body: bytes, encoding: str = "gzip") -> Play:
    """A gzip body, though nobody asked for one."""
    return answer(gzip.compress(body), f"Content-Encoding: {encoding}")


def chunks(piece: bytes, number: int) -> Play:
    """A chunked body: a beginning that passes for a picture, then ``number`` chunks of the same piece."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return raw(head + b"".join(b"%x\r\n%s\r\n" % (len(own), own) for own in (MAGIC, *[piece] * number)) + b"0\r\n\r\n")


def resets_after(sent: bytes, *, asked: bool = True) -> Play:
    """A reset after these bytes; not ``asked``: before the client could ask."""

    async def play(connection: Connection) -> None:
        if asked:
            await connection.head()
        if sent:
            await connection.send(sent)
            await asyncio.sleep(0.02)  # so that it is on its way before the reset
        connection.reset()

    return play


def says_first(content: bytes) -> Play:
    """These bytes before the client has said anything, then the end."""

    async def play(connection: Connection) -> None:
        await connection.send(content)

    return play


async def silent(connection: Connection) -> None:
    """Takes the connection and never says anything."""
    await connection.reader.read()
    await asyncio.sleep(60)


@dataclass
class HostileServer:
    """One play on one loopback port."""

    port: int = 0
    connections: int = 0
    """How many were made."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    @asynccontextmanager
    async def playing(cls, play: Play, tls: ssl.SSLContext | None = None) -> AsyncIterator[HostileServer]:
        """The server until the block ends."""
        own = cls()

        async def converse(connection: Connection) -> None:
            # A client that hangs up ends the play.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await play(connection)
            connection.writer.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            own.connections += 1
            task = asyncio.ensure_future(converse(Connection(reader, writer, own.port)))
            own._tasks.add(task)
            task.add_done_callback(own._tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
        own.port = server.sockets[0].getsockname()[1]
        try:
            yield own
        finally:
            server.close()
            tasks = list(own._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
