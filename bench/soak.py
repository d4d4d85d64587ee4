"""Fifteen minutes at 70 % of the capacity, good and bad requests mixed: does anything grow?

    python -m bench.soak [--minutes 15] [--smoke] [--out bench/results/NAME.json] [--plot docs/figures/NAME.svg]

The service of bench/overload.py beside a real Redis. Of 100 requests 60 are new, 15 were asked before, 25 are bad: no
JSON, too large, wrong fields, unknown paths, pictures that are broken, slow, absent or at private addresses, clients
that hang up or stop in the middle of a head. Resident memory, threads, file handles and asyncio tasks are looked at
every five seconds; slopes are fitted from minute five on.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.open_loop import Connections, Reply, closed_loop
from bench.overload import CLIENTS, ENCODER_MILLISECONDS
from bench.served import (
    ServiceProcess,
    add_result_options,
    machine,
    picture_server,
    products,
    service_process,
    write_results,
)
from tests.bundle_factory import make_tiny_bundle
from tests.service.redis_process import redis_process

LOAD = 0.7
SETTLED_SECONDS = 300.0
SAMPLE_SECONDS = 5.0
KINDS = {
    "new": 60, "asked before": 15, "no JSON": 3, "too large": 1, "wrong fields": 4, "unknown path": 2, "broken picture": 4,
    "slow picture": 2, "private picture": 3, "hangs up": 4, "half a head": 2,
}  # fmt: skip
"""Of a hundred requests."""


@dataclass(frozen=True)
class Sample:
    """What the service holds at one moment."""

    seconds: float
    resident_mib: float
    threads: int
    handles: int
    tasks: int


class Mixture:
    """Sends requests of all kinds and counts what came back."""

    def __init__(self, port: int, origin: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port, self._origin = port, origin
        self._connections = Connections(port)
        self._fresh = products(origin)
        self._numbers = itertools.count()
        self._special: dict[str, Callable[[str], Awaitable[int | str]]] = {
            "no JSON": self._no_json,
            "too large": self._too_large,
            "unknown path": self._unknown_path,
            "hangs up": self._hangs_up,
            "half a head": self._half_a_head,
        }

    async def send(self, kind: str) -> None:
        """One request of a kind."""
        status: int | str
        try:
            async with asyncio.timeout(10):
                status = await self._special.get(kind, self._product)(kind)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            status = type(error).__name__
        self.outcomes[f"{kind}: {status}"] += 1

    async def aclose(self) -> None:
        """Close what is kept."""
        await self._connections.aclose()

    async def _post(self, body: bytes, path: str = "/recommend") -> int:
        status, _, _ = await self._connections.post(path, body)
        return status

    async def _product(self, kind: str) -> int:
        body = next(self._fresh)
        number = next(self._numbers)
        if kind == "asked before":
            body = {
                "product": {"title": f"red shoe {number % 50}", "images": [f"{self._origin}/kept/{number % 50}.jpg"]}
            }
        elif kind == "broken picture":
            body["product"]["images"] = [f"{self._origin}/broken/{number}.jpg"]
        elif kind == "slow picture":
            body["product"]["images"] = [f"{self._origin}/slow/{number}.jpg"]
        elif kind == "private picture":
            body["product"]["images"] = [f"http://10.0.0.{number % 250}/{number}.jpg"]
        elif kind == "wrong fields":
            body = {"product": {"titel": "x" * (number % 3000)}, "k": -number, f"f{number}": None}
        return await self._post(json.dumps(body).encode())

    async def _no_json(self, _: str) -> int:
        return await self._post(b'{"product": {"title": "\xff' + b"[" * (next(self._numbers) % 5000))

    async def _too_large(self, _: str) -> int:
        return await self._post(b" " * ((1 << 20) + 1))

    async def _unknown_path(self, _: str) -> int:
        return await self._post(b"{}", f"/nothing/{next(self._numbers)}")

    async def _hangs_up(self, _: str) -> str:
        writer = (await asyncio.open_connection("127.0.0.1", self._port))[1]
        body = json.dumps(next(self._fresh)).encode()
        head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        await asyncio.sleep(0.01)
        return await _closed(writer)

    async def _half_a_head(self, _: str) -> str:
        writer = (await asyncio.open_connection("127.0.0.1", self._port))[1]
        writer.write(b"POST /recommend HTTP/1.1\r\nHost:")
        await writer.drain()
        await asyncio.sleep(3)
        return await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> str:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return "closed"


async def soak(service: ServiceProcess, origin: str, minutes: float) -> dict[str, Any]:
    """Measure the capacity, then the mixture for so long."""
    connections = Connections(service.port)
    warm: list[Reply] = await closed_loop(connections, "/recommend", products(origin, 10_000_000), CLIENTS, 4)
    replies = await closed_loop(connections, "/recommend", products(origin, 20_000_000), CLIENTS, 6)
    await connections.aclose()
    capacity = sum(own.status == 200 for own in replies) / 6
    print(f"capacity {capacity:.1f} a second after {len(warm)} requests", flush=True)
    mixture, samples = Mixture(service.port, origin), list[Sample]()
    watching = asyncio.ensure_future(_watch(service, samples))
    try:
        await mixed_load(mixture, capacity * LOAD, minutes * 60)
    finally:
        watching.cancel()
        await mixture.aclose()
    settled = [own for own in samples if own.seconds >= min(SETTLED_SECONDS, minutes * 20)]
    return {
        "minutes": minutes,
        "capacity_per_second": round(capacity, 1),
        "requests": sum(mixture.outcomes.values()),
        "outcomes": dict(sorted(mixture.outcomes.items())),
        "slopes_per_minute": {name: slope(settled, name) for name in ("resident_mib", "threads", "handles", "tasks")},
        "samples": [asdict(own) for own in samples[:: max(1, len(samples) // 60)]],
    }


async def _watch(service: ServiceProcess, samples: list[Sample]) -> None:
    began = time.monotonic()
    while True:
        counts = service.counts()
        samples.append(
            Sample(
                round(time.monotonic() - began, 1), round(service.resident_mib(), 2), counts["threads"], counts["handles"],
                service.tasks,
            )
        )  # fmt: skip
        if len(samples) % 12 == 0:
            print(samples[-1], flush=True)
        await asyncio.sleep(SAMPLE_SECONDS)


async def mixed_load(mixture: Mixture, per_second: float, seconds: float) -> None:
    """Requests of all kinds at Poisson arrivals; returns when all have their outcome."""
    chance, began, due = random.Random(0), time.perf_counter(), 0.0
    sent: set[asyncio.Task[None]] = set()
    for kind in _kinds(chance):
        due += chance.expovariate(per_second)
        if due >= seconds:
            break
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        task = asyncio.ensure_future(mixture.send(kind))
        sent.add(task)
        task.add_done_callback(sent.discard)
    await asyncio.gather(*sent)


def _kinds(chance: random.Random) -> Iterator[str]:
    while True:
        yield from chance.choices(list(KINDS), list(KINDS.values()), k=100)


def slope(samples: Sequence[Sample], name: str) -> float:
    """Least squares, per minute."""
    if len(samples) < 3:
        return 0.0
    minutes = [own.seconds / 60 for own in samples]
    return round(float(np.polyfit(minutes, [getattr(own, name) for own in samples], 1)[0]), 4)


def plot(found: dict[str, Any], path: Path) -> None:
    """Memory and counts over time."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "soak"
    minutes = [own["seconds"] / 60 for own in found["samples"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    left.plot(minutes, [own["resident_mib"] for own in found["samples"]])
    left.set(
        xlabel="minutes", ylabel="resident MiB", ylim=(0, 1.1 * max(own["resident_mib"] for own in found["samples"]))
    )
    for name in ("threads", "handles", "tasks"):
        right.plot(minutes, [own[name] for own in found["samples"]], label=name)
    right.set(xlabel="minutes", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


async def run(minutes: float) -> dict[str, Any]:
    """One service, one Redis."""
    with tempfile.TemporaryDirectory() as folder, redis_process(Path(folder), "--maxmemory", "64mb") as redis:
        bundle = make_tiny_bundle(Path(folder) / "bundle", labels=2000, shortlist_size=300)
        async with picture_server() as origin:
            flags = (
                *("--worker-threads", "1", "--fetch-trusted-origins", origin, "--drain-seconds", "0"),
                *("--redis-url", redis.url, "--head-seconds", "2"),
                # Full before minute five, or the cache's own growth would hide what matters.
                *("--cache-bytes", "1000000", "--fetch-allow-http"),
            )
            with service_process(bundle, ENCODER_MILLISECONDS, flags, core=1) as service:
                return await soak(service, origin, minutes)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    add_result_options(parser)
    parser.add_argument("--smoke", action="store_true", help="ten seconds: whether it runs")
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        print("bench.soak: left out, redis-server not on PATH")
        return 0
    facts = machine()
    found = {**facts, **asyncio.run(run(1 / 6 if options.smoke else options.minutes))}
    print(json.dumps({name: found[name] for name in ("requests", "outcomes", "slopes_per_minute")}, indent=1))
    write_results(found, options, plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
