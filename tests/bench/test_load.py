"""The load benches' own arithmetic, and that their generator is an open loop."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from bench.open_loop import Connections, Reply, closed_loop, lone_loop, open_loop
from bench.overload import is_good, recovery_seconds, summary
from bench.served import products
from bench.soak import KINDS, Sample, slope
from tests.service.serving import PictureServer, picture_server

ANSWER = b'{"results":[],"warnings":[],"stage":"reranked"}'


def _reply(due: float, seconds: float = 0.1, status: int = 200, retry_after: str | None = None) -> Reply:
    return Reply(due, seconds, status, retry_after, "")


def test_good_is_answered_in_time() -> None:
    """Late answers, refusals and silence are not; goodput is a share of the capacity."""
    replies = [_reply(0.0), _reply(0.5, 0.9), _reply(1.0, status=429, retry_after="1"), _reply(1.5, status=0)]
    assert [is_good(own) for own in replies] == [True, False, False, False]
    found = summary(replies, seconds=2.0, capacity=1.0)
    assert (found["goodput_of_capacity"], found["late"], found["share_429"]) == (0.5, 1, 0.25)
    assert (found["statuses"], found["retry_after_seconds"]) == ({"0": 1, "200": 2, "429": 1}, {"1": 1})
    assert found["p99_ms"] == pytest.approx(892)


def test_recovery_is_over_with_the_last_request_that_was_not_answered_well() -> None:
    """0 when all were."""
    assert recovery_seconds([_reply(0.1), _reply(0.4, status=429), _reply(0.9)]) == 0.4
    assert recovery_seconds([_reply(0.1)]) == 0


def test_a_slope_is_per_minute() -> None:
    """Of a line it is the line's."""
    samples = [Sample(minute * 60.0, 100 + 0.5 * minute, 4, 30 - minute, 1) for minute in range(6)]
    assert [slope(samples, name) for name in ("resident_mib", "handles", "threads")] == [0.5, -1.0, 0.0]


def test_the_mixture_is_of_a_hundred() -> None:
    """So that its numbers read as per cent."""
    assert sum(KINDS.values()) == 100


def _answering(server: PictureServer, seconds: float) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        await reader.readexactly(int(head.lower().partition("content-length: ")[2].split("\r\n")[0]))
        await asyncio.sleep(seconds)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))

    server.routes["/recommend"] = reply


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    """A server that takes .3 s is asked as often as a quick one; latency counts from when a request was due."""
    async with picture_server() as server:
        _answering(server, 0.3)
        connections = Connections(server.port)
        replies = await open_loop(connections, "/recommend", products("http://x"), per_second=100, seconds=0.5, seed=1)
        assert len(replies) > 20
        assert len(server.heads) == len(replies)
        assert {own.status for own in replies} == {200}
        assert min(own.seconds for own in replies) >= 0.3
        assert [own.due for own in replies] == sorted(own.due for own in replies)
        few = await closed_loop(connections, "/recommend", products("http://x"), clients=2, seconds=0.5)
        assert 2 <= len(few) <= 4
        await connections.aclose()


async def test_a_lone_client_asks_one_after_the_other_on_one_connection() -> None:
    """Also when an answer comes in pieces; what is timed is from the question to the last byte."""
    async with picture_server() as server:

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
            while True:
                await reader.readexactly(int(head.lower().partition("content-length: ")[2].split("\r\n")[0]))
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
                for piece in (answer[:10], answer[10:50], answer[50:]):
                    await asyncio.sleep(0.02)
                    writer.write(piece)
                try:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                except asyncio.IncompleteReadError:
                    return

        server.routes["/recommend"] = reply
        replies = await asyncio.to_thread(lone_loop, server.port, "/recommend", products("http://x"), 0.4)
        assert 2 <= len(replies) <= 7
        assert all(own.status == 200 and own.seconds >= 0.06 for own in replies)
        assert len(server.heads) == 1
        server.raw("/recommend", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        with pytest.raises(ConnectionResetError, match="closed the connection after"):
            await asyncio.to_thread(lone_loop, server.port, "/recommend", products("http://x"), 0.4)


async def test_no_answer_is_an_outcome() -> None:
    """A connection that is closed at once."""
    async with picture_server() as server:
        server.raw("/recommend", b"")
        replies = await open_loop(Connections(server.port), "/recommend", products("http://x"), 50, 0.2, seed=1)
        assert {own.status for own in replies} == {0}


def test_products_are_all_different() -> None:
    """Titles and pictures both, or a cache would answer."""
    made = list(itertools.islice(products("http://x"), 500))
    assert len({own["product"]["title"] for own in made}) == 500
    assert len({own["product"]["images"][0] for own in made}) == 500
