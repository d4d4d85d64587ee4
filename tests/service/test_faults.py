"""What breaks around the service, one by one, and what users see of it. docs/reliability.md has the table."""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from mufin.bundle import TEXT_GRAPH_FILE
from service.redis_client import FAILURES
from tests.bundle_factory import make_tiny_bundle
from tests.service.redis_process import RedisProcess, free_port, redis_process
from tests.service.serving import picture, picture_server, running
from tests.service.test_process import ENOUGH_SECONDS, ROOT, Served, served

REQUESTS = 12


async def _ask(client: httpx.AsyncClient, title: str, *images: str) -> httpx.Response:
    return await client.post("/recommend", json={"product": {"title": title, "images": list(images)}, "k": 3})


async def _ask_all(client: httpx.AsyncClient, name: str) -> list[int]:
    """Statuses of several new titles, one after the other, and of readiness after each."""
    found = []
    for number in range(REQUESTS):
        found.append((await _ask(client, f"red shoes {name} {number}")).status_code)
        found.append((await client.get("/readyz")).status_code)
    return found


FINE = [200] * (2 * REQUESTS)


# ---- Redis


async def test_redis_down_from_the_start(tmp_path: Path) -> None:
    """Every request is answered, and the service is ready."""
    async with running(redis_url=f"redis://127.0.0.1:{free_port()}/0") as (client, _):
        assert await _ask_all(client, "down") == FINE


async def test_redis_killed_and_started_again(tmp_path: Path) -> None:
    """Every request is answered before, while and after; the new, empty one is filled again."""
    with redis_process(tmp_path) as server:
        async with running(redis_url=server.url, redis_timeout_milliseconds=1000) as (client, app):
            assert await _ask_all(client, "before") == FINE
            server.kill()
            assert await _ask_all(client, "while") == FINE
            server.start()
            # As after its rest of 30 s.
            app.state.parts.rate_limiter._client.breaker.succeeded()
            assert await _ask_all(client, "after") == FINE
            # One of those before may have waited for the server to come back.
            assert await _keys(server) >= REQUESTS


async def _keys(server: RedisProcess) -> int:
    """Titles that came to be kept; they are written behind the answers."""
    command = ["redis-cli", "-p", str(server.port), "--scan", "--pattern", "mufin:v1:*:title:*"]
    found = 0
    for _ in range(100):
        listed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        found = len(listed.stdout.split())
        if found >= REQUESTS:
            break
        await asyncio.sleep(0.02)
    return found


async def test_redis_stalled_costs_three_timeouts(tmp_path: Path) -> None:
    """All are answered in less time than the deadline of one, though each question would wait for ever."""
    with redis_process(tmp_path) as server:
        async with running(redis_url=server.url, redis_timeout_milliseconds=50) as (client, app):
            assert (await _ask(client, "warm")).status_code == 200
            server.stall()
            assert await _ask_all(client, "stalled") == FINE
            breaker = app.state.parts.rate_limiter._client.breaker
            assert breaker.is_open
            assert breaker._in_a_row >= FAILURES


@asynccontextmanager
async def _between(port: int, seconds: float) -> AsyncIterator[int]:
    """A port that passes all on to another, and answers back only after a while."""
    tasks: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> None:
        try:
            while piece := await reader.read(65536):
                await asyncio.sleep(wait)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        for task in (forward(reader, far_writer, 0), forward(far_reader, writer, seconds)):
            tasks.add(asyncio.ensure_future(task))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("seconds", "rests"), [(0.005, False), (0.2, True)])
async def test_redis_slow(tmp_path: Path, seconds: float, rests: bool) -> None:
    """Slower than its timeout it is left alone, a little slow it is used; every request is answered."""
    with redis_process(tmp_path) as server:
        async with _between(server.port, seconds) as port:
            url = f"redis://127.0.0.1:{port}/0"
            async with running(redis_url=url, redis_timeout_milliseconds=100) as (client, app):
                assert await _ask_all(client, "slow") == FINE
                assert app.state.parts.rate_limiter._client.breaker.is_open == rests


async def test_redis_full(tmp_path: Path) -> None:
    """maxmemory reached and no eviction allowed: nothing can be kept, everything is answered."""
    with redis_process(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        async with running(redis_url=server.url) as (client, _):
            assert await _ask_all(client, "full") == FINE


async def test_redis_answers_garbage() -> None:
    """Bytes that are no Redis, and values that are no vectors."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(b"*3\r\n$3\r\nabc\r\n:1\r\n$-1\r\nHTTP/1.1 200\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with running(redis_url=f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as (client, _):
        assert await _ask_all(client, "garbage") == FINE
    server.close()


# ---- picture hosts


async def test_a_picture_host_that_is_down_is_left_alone() -> None:
    """Five failures, then nobody asks it for a while; the title answers, other hosts are asked as ever."""
    down = f"http://127.0.0.1:{free_port()}"
    async with picture_server() as pictures:
        pictures.serve("/red.png", picture("red"))
        async with running(fetch_trusted_origins=(down, pictures.origin)) as (client, app):
            for number in range(REQUESTS):
                answer = await _ask(client, f"shoes {number}", f"{down}/{number}.png")
                assert answer.status_code == 200
                assert [own["code"] for own in answer.json()["warnings"]] == ["image_unreachable"]
            assert app.state.parts.fetcher._breakers.of(down).is_open
            good = await _ask(client, "shoes", f"{pictures.origin}/red.png")
            assert (good.json()["warnings"], good.json()["modalities_used"]) == ([], ["title", "image"])
            alone = await client.post("/recommend", json={"product": {"images": [f"{down}/x.png"]}})
            assert (alone.status_code, alone.json()["code"]) == (422, "nothing_usable")


async def test_a_picture_host_that_is_slow_is_left_alone() -> None:
    """Each answer comes within the deadline, without the picture; then the host is spared."""
    async with picture_server() as slow, picture_server() as pictures:
        pictures.serve("/red.png", picture("red"))
        for number in range(REQUESTS):
            slow.silent(f"/{number}.png")
        origins = (slow.origin, pictures.origin)
        async with running(fetch_trusted_origins=origins, deadline_milliseconds=700) as (client, _):
            for number in range(8):
                answer = await _ask(client, f"shoes {number}", f"{slow.origin}/{number}.png")
                assert answer.status_code == 200
                [warning] = answer.json()["warnings"]
                assert warning["code"] == ("image_timeout" if number < 5 else "image_unreachable")
            assert len(slow.heads) == 5
            good = await _ask(client, "shoes", f"{pictures.origin}/red.png")
            assert good.json()["modalities_used"] == ["title", "image"]


# ---- workers


async def test_an_exit_raised_in_a_model_call_is_a_500_and_nothing_more() -> None:
    """The worker lives, the event loop too."""
    async with running(worker_threads=1) as (client, _):
        assert (await _ask(client, "exit")).status_code == 500
        assert (await _ask(client, "red shoes")).status_code == 200


@pytest.mark.parametrize("variable", ["MUFIN_TEST_KILLS_THREAD", "MUFIN_TEST_HANGS"])
def test_a_worker_that_dies_or_hangs_turns_liveness_red(variable: str) -> None:
    """Its request ends at the deadline, the other worker goes on, /livez asks for a new process, and the old one ends."""
    flags = ("--worker-threads", "2", "--hung-after-seconds", "0.5", "--drain-seconds", "0", "--finish-seconds", "1")
    with served(*flags, **{variable: "cursed"}) as own:
        url = own.until_ready()
        assert httpx.get(f"{url}/livez").status_code == 200
        assert httpx.post(f"{url}/recommend", json={"product": {"title": "cursed"}}).status_code == 504
        until = time.monotonic() + ENOUGH_SECONDS
        while (live := httpx.get(f"{url}/livez")).status_code == 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert (live.status_code, live.text[:18]) == (503, "a model call runs ")
        assert httpx.post(f"{url}/recommend", json={"product": {"title": "red shoes"}}).status_code == 200
        own.process.send_signal(signal.SIGTERM)
        assert own.end() == 0


# ---- disk, handles, files


def test_a_full_disk_under_the_log_costs_no_answer() -> None:
    """/dev/full takes no byte: lines are lost, requests are not."""
    port = free_port()
    command = [sys.executable, "-m", "tests.service.serve_memory", "--port", str(port), "--recommend-bundle", "memory"]
    with Path("/dev/full").open("wb") as full, subprocess.Popen(command, cwd=ROOT, stdout=full, stderr=full) as process:
        try:
            _wait_until_ready(port)
            for number in range(REQUESTS):
                body = {"product": {"title": f"red shoes {number}"}}
                assert httpx.post(f"http://127.0.0.1:{port}/recommend", json=body).status_code == 200
        finally:
            process.kill()


def test_a_log_that_nobody_reads_costs_no_answer() -> None:
    """The pipe fills after some 64 kB; once somebody reads on, the log says what it left out."""
    port = free_port()
    command = [sys.executable, "-m", "tests.service.serve_memory", "--port", str(port), "--recommend-bundle", "memory"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_until_ready(port)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                for number in range(600):
                    headers = {"X-Request-ID": f"{number:064}"}
                    assert client.post("/recommend", json={"product": {}}, headers=headers).status_code == 422
                assert client.post("/recommend", json={"product": {"title": "red shoes"}}).status_code == 200
            assert process.stderr is not None
            asked = 0
            for line in process.stderr:
                asked += "/recommend" in line
                if asked == 601:
                    break
        finally:
            process.kill()


def _wait_until_ready(port: int) -> None:
    until = time.monotonic() + ENOUGH_SECONDS
    while time.monotonic() < until:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("never ready")


def test_without_free_file_handles_open_connections_are_served() -> None:
    """A crowd that only connects takes all of them: who is connected is answered, pictures are a warning, and once
    the crowd was cut off, or has gone, everybody is answered again, with pictures."""
    with _one_picture() as pictures:
        flags = ("--head-seconds", "2", "--drain-seconds", "0", "--fetch-trusted-origins", pictures)
        with served(*flags) as own:
            url = own.until_ready()
            port = int(url.rpartition(":")[2])
            body: dict[str, Any] = {"product": {"title": "red shoes", "images": [f"{pictures}/1.png"]}}
            with httpx.Client(base_url=url, timeout=ENOUGH_SECONDS) as kept, ExitStack() as crowd:
                assert kept.get("/readyz").status_code == 200
                used = len(list(Path(f"/proc/{own.process.pid}/fd").iterdir()))
                resource.prlimit(own.process.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
                for _ in range(40):
                    crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
                time.sleep(0.3)
                answer = kept.post("/recommend", json=body)
                assert answer.status_code == 200
                assert [own["code"] for own in answer.json()["warnings"]] == ["image_unreachable"]
                # The crowd is still there; its connections send no head, and are cut off.
                _wait_until_ready(port)
            body["product"]["images"] = [f"{pictures}/2.png"]  # what failed is not asked again for a while
            again = httpx.post(f"{url}/recommend", json=body, timeout=ENOUGH_SECONDS)
            assert (again.status_code, again.json()["modalities_used"]) == (200, ["title", "image"])
            assert own.process.poll() is None


@contextmanager
def _one_picture() -> Iterator[str]:
    """The origin of a server that has one picture, under every path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = picture("red")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _serve_bundle(bundle: Path) -> Served:
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
    return Served(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))


def test_bundle_files_that_vanish_are_missed_by_the_next_start_only(tmp_path: Path) -> None:
    """What is open stays open: same answers, with titles and metadata; a new process says what is missing and ends."""
    bundle = make_tiny_bundle(tmp_path / "bundle", labels=200)

    def ask(url: str) -> list[Any]:
        found: list[Any] = []
        for colour in ("red", "blue", "green", "black", "white"):
            body = {
                "product": {"title": f"{colour} shoe men"},
                "k": 100,
                "explain": True,
                "filter": {"price": {"gte": 0}},
            }
            found.append(httpx.post(f"{url}/recommend", json=body).json()["results"])
        return found

    own = _serve_bundle(bundle)
    try:
        url = own.until_ready()
        before = ask(url)
        assert [len(results) for results in before] == [100] * 5
        shutil.rmtree(bundle)
        assert ask(url) == before
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        own.process.kill()
        own.end()
    again = _serve_bundle(bundle)
    assert again.end() == 1
    assert again.event("bundle_refused")["level"] == "error"
    assert again.rest[-1].startswith("mufin-serve: ")
    for process in (own.process, again.process):
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("name", ["manifest.json", TEXT_GRAPH_FILE])
def test_a_bundle_with_one_file_missing_never_gets_ready(tmp_path: Path, name: str) -> None:
    """Exit code 1, and the file's name."""
    bundle = make_tiny_bundle(tmp_path / "bundle")
    (bundle / name).unlink()
    own = _serve_bundle(bundle)
    assert own.end() == 1
    assert name in own.event("bundle_refused")["reason"]
    assert own.process.stderr is not None
    own.process.stderr.close()
