"""Requests at their own times, whatever became of those before: an open loop over kept connections.

Latency counts from the moment a request was due, so that a service that stalls cannot hide it (coordinated omission).
Knows HTTP and no service.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_LONGEST_SECONDS = 10.0
_NO_ANSWER = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One request's end."""

    due: float
    """Seconds after the beginning of the run."""
    seconds: float
    """From due to the last byte."""
    status: int
    """0: no answer."""
    retry_after: str | None
    degraded: str
    """"" or why a 200 holds less than was asked for"""


@dataclass
class Connections:
    """Kept connections to one port; as many as are needed at once."""

    port: int
    _free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def post(self, path: str, body: bytes, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body. Raises OSError, IncompleteReadError."""
        kept = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = kept
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        try:
            writer.write(head.encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            found = dict(line.split(": ", 1) for line in lines[1:] if line)
            content = await reader.readexactly(int(found["content-length"]))
        except BaseException:
            writer.close()
            raise
        if found.get("connection") == "close":
            writer.close()
        else:
            self._free.append(kept)
        return int(lines[0].split(" ")[1]), found, content

    async def aclose(self) -> None:
        """Close what is kept."""
        for _, writer in self._free:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        self._free.clear()


async def open_loop(
    connections: Connections, path: str, bodies: Iterator[dict[str, Any]], per_second: float, seconds: float, seed: int
) -> list[Reply]:
    """Poisson arrivals at a rate for so long; all replies, in the order in which they were due."""
    chance, began, due = random.Random(seed), time.perf_counter(), 0.0
    asked: list[asyncio.Task[Reply]] = []
    while (due := due + chance.expovariate(per_second)) < seconds:
        wait = began + due - time.perf_counter()
        # Due requests are sent together rather than a timer's grain late each.
        await asyncio.sleep(max(0.0, wait))
        asked.append(asyncio.ensure_future(_ask(connections, path, next(bodies), began, due)))
    return list(await asyncio.gather(*asked))


async def closed_loop(
    connections: Connections, path: str, bodies: Iterator[dict[str, Any]], clients: int, seconds: float
) -> list[Reply]:
    """So many clients, each asking as soon as it was answered."""
    began = time.perf_counter()
    replies: list[Reply] = []

    async def client() -> None:
        while (now := time.perf_counter() - began) < seconds:
            replies.append(await _ask(connections, path, next(bodies), began, now))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


def lone_loop(port: int, path: str, bodies: Iterator[dict[str, Any]], seconds: float) -> list[Reply]:
    """One client, asking as soon as it was answered, on a plain socket: not for an event loop.

    What is timed is the service and the system between: the streams of ``Connections`` take .3 ms of their own, a third of
    what a lone request costs beside its model calls. The body is made before, the answer read after. Raises OSError.
    """
    began, replies = time.perf_counter(), list[Reply]()
    with socket.create_connection(("127.0.0.1", port), timeout=_LONGEST_SECONDS) as own:
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (due := time.perf_counter() - began) < seconds:
            body = json.dumps(next(bodies)).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            asked = time.perf_counter()
            own.sendall(head.encode() + body)
            head_bytes, content = _read_answer(own)
            took = time.perf_counter() - asked
            status = int(head_bytes.split(b" ", 2)[1])
            replies.append(Reply(due, took, status, None, _degraded(content) if status == 200 else ""))
    return replies


def _read_answer(own: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of one answer with a Content-Length."""
    received = _more(own, b"")
    while (end := received.find(b"\r\n\r\n")) < 0:
        received = _more(own, received)
    head = received[:end]
    length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    while len(received) < end + 4 + length:
        received = _more(own, received)
    return head, received[end + 4 :]


def _more(own: socket.socket, received: bytes) -> bytes:
    chunk = own.recv(1 << 16)
    if not chunk:
        raise ConnectionResetError(f"the service closed the connection after {len(received)} bytes of an answer")
    return received + chunk


async def _ask(connections: Connections, path: str, body: dict[str, Any], began: float, due: float) -> Reply:
    try:
        async with asyncio.timeout(_LONGEST_SECONDS):
            status, headers, content = await connections.post(path, json.dumps(body).encode())
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return Reply(due, time.perf_counter() - began - due, _NO_ANSWER, None, "")
    seconds = time.perf_counter() - began - due
    degraded = _degraded(content) if status == 200 else ""
    return Reply(due, seconds, status, headers.get("retry-after"), degraded)


def _degraded(content: bytes) -> str:
    answer = json.loads(content)
    if answer["warnings"]:
        return str(answer["warnings"][0]["code"])
    return "shortlist" if answer["stage"] == "shortlist" else ""
