"""Caches: bounds, order of forgetting, single flight, and a Redis that misbehaves."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cache import LayeredCache, MemoryCache, SingleFlight, cache_key
from service.redis_client import FAILURES, RedisClient
from service.shared_cache import RedisCache


async def test_memory_is_bounded_in_bytes_and_forgets_what_was_used_longest_ago() -> None:
    """The least recently used go first, and an entry larger than everything is not kept."""
    cache = MemoryCache(3 * (200 + 1 + 100))
    for key in "abc":
        await cache.put_many({key: bytes(100)}, 60)
    await cache.get_many(["a"])
    await cache.put_many({"d": bytes(100)}, 60)
    assert [value is not None for value in await cache.get_many(["a", "b", "c", "d"])] == [True, False, True, True]
    await cache.put_many({"e": bytes(10_000)}, 60)
    assert await cache.get_many(["e"]) == [None]
    assert cache.used_bytes <= 3 * 301


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 400)), max_size=60))
def test_memory_never_passes_its_bound(puts: list[tuple[str, int]]) -> None:
    """Whatever is put in, replaced or forgotten."""

    async def fill() -> None:
        cache = MemoryCache(1000)
        for key, size in puts:
            await cache.put_many({key: bytes(size)}, 60)
            assert cache.used_bytes <= 1000
        await cache.aclose()
        assert cache.used_bytes == 0

    asyncio.run(fill())


async def test_entries_end_with_their_time() -> None:
    """A value is not given out after its time, and its bytes are free again."""
    now = 0.0
    cache = MemoryCache(10_000, clock=lambda: now)
    await cache.put_many({"a": b"1"}, 60)
    now = 59.0
    assert await cache.get_many(["a"]) == [b"1"]
    now = 60.0
    assert await cache.get_many(["a"]) == [None]
    assert cache.used_bytes == 0


async def test_a_far_hit_is_kept_near() -> None:
    """The second question does not reach the far cache."""
    near, far = MemoryCache(10_000), MemoryCache(10_000)
    layered = LayeredCache(near, far)
    await far.put_many({"a": b"1"}, 60)
    assert await layered.get_many(["a", "b"]) == [b"1", None]
    assert await near.get_many(["a"]) == [b"1"]
    await layered.put_many({"c": b"3"}, 60)
    assert await far.get_many(["c"]) == [b"3"]


def test_keys_do_not_collide_on_how_a_text_is_split() -> None:
    """Fields are length-prefixed before hashing."""
    assert cache_key("e", "title", b"ab", b"c") != cache_key("e", "title", b"a", b"bc")
    assert cache_key("e", "title", b"a") != cache_key("e", "image", b"a")
    assert cache_key("e1", "title", b"a") != cache_key("e2", "title", b"a")
    assert cache_key("e", "title", b"a").startswith("mufin:v1:e:title:")


async def test_identical_work_is_done_once() -> None:
    """All who ask meanwhile get the one result; afterwards the work may be done anew."""
    flights: SingleFlight[int] = SingleFlight()
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        return runs

    assert await asyncio.gather(*(flights.run("k", work) for _ in range(5))) == [1] * 5
    assert await flights.run("k", work) == 2


async def test_a_leader_that_leaves_does_not_stop_the_others() -> None:
    """The work goes on while anybody waits, and is cancelled when nobody does."""
    flights: SingleFlight[int] = SingleFlight()
    cancelled = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 7

    leader, follower = (asyncio.ensure_future(flights.run("k", work)) for _ in range(2))
    await asyncio.sleep(0.01)
    leader.cancel()
    assert await follower == 7
    alone = asyncio.ensure_future(flights.run("k", work))
    await asyncio.sleep(0.01)
    alone.cancel()
    await asyncio.wait_for(cancelled.wait(), 1)
    assert not flights._flights


async def test_a_failure_reaches_all_who_wait() -> None:
    """And is not remembered."""
    flights: SingleFlight[int] = SingleFlight()

    async def fail() -> int:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    outcomes = await asyncio.gather(*(flights.run("k", fail) for _ in range(3)), return_exceptions=True)
    assert [str(own) for own in outcomes] == ["no"] * 3
    assert not flights._flights


async def test_a_leader_shares_the_first_of_its_results() -> None:
    """Whoever asks meanwhile waits for that one and does nothing."""
    flights: SingleFlight[int] = SingleFlight()

    async def work() -> tuple[int, str]:
        await asyncio.sleep(0.01)
        return 7, "mine"

    leader = asyncio.ensure_future(flights.lead("k", work()))
    await asyncio.sleep(0)
    assert flights.is_under_way("k")
    assert await asyncio.gather(*(flights.run("k", _never) for _ in range(3))) == [7] * 3
    assert await leader == (7, "mine")
    assert not flights.is_under_way("k")


async def test_who_waited_for_a_leader_that_was_cut_begins_anew() -> None:
    """One of them, for all; one that is cut itself is out of it."""
    flights: SingleFlight[int] = SingleFlight()
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        return 8

    leader = asyncio.ensure_future(flights.lead("k", asyncio.sleep(60, (7, None))))
    await asyncio.sleep(0)
    followers = [asyncio.ensure_future(flights.run("k", work)) for _ in range(3)]
    await asyncio.sleep(0)
    followers[0].cancel()
    leader.cancel()
    assert await asyncio.gather(*followers[1:]) == [8, 8]
    assert (runs, leader.cancelled(), followers[0].cancelled()) == (1, True, True)
    assert not flights.is_under_way("k")


async def test_who_waited_for_a_leader_that_ran_out_of_time_begins_anew() -> None:
    """That leader's time was its own."""
    flights: SingleFlight[int] = SingleFlight()

    async def late() -> tuple[int, None]:
        await asyncio.sleep(0.01)
        raise TimeoutError

    async def work() -> int:
        return 8

    leader = asyncio.ensure_future(flights.lead("k", late()))
    await asyncio.sleep(0)
    assert await flights.run("k", work) == 8
    with pytest.raises(TimeoutError):
        await leader
    assert not flights.is_under_way("k")


async def test_a_leader_s_failure_reaches_all_who_wait() -> None:
    """And is not remembered."""
    flights: SingleFlight[int] = SingleFlight()

    async def fail() -> tuple[int, None]:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    leader = asyncio.ensure_future(flights.lead("k", fail()))
    await asyncio.sleep(0)
    outcomes = await asyncio.gather(leader, *(flights.run("k", _never) for _ in range(2)), return_exceptions=True)
    assert [str(own) for own in outcomes] == ["no"] * 3
    assert not flights.is_under_way("k")


async def _never() -> int:
    raise AssertionError("somebody else is at it")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real Redis on a free port; skipped where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on PATH: apt-get install redis-server")
    port = _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        signal.sigtimedwait([], 0.02)
    yield f"redis://127.0.0.1:{port}/0", process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


async def test_redis_keeps_values_and_their_time(redis_server: tuple[str, subprocess.Popen[bytes]]) -> None:
    """One MGET, one pipeline, against a real server; the time is bounded by the longest."""
    client = RedisClient(redis_server[0], 1.0)
    cache = RedisCache(client, longest_ttl_seconds=100)
    assert await cache.get_many(["a", "b"]) == [None, None]
    await cache.put_many({"a": b"\x00\xff", "b": b"2"}, 1e9)
    assert await cache.get_many(["a", "x", "b"]) == [b"\x00\xff", None, b"2"]
    assert 0 < (await client.ask(lambda redis: redis.ttl("a")) or 0) <= 100
    assert await cache.get_many([]) == []
    await cache.aclose()


async def test_a_redis_that_stalls_or_dies_is_a_cache_that_knows_nothing(
    redis_server: tuple[str, subprocess.Popen[bytes]],
) -> None:
    """Stopped, then killed: no exception, and the breaker opens."""
    url, process = redis_server
    client = RedisClient(url, 0.05)
    cache = RedisCache(client, 100)
    process.send_signal(signal.SIGSTOP)
    for _ in range(FAILURES):
        assert await cache.get_many(["a"]) == [None]
    assert client.breaker.is_open
    await cache.put_many({"a": b"1"}, 10)
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    client.breaker.succeeded()
    assert await cache.get_many(["a"]) == [None]
    await cache.aclose()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"*1\r\n:5\r\n", b"-ERR no\r\n", b"\xff\xfe\x00", b""])
async def test_a_redis_that_answers_garbage_costs_nothing(answer: bytes) -> None:
    """Whatever comes back, the answer is that nothing is known."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    cache = RedisCache(RedisClient(f"redis://127.0.0.1:{port}", 0.2), 100)
    for _ in range(FAILURES + 1):
        assert await cache.get_many(["a", "b"]) == [None, None]
        await cache.put_many({"a": b"1"}, 10)
    await cache.aclose()
    server.close()
