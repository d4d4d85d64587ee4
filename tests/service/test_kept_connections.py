"""Connections that stay open between fetches: used again while they live, never after the server has ended them."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpcore
import pytest

from service.dialling import _Readable, _Stream
from service.fetching import Fetcher, FetchLimits
from service.picture_urls import UrlPolicy
from tests.service.serving import picture

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


class _Bare(httpcore.AsyncNetworkStream):
    """A connection that is its socket and nothing else."""

    def __init__(self, own: socket.socket) -> None:
        self._own = own

    def get_extra_info(self, info: str) -> Any:
        return self._own if info == "socket" else None

    async def aclose(self) -> None:
        self._own.close()


async def test_a_number_that_another_connection_got_is_watched_anew() -> None:
    """What is known of a socket's number does not outlive the socket, nor does its end unwatch the one that has it now."""
    readable = _Readable()
    first, far = socket.socketpair()
    old, number = _Stream(_Bare(first), readable), first.fileno()
    far.close()
    assert old.get_extra_info("is_readable")
    first.close()  # by the transport itself, as when a connection breaks
    second, far = socket.socketpair()
    if second.fileno() != number:
        second, far = far, second
    assert second.fileno() == number, "the system gives the lowest free number"
    new = _Stream(_Bare(second), readable)
    assert not new.get_extra_info("is_readable")
    await old.aclose()
    far.close()
    await asyncio.sleep(0)
    assert new.get_extra_info("is_readable") and old.get_extra_info("is_readable")
    await new.aclose()


async def test_the_system_is_asked_once_for_all_that_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch looks at every kept connection when it begins and when it ends; each look is one question."""
    questions, poll = 0, select.poll

    class Counted:
        def __init__(self) -> None:
            self._own = poll()

        def __getattr__(self, name: str) -> Any:
            nonlocal questions
            questions += name == "poll"
            return getattr(self._own, name)

    monkeypatch.setattr(select, "poll", Counted)
    async with kept(8) as (fetcher, _, origin):
        await fetcher.fetch(f"{origin}/first")
        questions = 0
        await fetcher.fetch(f"{origin}/second")
        assert 1 <= questions <= 3


async def test_what_was_seen_holds_until_the_loops_next_turn() -> None:
    """And not longer; one that left is not asked for."""
    readable = _Readable()
    ours, theirs = socket.socketpair()
    readable.watch(ours.fileno())
    assert not readable.has(ours.fileno())
    theirs.close()
    assert not readable.has(ours.fileno())
    await asyncio.sleep(0)
    assert readable.has(ours.fileno())
    readable.leave(ours.fileno())
    await asyncio.sleep(0)
    assert not readable.has(ours.fileno())
    readable.leave(ours.fileno())
    ours.close()
