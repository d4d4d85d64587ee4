"""Serves the demo's bundles with a picture server beside them, says what to try, and ends both on Ctrl-C or SIGTERM.

Knows no request and no bundle format; `make serve` has made everything before it is called.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START_SECONDS = 120
# A proxy of the environment must not be asked for what runs on this machine.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    """Returns the exit code: 0 after a signal, 1 when one of the two did not start or ended by itself."""
    parser = argparse.ArgumentParser(prog="serve_demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("demo", type=Path, help="folder with catalogues/ and bundles/")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--picture-port", type=int, default=8081)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started us in the background
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    service_url = f"http://{options.host}:{options.port}"
    pictures_url = f"http://127.0.0.1:{options.picture_port}"
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        processes["the picture server"] = _start_pictures(
            options.demo / "catalogues" / "products", options.picture_port
        )
        processes["mufin-serve"] = _start_service(options.demo / "bundles", options.host, options.port, pictures_url)
        product = _example(options.demo / "catalogues" / "products" / "products.jsonl", pictures_url)
        if not _wait_for((f"{service_url}/readyz", product["images"][0]), processes):
            print("Is a port taken? make serve PORT=8090 PICTURE_PORT=8091", file=sys.stderr)
            return 1
        body = json.dumps({"product": product, "k": 3}, ensure_ascii=False)
        print(f"\nServing on {service_url} (documents: {service_url}/docs, end: Ctrl-C). Try:\n")
        print(f"curl -s {service_url}/recommend -H 'content-type: application/json' -d {shlex.quote(body)}", flush=True)
        while not _ended(processes):
            time.sleep(0.5)
        print(f"{' and '.join(_ended(processes))} ended", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(processes)


def _start_pictures(catalogue: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mufin.datasets.picture_server", str(catalogue), "--port", str(port)]
    return subprocess.Popen(command, start_new_session=True)


def _start_service(bundles: Path, host: str, port: int, pictures_url: str) -> subprocess.Popen[bytes]:
    settings = {
        "MUFIN_HOST": host,
        "MUFIN_PORT": str(port),
        "MUFIN_RECOMMEND_BUNDLE": str(bundles / "products"),
        "MUFIN_BID_QUERIES_BUNDLE": str(bundles / "queries"),
        "MUFIN_FETCH_TRUSTED_ORIGINS": pictures_url,
        "OMP_NUM_THREADS": "1",  # the service's own workers take the cores (docs/operations.md)
        "OPENBLAS_NUM_THREADS": "1",
        "MUFIN_DRAIN_SECONDS": "0",  # no load balancer has to notice, so Ctrl-C need not wait
    }
    # A session of its own, so that Ctrl-C reaches this program alone and both end in order.
    return subprocess.Popen([sys.executable, "-m", "service"], env={**os.environ, **settings}, start_new_session=True)


def _example(products: Path, pictures_url: str) -> dict[str, Any]:
    """The first product that has both title and picture, as a request; with its id, so that it is not its own answer."""
    with products.open(encoding="utf-8") as lines:
        for product in map(json.loads, lines):
            if product["title"] and product["images"]:
                picture = f"{pictures_url}/{product['images'][0]}"
                return {"id": product["id"], "title": product["title"], "images": [picture]}
    raise SystemExit(f"{products} has no product with both title and picture: run make clean, then make serve")


def _wait_for(urls: tuple[str, ...], processes: Mapping[str, subprocess.Popen[bytes]]) -> bool:
    end = time.monotonic() + START_SECONDS
    while not all(map(_answers, urls)):
        if ended := _ended(processes):
            print(f"{' and '.join(ended)} did not start", file=sys.stderr)
            return False
        if time.monotonic() > end:
            print(f"no answer from {' or '.join(urls)} within {START_SECONDS} seconds", file=sys.stderr)
            return False
        time.sleep(0.1)
    return True


def _answers(url: str) -> bool:
    try:
        with direct.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _ended(processes: Mapping[str, subprocess.Popen[bytes]]) -> list[str]:
    return [name for name, process in processes.items() if process.poll() is not None]


def _stop(processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """The service first: it may still want a picture."""
    for process in reversed(list(processes.values())):
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
