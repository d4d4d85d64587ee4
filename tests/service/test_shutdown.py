"""Ends under load: SIGTERM loses no accepted request; a second SIGTERM and SIGKILL leave nothing half-written."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.bundle_factory import DIMENSION, make_tiny_bundle
from tests.service.redis_process import redis_process
from tests.service.shutdown_load import CLIENTS, one_ending
from tests.service.test_process import ENOUGH_SECONDS, ROOT, Served, served


@pytest.mark.parametrize("seed", range(3))
def test_sigterm_under_load_loses_nothing(seed: int) -> None:
    """Whatever was sent while the process called itself ready is answered 200, before and after the signal."""
    tally = one_ending(seed)
    assert tally.lost == []
    assert set(tally.statuses) == {200}
    assert tally.during_drain > 0


def test_a_second_sigterm_finishes_what_is_under_way() -> None:
    """The drain is cut short, the answers are not; no line of the log is half a line."""
    with served("--drain-seconds", "60", "--deadline-milliseconds", "5000", MUFIN_TEST_TITLE_SECONDS="0.3") as own:
        url = own.until_ready()

        async def ask(client: httpx.AsyncClient, number: int) -> int:
            body = {"product": {"title": f"red shoes {number}"}, "k": 1}
            return (await client.post(f"{url}/recommend", json=body)).status_code

        async def ask_and_end() -> list[int]:
            async with httpx.AsyncClient(timeout=ENOUGH_SECONDS) as client:
                asked = [asyncio.ensure_future(ask(client, number)) for number in range(CLIENTS)]
                await asyncio.sleep(0.2)
                own.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.1)
                own.process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        assert asyncio.run(ask_and_end()) == [200] * CLIENTS
        assert own.end() == 0
        assert own.rest == []


@contextmanager
def _serving(bundle: Path, redis_url: str) -> Iterator[Served]:
    command = [
        sys.executable,
        "-m",
        "service",
        "--port",
        "0",
        "--recommend-bundle",
        str(bundle),
        "--drain-seconds",
        "0",
    ]
    environment = {**os.environ, "MUFIN_REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        own = Served(process)
        try:
            yield own
        finally:
            process.kill()
            own.end()


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


async def _load_until_gone(url: str, process: subprocess.Popen[str], how: tuple[int, ...]) -> int:
    """Ask with new titles without pause, send the signals, go on until nobody answers; how many were answered."""
    answered = 0
    titles = iter(range(1_000_000))

    async def client() -> None:
        nonlocal answered
        async with httpx.AsyncClient(timeout=ENOUGH_SECONDS) as own:
            while True:
                body = {"product": {"title": f"red shoe {next(titles)}"}, "k": 3}
                try:
                    response = await own.post(f"{url}/recommend", json=body)
                except httpx.TransportError:
                    return
                answered += response.status_code == 200

    clients = [asyncio.ensure_future(client()) for _ in range(4)]
    await asyncio.sleep(0.3)
    for number in how:
        process.send_signal(number)
    await asyncio.gather(*clients)
    return answered


async def _values(url: str) -> list[bytes]:
    redis = Redis.from_url(url)
    values = [await redis.get(key) async for key in redis.scan_iter("mufin:v1:*:title:*")]
    await redis.aclose()
    return [value for value in values if isinstance(value, bytes)]


@pytest.mark.parametrize("how", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGKILL,)])
def test_an_end_in_the_middle_leaves_nothing_half_written(tmp_path: Path, how: tuple[int, ...]) -> None:
    """The bundle's bytes, every value in Redis, and an answer that the next process gives as this one did."""
    bundle = make_tiny_bundle(tmp_path / "bundle")
    before = _hashes(bundle)
    body = {"product": {"title": "blue shoe women"}, "k": 5}
    with redis_process(tmp_path) as server:
        with _serving(bundle, server.url) as own:
            url = own.until_ready()
            first = httpx.post(f"{url}/recommend", json=body).json()["results"]
            assert asyncio.run(_load_until_gone(url, own.process, how)) > 0
            assert own.end() == (0 if how[0] == signal.SIGTERM else -signal.SIGKILL)
        values = asyncio.run(_values(server.url))
        assert len(values) > 1
        assert {len(value) for value in values} == {2 * DIMENSION}
        assert _hashes(bundle) == before
        with _serving(bundle, server.url) as own:
            again = httpx.post(f"{own.until_ready()}/recommend", json=body).json()["results"]
            assert again == first
