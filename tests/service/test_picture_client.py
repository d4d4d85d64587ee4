"""The HTTP client of pictures: which connections are used again, and what of an answer is held."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import ssl
import time
import zlib
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from service import picture_client
from service.dialling import Dialler, NetworkFault
from service.fetching import Fetcher, FetchLimits
from service.picture_client import Origin, PictureClient
from service.picture_connection import Connection
from service.picture_urls import UrlPolicy
from tests.service.scripted_server import CHUNKED, OK, OTHER, PNG, FakeTransport, Server, serving, whole
from tests.service.serving import eventually

BOTH_LOOPS = True


async def test_one_connection_serves_one_fetch_after_the_other() -> None:
    """With a length, in chunks, unchanged, and sent elsewhere: all leave the connection as it was."""
    answers = [
        whole(), OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG),
        b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: /2\r\nContent-Length: 4\r\n\r\nhere",
        whole(OTHER), b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", whole(),
    ]  # fmt: skip
    async with serving(lambda _, request: answers[request]) as (fetch, server):
        assert await fetch() == PNG
        assert await fetch() == PNG
        assert await fetch('"a"') == b""
        assert await fetch() == "image_unreachable"  # a redirect does not reach a trusted origin
        assert await fetch() == OTHER
        assert await fetch() == "image_unreachable"
        assert await fetch() == PNG
        assert server.requests == [7]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(whole(PNG, b"Connection: close"), id="told to close"),
        pytest.param(whole().replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(
            whole(PNG, b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0 that would stay"
        ),
        pytest.param(whole() + b"x", id="a byte more than it said"),
        pytest.param(whole() + whole(OTHER), id="a second answer behind the first"),
        pytest.param(whole() + b"HTTP/1.1 100 Continue\r\n\r\n", id="an interim answer behind it"),
    ],
)
async def test_a_connection_that_is_not_clean_is_not_used_again(answer: bytes) -> None:
    """What stands behind an answer is nobody's: never the answer to the next request."""
    async with serving(lambda *_: answer) as (fetch, server):
        assert [await fetch() for _ in range(3)] == [PNG] * 3
        assert server.requests == [1, 1, 1]


async def test_what_comes_while_a_connection_rests_ends_it() -> None:
    """An answer that nobody asked for is not kept for who asks next."""
    async with serving(lambda number, _: whole(PNG if number == 0 else OTHER)) as (fetch, server):
        assert await fetch() == PNG
        server.writers[0].write(whole())
        await asyncio.sleep(0.05)
        assert await fetch() == OTHER
        assert server.requests == [1, 1]


async def test_what_came_while_the_loop_was_busy_is_no_answer() -> None:
    """The system has it, the loop has not come to it yet."""
    async with serving(lambda number, _: whole(PNG if number == 0 else OTHER)) as (fetch, server):
        assert await fetch() == PNG
        sent = server.writers[0].get_extra_info("socket").fileno()
        os.write(sent, whole())
        time.sleep(0.02)  # noqa: ASYNC251 - the loop is busy
        assert await fetch() == OTHER
        assert server.requests == [1, 1]


async def test_a_silent_server_is_asked_once_on_a_kept_connection_too() -> None:
    """It has not hung up; the limit is not doubled."""
    silence = asyncio.Event()
    async with serving(lambda *_: whole(), FetchLimits(first_byte_seconds=0.2, total_seconds=20)) as (fetch, server):
        assert await fetch() == PNG
        server.before = silence.wait
        assert await fetch() == "image_unreachable"
        assert server.requests == [2]
        silence.set()


async def test_a_closed_fetcher_opens_nothing_more() -> None:
    """Neither for a request that was under way on a kept connection nor for one whose connection is being made."""
    hold = asyncio.Event()
    async with serving(lambda *_: whole()) as (fetch, server):
        assert await fetch() == PNG
        server.before = hold.wait
        asking = asyncio.ensure_future(fetch())
        await eventually(lambda: server.requests == [2])
        dialling = asyncio.ensure_future(fetch())
        await asyncio.sleep(0)
        await server.fetcher.aclose()
        assert [await asking, await dialling, await fetch()] == ["image_unreachable"] * 3
        assert len(server.heads) <= 2
        assert not server.fetcher._client._open and not server.fetcher._client._resting
        hold.set()


async def test_a_connection_that_is_made_while_the_client_closes_is_ended() -> None:
    """Nobody would end it later."""
    found = asyncio.Event()

    async def resolve(host: str, port: int) -> Sequence[str]:
        await found.wait()
        return ["127.0.0.1"]

    async with serving(lambda *_: whole()) as (_, server):
        client = PictureClient(ssl.create_default_context(), Dialler(resolve, None), Dialler(resolve, None), 4)
        asking = asyncio.ensure_future(client.ask(Origin("http", "a.example", server.port, True), b"", 5.0, 5.0))
        await asyncio.sleep(0.01)
        await client.aclose()
        found.set()
        with pytest.raises(NetworkFault, match="closed"):
            await asking
        await eventually(lambda: all(writer.is_closing() for writer in server.writers))
        assert not client._open


async def test_a_connection_that_ended_before_it_was_ours_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count as open for ever."""

    async def ended(_: PictureClient, connection: Connection, socket: Any, *__: object) -> None:
        socket.close()
        connection.connection_made(FakeTransport())
        connection.connection_lost(None)

    monkeypatch.setattr(PictureClient, "_join", ended)
    async with serving(lambda *_: whole()) as (fetch, server):
        assert await fetch() == "image_unreachable"
        assert not server.fetcher._client._open


async def test_nothing_is_held_of_a_fetch_that_failed() -> None:
    """Not until the collector comes: eight megabytes an answer that broke off would be much."""
    # The answer, what comes of it, whether the server then ends the connection.
    cases = [
        (OK + b"Content-Length: 5000\r\n\r\n" + PNG, "image_unreachable", True),
        (OK + CHUNKED.replace(b"abc\r\n", b"abcd"), "image_unreachable", False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 3000, "image_unreachable", False),
        (OK + b"Content-Length: 5000\r\n\r\n<html>" + b"x" * 50, "not_an_image", False),
        (b"SSH-2.0\r\n", "image_unreachable", False),
    ]
    gc.collect()
    gc.disable()
    try:
        for answer, code, ends in cases:
            async with serving(lambda *_, answer=answer: answer) as (fetch, server):
                fetched = asyncio.ensure_future(fetch())
                await eventually(lambda server=server: server.requests == [1])  # type: ignore[misc]
                if ends:
                    server.writers[0].close()
                assert await fetched == code
            del fetched
            await asyncio.sleep(0.01)
            assert not [own for own in gc.get_objects() if type(own) is Connection], answer[:60]
    finally:
        gc.enable()


async def test_an_answer_that_is_not_read_to_its_end_ends_its_connection() -> None:
    """What is too large, or no picture, is left where it is."""
    text = OK + b"Content-Length: 100000\r\n\r\n" + b"<html>" + b"x" * 500
    async with serving(lambda number, _: text if number == 0 else whole()) as (fetch, server):
        assert await fetch() == "not_an_image"
        assert await fetch() == PNG
        assert server.requests == [1, 1]


async def test_a_kept_connection_that_ends_unanswered_is_replaced_once() -> None:
    """The server may end it as it is used again; a new one that does so is the server's failure."""
    async with serving(lambda _, request: whole() if request == 0 else b"") as (fetch, server):
        assert await fetch() == PNG
        assert await fetch() == PNG
        assert server.requests == [2, 1]
    async with serving(lambda number, request: whole() if (number, request) == (0, 0) else b"") as (fetch, server):
        assert await fetch() == PNG
        assert await fetch() == "image_unreachable"
        assert server.requests == [2, 1]


async def test_half_an_answer_on_a_kept_connection_is_not_asked_for_again() -> None:
    """Whatever came of it, the server had begun."""
    async with serving(lambda _, request: whole() if request == 0 else b"HTTP/1.1 2") as (fetch, server):
        assert await fetch() == PNG
        again = asyncio.ensure_future(fetch())
        await eventually(lambda: server.requests == [2])
        server.writers[0].close()
        assert await again == "image_unreachable"
        assert server.requests == [2]


async def test_a_connection_rests_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is ended by us."""
    monkeypatch.setattr(picture_client, "_KEPT_SECONDS", 0.05)
    async with serving(lambda *_: whole()) as (fetch, server):
        assert await fetch() == PNG
        await eventually(lambda: server.writers[0].is_closing())
        assert await fetch() == PNG
        assert server.requests == [1, 1]


async def test_resting_connections_make_room() -> None:
    """Where as many are open as may be, the one that rested longest goes, whosever it is."""
    servers = [Server(lambda *_: whole()) for _ in range(3)]
    async with AsyncExitStack() as stack:
        listening = [await asyncio.start_server(own.handle, "127.0.0.1", 0) for own in servers]
        origins = [f"http://127.0.0.1:{own.sockets[0].getsockname()[1]}" for own in listening]
        fetcher = Fetcher(UrlPolicy(trusted_origins=frozenset(origins)), FetchLimits(max_fetches=4))
        stack.push_async_callback(fetcher.aclose)
        # Of a host with four connections two are kept, half of all.
        await asyncio.gather(*(fetcher.fetch(f"{origins[0]}/{number}") for number in range(4)))
        await eventually(lambda: sum(writer.is_closing() for writer in servers[0].writers) == 2)
        assert len(fetcher._client._open) == 2
        for origin in origins[1:] * 2:
            await fetcher.fetch(f"{origin}/1")
            assert len(fetcher._client._open) <= 4
        assert [own.requests for own in servers[1:]] == [[2], [2]]

        client, most = fetcher._client, 0
        dialler = client._diallers[True]
        dial = dialler.dial

        async def counted(*arguments: Any) -> Any:
            nonlocal most
            alive = sum(own._transport is None or not own._transport.is_closing() for own in client._open)
            most = max(most, alive + client._dialled)
            return await dial(*arguments)

        dialler.dial = counted  # type: ignore[assignment, method-assign]
        await asyncio.gather(*(fetcher.fetch(f"{origins[0]}/{number}") for number in range(4)))
        assert most == 4  # those that are being made count, too
        for own in listening:
            own.close()
    await eventually(lambda: all(writer.is_closing() for own in servers for writer in own.writers))


@pytest.mark.parametrize("length", [True, False])
async def test_large_bodies_come_whole(length: bool) -> None:
    """More than is read ahead, packed or not, with its length or until the server ends."""
    body = PNG + zlib.compress(bytes(range(256)) * 4, 0) * 4000
    for packed, headers in ((body, ()), (gzip.compress(body, 1), (b"Content-Encoding: gzip",))):
        answer = whole(packed, *headers)
        if not length:
            answer = answer.replace(b"Content-Length:", b"X:")
        async with serving(lambda _, request, answer=answer: answer if request == 0 else b"") as (fetch, server):  # type: ignore[misc]
            fetched = asyncio.ensure_future(fetch())
            await eventually(lambda server=server: server.requests == [1])  # type: ignore[misc]
            if not length:
                with suppress(ConnectionError):  # what is unpacked to its end is not read on
                    await server.writers[0].drain()
                server.writers[0].close()
            assert await fetched == body


@pytest.mark.parametrize(
    "tail", [b"x" * (4 << 20), b"\0\0\0\xff\xff" * 800_000], ids=["behind its end", "in no blocks"]
)
async def test_what_is_packed_into_nothing_costs_nothing(tail: bytes) -> None:
    """Bytes that never become any count as well: behind the packed picture, and in blocks that hold nothing."""
    packer = zlib.compressobj(wbits=31)
    ended = tail[:1] == b"x"
    packed = packer.compress(PNG) + (packer.flush() if ended else packer.flush(zlib.Z_SYNC_FLUSH)) + tail
    limits = FetchLimits(first_byte_seconds=20, total_seconds=20, max_bytes=1 << 20)
    head = OK + b"Content-Encoding: gzip\r\n\r\n"
    async with serving(lambda *_: head + packed, limits) as (fetch, server):
        assert await fetch() == (PNG if ended else "image_unreachable")
        assert server.requests == [1]
        await eventually(lambda: server.writers[0].is_closing())


async def test_nothing_but_a_tag_goes_into_a_header() -> None:
    """A shared cache may hold garbage: a line break in it would be a header of its own."""
    async with serving(lambda *_: whole()) as (fetch, server):
        for etag in ('"a"', 'W/"b"', '"a"\r\nX: y', "none", '"\u00e4"', ""):
            assert await fetch(etag) == PNG
        sent = [[line for line in head.split(b"\r\n") if line.startswith(b"If-None")] for head in server.heads[0]]
        assert sent == [[b'If-None-Match: "a"'], [b'If-None-Match: W/"b"'], [], [], [], []]
        assert all(head.count(b"\r\n") == 6 + (place < 2) for place, head in enumerate(server.heads[0]))
