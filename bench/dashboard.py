"""The Grafana dashboard's panels from real metrics: a service under load, a real Prometheus, every panel's own PromQL.

    python -m bench.dashboard [--minutes 4] [--smoke] [--out FILE.json] [--plot docs/figures/dashboard.svg]

The mixture of bench/soak.py at half the capacity, good and bad requests; Redis is stalled in the second quarter, and in the
third the load is five times the capacity for a sixth of the time. Exits with 1 when a panel stays empty. Prometheus reads
docker/prometheus/rules.yml. Needs prometheus and redis-server on PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.open_loop import Connections, closed_loop, open_loop
from bench.overload import CLIENTS, ENCODER_MILLISECONDS
from bench.served import ServiceProcess, add_result_options, picture_server, products, service_process, write_results
from bench.soak import Mixture, mixed_load
from tests.bundle_factory import make_tiny_bundle
from tests.service.redis_process import free_port, redis_process

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "mufin.json"
RULES = ROOT / "docker" / "prometheus" / "rules.yml"
STEP_SECONDS = 2
_START_SECONDS = 20.0


@contextmanager
def prometheus(folder: Path, targets: int) -> Iterator[str]:
    """Address of a Prometheus that scrapes a port's /metrics. Raises FileNotFoundError without the program."""
    port = free_port()
    configuration = {
        "global": {"scrape_interval": f"{STEP_SECONDS}s", "evaluation_interval": f"{STEP_SECONDS}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "mufin", "static_configs": [{"targets": [f"127.0.0.1:{targets}"]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
    options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/series")
    program = shutil.which("prometheus")
    if program is None:
        raise FileNotFoundError("prometheus is not on PATH")
    command = [program, *options, f"--web.listen-address=127.0.0.1:{port}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + _START_SECONDS
            while not _answers(f"{url}/-/ready"):
                if time.monotonic() > end:
                    raise RuntimeError(f"prometheus is not ready after {_START_SECONDS:.0f} s")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


async def eventful_load(service: ServiceProcess, origin: str, redis: Any, seconds: float) -> None:
    """Four quarters: calm, without Redis, with a burst, calm."""
    connections = Connections(service.port)
    replies = await closed_loop(connections, "/recommend", products(origin, 10_000_000), CLIENTS, 3)
    capacity = sum(own.status == 200 for own in replies) / 3
    mixture, quarter = Mixture(service.port, origin), seconds / 4
    queries = asyncio.ensure_future(
        open_loop(connections, "/bid-queries", products(origin, 20_000_000), capacity / 20, seconds, seed=1)
    )
    await mixed_load(mixture, capacity / 2, quarter)
    redis.stall()
    await mixed_load(mixture, capacity / 2, quarter)
    redis.go_on()
    await open_loop(connections, "/recommend", products(origin, 30_000_000), 5 * capacity, seconds / 6, seed=2)
    await mixed_load(mixture, capacity / 2, seconds - 2 * quarter - seconds / 6)
    await queries
    await mixture.aclose()
    await connections.aclose()


def panels() -> list[dict[str, Any]]:
    """Of the dashboard, in its order."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def ask(url: str, panel: dict[str, Any], begin: float, end: float) -> dict[str, list[tuple[float, float]]]:
    """A panel's curves by their legend: (seconds, value), gaps left out. Raises RuntimeError for a query that is refused."""
    curves = {}
    for target in panel["targets"]:
        query = {"query": target["expr"], "start": begin, "end": end, "step": STEP_SECONDS}
        answer = httpx.get(f"{url}/api/v1/query_range", params=query, timeout=30).json()
        if answer["status"] != "success":
            raise RuntimeError(f"{panel['title']}: {answer}")
        for series in answer["data"]["result"]:
            legend = _legend(target.get("legendFormat", ""), series["metric"])
            points = [(float(at) - begin, float(value)) for at, value in series["values"]]
            curves[legend] = [point for point in points if point[1] == point[1]]  # without NaN
    return {legend: points for legend, points in curves.items() if points}


def _legend(form: str, labels: dict[str, str]) -> str:
    if not form:
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def plot(found: dict[str, Any], path: Path) -> None:
    """All panels, three in a row as in Grafana."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "dashboard"
    rows = -(-len(found["panels"]) // 3)
    figure, places = plt.subplots(rows, 3, figsize=(15, 2.9 * rows))
    for axes in places.flat[len(found["panels"]) :]:
        axes.set_visible(False)
    for axes, panel in zip(places.flat, found["panels"], strict=False):
        axes.set_title(f"{panel['title']} ({panel['unit']})" if panel["unit"] else panel["title"], fontsize=9)
        for legend, points in panel["curves"].items():
            axes.plot([at for at, _ in points], [value for _, value in points], label=legend[:40], linewidth=1)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        if panel["curves"]:
            axes.legend(fontsize=6)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


async def run(minutes: float) -> dict[str, Any]:
    """One service, one Redis, one Prometheus."""
    with tempfile.TemporaryDirectory() as scratch, redis_process(Path(scratch)) as redis:
        folder = Path(scratch)
        bundle = make_tiny_bundle(folder / "products", labels=400)
        queries = make_tiny_bundle(folder / "queries", labels=400, name="queries", seed=1)
        async with picture_server() as origin:
            flags = (
                *("--worker-threads", "1", "--fetch-trusted-origins", origin, "--drain-seconds", "0"),
                *("--redis-url", redis.url, "--fetch-allow-http", "--bid-queries-bundle", str(queries)),
            )
            with (
                service_process(bundle, ENCODER_MILLISECONDS, flags, core=None) as service,
                prometheus(folder, service.port) as url,
            ):
                begin = time.time()
                await eventful_load(service, origin, redis, 60 * minutes)
                await asyncio.sleep(2 * STEP_SECONDS)
                end = time.time()
                return {
                    "panels": [
                        {
                            "title": panel["title"],
                            "unit": panel["fieldConfig"]["defaults"].get("unit", ""),
                            "curves": await asyncio.to_thread(ask, url, panel, begin, end),
                        }
                        for panel in panels()
                    ]
                }


def main() -> int:
    """Load, ask, draw; what stayed empty."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4)
    add_result_options(parser)
    parser.add_argument("--smoke", action="store_true", help="half a minute: whether it runs")
    options = parser.parse_args()
    missing = [program for program in ("prometheus", "redis-server") if shutil.which(program) is None]
    if missing:
        print(f"bench.dashboard: left out, {' and '.join(missing)} not on PATH")
        return 0
    found = asyncio.run(run(0.5 if options.smoke else options.minutes))
    for panel in found["panels"]:
        print(f"{panel['title']}: {', '.join(panel['curves']) or 'EMPTY'}")
    write_results(found, options, plot)
    return 1 if any(not panel["curves"] for panel in found["panels"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
