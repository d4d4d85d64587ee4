"""Requests without pause while a process is told to end: python -m tests.service.shutdown_load --times 100.

The clients do as a gateway does: they ask /readyz every 20 ms and send nothing more once it is not 200. Every request that
was sent until then must be answered. Knows the service by its address only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.service.test_process import served

CLIENTS = 8
_LONGEST_SECONDS = 30.0


@dataclass
class Tally:
    """What became of the requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    during_drain: int = 0
    """Answers that asked for the connection to be closed: they came after the signal."""


class Gateway:
    """Sends while the process is ready."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self.tally = Tally()
        self._port, self._chance = port, chance
        self._open = True

    async def run(self, after_seconds: float, act: Callable[[], None]) -> Tally:
        """Load; ``act`` after a while; returns once the process was found unready and all answers are in."""
        clients = [asyncio.ensure_future(self._client(number)) for number in range(CLIENTS)]
        watch = asyncio.ensure_future(self._watch())
        await asyncio.sleep(after_seconds)
        act()
        async with asyncio.timeout(_LONGEST_SECONDS):
            await asyncio.gather(watch, *clients)
        return self.tally

    async def _watch(self) -> None:
        while self._open:
            asked = await self._connect()
            status, _ = await self._exchange(*asked, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            await _close(asked[1])
            self._open = status == 200
            await asyncio.sleep(0.02)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _client(self, number: int) -> None:
        kept = None
        turn = 0
        while self._open:
            turn += 1
            title = f"red running shoes {number} {turn}"  # each one new, so that each one waits for the model
            body = json.dumps({"product": {"title": title}, "k": 3}).encode()
            head = "POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            try:
                kept = kept or await self._connect()
                status, closes = await self._exchange(*kept, (head % len(body)).encode() + body)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.tally.lost.append(repr(error))
                kept = None
                continue
            self.tally.statuses[status] += 1
            self.tally.during_drain += closes
            if closes or self._chance.random() < 0.2:
                await _close(kept[1])
                kept = None
        if kept is not None:
            await _close(kept[1])

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> tuple[int, bool]:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        return int(head.split(b" ")[1]), b"connection: close" in head


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def one_ending(seed: int, drain_seconds: float = 0.5) -> Tally:
    """Start, load, SIGTERM at a random moment, end. Raises AssertionError when the process does not end well."""
    chance = random.Random(seed)
    flags = ("--drain-seconds", str(drain_seconds), "--worker-threads", "2", "--max-title-batch", "2")
    with served(*flags, MUFIN_TEST_TITLE_SECONDS="0.02") as own:
        port = int(own.until_ready().rpartition(":")[2])
        gateway = Gateway(port, chance)
        tally = asyncio.run(gateway.run(0.2 + 0.3 * chance.random(), lambda: own.process.send_signal(signal.SIGTERM)))
        assert own.end() == 0
    return tally


def main() -> int:
    """As often as wanted; says what was answered and what was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.service.shutdown_load", description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    statuses: Counter[int] = Counter()
    lost: list[str] = []
    drained = 0
    for time in range(options.times):
        tally = one_ending(options.seed + time)
        statuses += tally.statuses
        lost += tally.lost
        drained += tally.during_drain
    answered = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    print(
        f"{options.times} endings: {answered}; {drained} of them after SIGTERM; lost: {len(lost)} {sorted(set(lost))}"
    )
    return 1 if lost or set(statuses) != {200} else 0


if __name__ == "__main__":
    raise SystemExit(main())
