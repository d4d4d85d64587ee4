"""A running app in this process, and a small HTTP server of pictures and mischief on loopback.

Knows no particular test.
"""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from service.app import create_app, lifecycle_of
from service.bundles import OpenModel
from service.lifecycle import Phase
from service.settings import Settings
from tests.service.memory_model import MemoryModel, shop

ANY_FOLDER = Path("memory")


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it holds; fails after five seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to hold")


@asynccontextmanager
async def running(
    model: MemoryModel | None = None, *, open_model: OpenModel | None = None, wait: bool = True, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """A client of an app that serves the model behind both endpoints, unless settings say otherwise."""
    own = model or MemoryModel(shop())
    chosen = {"recommend_bundle": ANY_FOLDER, "bid_queries_bundle": ANY_FOLDER, "worker_threads": 2, **settings}
    app = create_app(Settings(_cli_parse_args=[], **chosen), open_model or (lambda *_: own))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://mufin") as client,
    ):
        if wait:
            await eventually(lambda: lifecycle_of(app).phase is not Phase.STARTING)
            assert lifecycle_of(app).phase is Phase.READY, lifecycle_of(app).failure
        yield client, app


Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


class PictureServer:
    """Serves what its routes say; counts requests by path and keeps their heads."""

    def __init__(self) -> None:
        self.routes: dict[str, Reply] = {}
        self.heads: list[str] = []
        self.port = 0

    @property
    def origin(self) -> str:
        """scheme://host:port"""
        return f"http://127.0.0.1:{self.port}"

    def hits(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(head.split(" ")[1] == path for head in self.heads)

    def serve(self, path: str, body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> None:
        """A whole answer, with a Content-Length that may lie."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
        content = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
            writer.write(content)

        self.routes[path] = reply

    def redirect(self, path: str, location: str, status: str = "302 Found") -> None:
        """A redirect."""
        self.serve(path, b"", f"Location: {location}", status=status)

    def drip(self, path: str, first: bytes, seconds: float) -> None:
        """A head at once, then one byte at a time for ever."""

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + first)
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(seconds)

        self.routes[path] = reply

    def endless(self, path: str, first: bytes) -> None:
        """A body that never ends."""

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + first)
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

        self.routes[path] = reply

    def silent(self, path: str) -> None:
        """Never answers."""

        async def reply(_: asyncio.StreamReader, __: asyncio.StreamWriter, ___: str) -> None:
            await asyncio.sleep(60)

        self.routes[path] = reply

    def raw(self, path: str, content: bytes) -> None:
        """These bytes and a closed connection."""

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
            writer.write(content)

        self.routes[path] = reply

    def bomb(self, path: str, first: bytes, zeros: int) -> None:
        """A gzip-encoded body that grows a thousandfold, though nobody asked for gzip."""
        self.serve(path, gzip.compress(first + bytes(zeros)), "Content-Encoding: gzip")

    def with_etag(self, path: str, body: bytes, etag: str) -> None:
        """304 to who knows the tag."""

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
            if f"if-none-match: {etag}".lower() in head.lower():
                writer.write(b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n")
            else:
                lines = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: {etag}\r\nConnection: close\r\n\r\n"
                writer.write(lines.encode() + body)

        self.routes[path] = reply

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            path = head.split(" ")[1]
            if path in self.routes:
                await self.routes[path](reader, writer, head)
            else:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def picture_server() -> AsyncIterator[PictureServer]:
    """A server on a free loopback port."""
    pictures = PictureServer()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(pictures.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # also where the task is cut before it begins

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    pictures.port = server.sockets[0].getsockname()[1]
    try:
        yield pictures
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
