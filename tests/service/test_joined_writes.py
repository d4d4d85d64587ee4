"""An answer leaves in one piece."""

from __future__ import annotations

import asyncio
import socket

import httpx

from service.joined_writes import JoinedWrites
from tests.service.hostile_requests import GOOD
from tests.service.test_process import served


class Recording(asyncio.Transport):
    """What a transport was told."""

    def __init__(self) -> None:
        super().__init__({"peername": ("there", 1)})
        self.told: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_closing():
            raise RuntimeError("the handler is closed")  # as uvloop's
        self.told.append(bytes(data))

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.told


async def test_a_head_waits_for_its_body() -> None:
    """Two writes are one; nothing follows in the loop's next turn; the next answer is as the first."""
    below = Recording()
    joined = JoinedWrites(below)
    for _ in range(2):
        joined.write(b"head ")
        assert below.told == []
        joined.write(b"body")
        assert below.told == [b"head body"]
        await asyncio.sleep(0)
        assert below.told == [b"head body"]
        below.told.clear()


async def test_a_head_without_a_body_leaves_in_the_loops_next_turn() -> None:
    """Also where the body is empty, and a piece of a body that comes later waits no longer than that."""
    below = Recording()
    joined = JoinedWrites(below)
    joined.write(b"100 Continue")
    await asyncio.sleep(0)
    assert below.told == [b"100 Continue"]
    joined.write(b"head ")
    joined.write(b"")
    joined.write(b"late piece")
    joined.write(b"")
    await asyncio.sleep(0)
    assert below.told == [b"100 Continue", b"head ", b"late piece"]


async def test_closing_sends_what_is_held_and_aborting_does_not() -> None:
    """Everything else is the transport's own."""
    below = Recording()
    joined = JoinedWrites(below)
    assert joined.get_extra_info("peername") == ("there", 1) and not joined.is_closing()
    joined.write(b"400")
    joined.close()
    assert below.told == [b"400", "close"] and joined.is_closing()
    await asyncio.sleep(0)
    below.told.clear()
    joined.write(b"head")
    joined.abort()
    await asyncio.sleep(0)
    assert below.told == ["abort"]


async def test_what_is_held_when_the_connection_is_lost_goes_nowhere() -> None:
    """uvloop refuses a write then; nothing is raised in the loop's callbacks, and closing still closes."""
    below = Recording()
    joined = JoinedWrites(below)
    joined.write(b"head")
    below.close()
    await asyncio.sleep(0)
    assert below.told == ["close"]
    joined.write(b"late")
    joined.close()
    assert below.told == ["close", "close"]


def test_an_answer_to_head_comes_though_the_client_sends_no_more() -> None:
    """A head alone must not wait for the loop's next turn, in which the client's end is read."""
    with served("--drain-seconds", "0", "--bid-queries-bundle", "memory") as service:
        service.until_ready()
        url = httpx.URL(service.url)
        for _ in range(20):
            with socket.create_connection((url.host, url.port or 80), timeout=10) as client:
                client.sendall(b"HEAD /recommend HTTP/1.1\r\nHost: h\r\n\r\n")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 405 ")


def test_a_client_wakes_once_for_an_answer() -> None:
    """What it gets in one go is the whole answer, of a real process."""
    with served("--drain-seconds", "0", "--bid-queries-bundle", "memory") as service:
        service.until_ready()
        url = httpx.URL(service.url)
        request = b"POST /bid-queries HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        request += b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
        with socket.create_connection((url.host, url.port or 80), timeout=10) as client:
            for _ in range(20):
                client.sendall(request)
                received = client.recv(1 << 20)
                head, _, body = received.partition(b"\r\n\r\n")
                assert b"content-length: %d\r\n" % len(body) in head + b"\r\n" and body
