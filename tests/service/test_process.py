"""mufin-serve as a process: signals, ports, log lines, a client that hangs up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import onnxruntime
import pytest

from tests.bundle_factory import make_tiny_bundle

ROOT = Path(__file__).parents[2]
ENOUGH_SECONDS = 20.0


class Served:
    """A running process and its log."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.rest: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.rest.append(line)

    def event(self, name: str) -> dict[str, Any]:
        """The first log line of an event."""
        until = time.monotonic() + ENOUGH_SECONDS
        while time.monotonic() < until:
            for line in list(self.lines):
                if line["event"] == name:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"no line {name} among {self.lines} {self.rest}")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.event('listening')['port']}"

    def until_ready(self) -> str:
        """Its URL once requests are taken."""
        self.event("bundle_open")
        return self.url

    def end(self) -> int:
        """Its exit code, once it has ended and its log is read."""
        code = self.process.wait(ENOUGH_SECONDS)
        self._reader.join(ENOUGH_SECONDS)
        return code


@contextmanager
def served(*flags: str, **environment: str) -> Iterator[Served]:
    """A process that is gone afterwards."""
    command = [
        sys.executable,
        "-m",
        "tests.service.serve_memory",
        "--port",
        "0",
        "--recommend-bundle",
        "memory",
        *flags,
    ]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    ) as process:
        own = Served(process)
        try:
            yield own
        finally:
            process.kill()
            own.end()


BODY = {"product": {"title": "red running shoes"}, "k": 1}


def test_sigterm_drains_then_ends_with_0() -> None:
    """Readiness false at once, new connections still answered, what is under way finished, nothing lost."""
    with served("--drain-seconds", "1.0", MUFIN_TEST_TITLE_SECONDS="0.4") as own:
        url = own.until_ready()
        answers: list[int] = []
        late = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/recommend", json=BODY).status_code))
        with httpx.Client() as kept:
            assert kept.get(f"{url}/readyz").status_code == 200
            own.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            assert kept.get(f"{url}/readyz").status_code == 503
            assert kept.get(f"{url}/livez").status_code == 200
        during = httpx.post(f"{url}/recommend", json={**BODY, "product": {"title": "black belt"}})
        assert during.status_code == 200
        assert during.headers["connection"] == "close"
        time.sleep(0.25)
        late.start()
        assert own.end() == 0
        late.join(ENOUGH_SECONDS)
        assert answers == [200]


def test_a_second_sigterm_skips_the_draining() -> None:
    """Exit code 0 well before the drain time."""
    with served("--drain-seconds", "60") as own:
        own.until_ready()
        own.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        own.process.send_signal(signal.SIGTERM)
        assert own.end() == 0


def test_sigint_ends_with_0_without_draining() -> None:
    """Ctrl-C."""
    with served("--drain-seconds", "60") as own:
        own.until_ready()
        own.process.send_signal(signal.SIGINT)
        assert own.end() == 0


def test_a_refused_bundle_ends_with_1_and_the_reason() -> None:
    """In the log and as the last line."""
    with served(MUFIN_TEST_REFUSE="1") as own:
        assert own.end() == 1
        assert "index has 2" in own.event("bundle_refused")["reason"]
        assert own.rest[-1].startswith("mufin-serve: bundle has 3 labels")


def test_a_port_in_use_ends_with_1_and_the_remedy() -> None:
    """No traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with served("--port", str(taken.getsockname()[1])) as own:
            assert own.end() == 1
            assert "choose another" in own.rest[-1]


def test_a_request_leaves_one_json_line_without_title_or_url() -> None:
    """What an operator greps for, and nothing of the caller's text."""
    with served() as own:
        url = own.until_ready()
        body = {"product": {"title": "verysecrettitle", "images": ["http://secret.example/secretpath"]}}
        response = httpx.post(f"{url}/recommend", json=body, headers={"X-Request-ID": "my-id"})
        assert response.status_code == 200
        line = own.event("request")
        assert (line["request_id"], line["route"], line["status"], line["stage"]) == (
            "my-id",
            "/recommend",
            200,
            "reranked",
        )
        own.process.send_signal(signal.SIGINT)
        assert own.end() == 0
        assert "secret" not in json.dumps(own.lines) + "".join(own.rest)


def test_listening_beyond_loopback_without_keys_warns() -> None:
    """Off by default, but said."""
    with served("--host", "0.0.0.0") as own:
        assert own.event("open_to_everybody")["level"] == "warning"


def test_the_admin_port_takes_metrics_and_bundles_away_from_the_main_one() -> None:
    """Each path on its own port, probes on both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served("--admin-port", str(port)) as own:
        url, admin = own.until_ready(), f"http://127.0.0.1:{port}"
        for path in ("/metrics", "/bundles"):
            assert (httpx.get(url + path).status_code, httpx.get(admin + path).status_code) == (404, 200)
        assert httpx.post(f"{admin}/recommend", json=BODY).status_code == 404
        assert (httpx.get(f"{url}/readyz").status_code, httpx.get(f"{admin}/readyz").status_code) == (200, 200)


def test_a_client_that_hangs_up_is_noticed() -> None:
    """Its work is cancelled, which the log shows as 499; slow bodies end at the deadline."""
    with served("--worker-threads", "1", MUFIN_TEST_TITLE_SECONDS="0.5") as own:
        url = own.until_ready()
        content = json.dumps(BODY).encode()
        head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as client:
            client.sendall(head % len(content) + content)
            time.sleep(0.1)
        assert own.event("request")["status"] == 499
        with socket.create_connection(address) as client:
            client.sendall(head % len(content) + content[:5])
            assert b" 504 " in client.recv(4096).split(b"\r\n")[0]


def test_a_device_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    """With the remedy; onnxruntime's own way is to fall back to the CPU without a word."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed: cuda is not refused")
    bundle = make_tiny_bundle(tmp_path / "bundle")
    command = [sys.executable, "-m", "service", "--port", "0", "--device", "cuda", "--recommend-bundle", str(bundle)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    reasons = [json.loads(line)["reason"] for line in ended.stderr.splitlines() if '"bundle_refused"' in line]
    assert len(reasons) == 1
    assert "install onnxruntime-gpu in place of onnxruntime, or use device cpu" in reasons[0]
