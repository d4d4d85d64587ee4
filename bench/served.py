"""A service process, and a picture server whose pictures are all different, for benchmarks of load.

Knows no measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
_START_SECONDS = 60.0
_SIDE = 224


@dataclass
class ServiceProcess:
    """mufin-serve over the bench's bundle."""

    process: subprocess.Popen[str]
    port: int
    tasks: int = 0
    """asyncio tasks, as told last"""

    def resident_mib(self) -> float:
        """What it holds in memory now."""
        return self._status("VmRSS") / 1024

    def counts(self) -> dict[str, int]:
        """Threads and open file handles."""
        handles = sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())
        return {"threads": self._status("Threads"), "handles": handles}

    def cpu_seconds(self) -> float:
        """Of all its threads since it started."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, question: dict[str, Any]) -> Any:
        """What a service that was started to be asked answers: a line of JSON for one."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@contextmanager
def service_process(
    bundle: Path,
    encoder_milliseconds: tuple[float, float] | None,
    flags: Sequence[str],
    core: int | None,
    *,
    floored: bool = False,
) -> Iterator[ServiceProcess]:
    """Ready when it is given; ``core``: the only one it may run on. ``encoder_milliseconds``: None: the bundle's own.

    ``floored``: it can be asked for its floor (bench/floored_service.py).
    """
    environment = {
        **os.environ,
        "MUFIN_BENCH_ENCODER_MILLISECONDS": ",".join(map(str, encoder_milliseconds or ())),
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    }
    module = "bench.floored_service" if floored else "service"
    if encoder_milliseconds is not None:
        assert not floored, "encoders that stand in for real ones have no floor"
        module = "bench.overload_service"
    pipe = subprocess.PIPE if floored else None
    command = [sys.executable, "-m", module, "--port", "0", "--recommend-bundle", str(bundle), *flags]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            service = ServiceProcess(process, _until_ready(process))
            threading.Thread(target=_read_on, args=(service,), daemon=True).start()
            yield service
        finally:
            process.kill()


def _until_ready(process: subprocess.Popen[str]) -> int:
    """Its port, once it is ready."""
    assert process.stderr is not None
    port: int = 0
    until = time.monotonic() + _START_SECONDS
    for line in process.stderr:
        event: dict[str, Any] = json.loads(line) if line.startswith("{") else {"event": line}
        port = int(event.get("port", port))
        if event["event"] == "bundle_open":
            break
        if time.monotonic() > until:
            break
    else:
        raise RuntimeError(f"the service ended with exit code {process.wait()}")
    return port


def _read_on(service: ServiceProcess) -> None:
    """Its log must be read on, or the pipe would fill and hold it up."""
    for line in service.process.stderr or ():
        if line.startswith('{"event": "tasks"'):
            service.tasks = json.loads(line)["tasks"]


def _jpegs(count: int) -> list[bytes]:
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


@asynccontextmanager
async def picture_server(count: int = 32) -> AsyncIterator[str]:
    """scheme://host:port; each answer is a JPEG that was never sent before: a number stands behind its end.

    Paths under /slow/ are answered after a second, /broken/ with half a picture, others at once.
    """
    pictures, numbers = _jpegs(count), itertools.count()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                number = next(numbers)
                body = pictures[number % count] + number.to_bytes(8, "big")
                if head.startswith(b"GET /slow/"):
                    await asyncio.sleep(1)
                if head.startswith(b"GET /broken/"):
                    body = body[: len(body) // 2]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writers.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in list(writers):
            writer.close()


def products(origin: str, first: int = 0) -> Iterator[dict[str, Any]]:
    """Requests with a title and one picture, all of them new."""
    colours, kinds = ("red", "blue", "green", "black", "white"), ("shirt", "shoe", "bag", "hat")
    for number in itertools.count(first):
        title = f"{colours[number % 5]} {kinds[number // 5 % 4]} number {number}"
        yield {"product": {"title": title, "images": [f"{origin}/{number}.jpg"]}, "k": 10}


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """--out and --plot."""
    parser.add_argument("--out", type=Path, metavar="JSON", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw them there")


def write_results(
    found: dict[str, Any], options: argparse.Namespace, plot: Callable[[dict[str, Any], Path], None]
) -> None:
    """What ``add_result_options`` was asked for."""
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(found, options.plot)


def machine() -> dict[str, Any]:
    """Facts about the machine and how busy it was before."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return {
        "processor": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": sys.version.split()[0],
    }
