"""The chain as a user runs it: commands in processes of their own, a picture server, the service on a free port."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

_START_SECONDS = 60.0


def run_command(module: str, *arguments: str | Path) -> str:
    """Run ``python -m module arguments``; the test fails with its error output when it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to the console."""


@contextmanager
def picture_server(folder: Path) -> Iterator[str]:
    """Serve a folder on a free loopback port; yields http://127.0.0.1:PORT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class RunningService:
    """mufin-serve in a process of its own."""

    url: str
    process: subprocess.Popen[str]

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """POST a JSON body."""
        return httpx.post(self.url + path, json=body, headers=headers, timeout=30)

    def get(self, path: str) -> httpx.Response:
        """GET a path."""
        return httpx.get(self.url + path, timeout=30)


@contextmanager
def service(**settings: str | Path) -> Iterator[RunningService]:
    """Start the service on a free port, wait until it is ready, stop it with SIGTERM; exit 0 is asserted."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MUFIN_")}
    environment |= {f"MUFIN_{k.upper()}": str(v) for k, v in settings.items()}
    environment |= {"MUFIN_PORT": "0", "MUFIN_DRAIN_SECONDS": "0.2"}
    command = [sys.executable, "-m", "service"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    rest = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    try:
        port = _wait_for_port(process, lines)
        rest.start()
        running = RunningService(f"http://127.0.0.1:{port}", process)
        _wait_until_ready(running, lines)
        yield running
        process.terminate()
        assert process.wait(timeout=60) == 0, "".join(lines[-20:])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if rest.is_alive():
            rest.join()
        if process.stdout is not None:
            process.stdout.close()


def _wait_for_port(process: subprocess.Popen[str], lines: list[str]) -> int:
    for line in process.stdout or ():
        lines.append(line)
        if '"listening"' in line and (match := re.search(r'"port": ?(\d+)', line)):
            return int(match[1])
    raise AssertionError("the service ended before it listened:\n" + "".join(lines[-20:]))


def _wait_until_ready(running: RunningService, lines: list[str]) -> None:
    import time

    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert running.process.poll() is None, "".join(lines[-20:])
        try:
            with urllib.request.urlopen(running.url + "/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the service did not become ready:\n" + "".join(lines[-20:]))


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of a products.jsonl or labels.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
