"""The service over HTTP against its floor, the bare model calls, and against what one would write on an afternoon.

    python -m bench.serving [--labels 100000] [--large 300000] [--seconds 8] [--smoke] [--work FOLDER] [--out FILE] [--plot FILE]

Bundles of random weights at the paper's size (bench/serving_bundle.py). The service and, after it, the reference
(bench/serving_reference.py) have core 1 and one thread; the generator and the picture server have core 0. The floor is
measured in the process that serves, before and after each load (bench/floored_service.py). Loads are homogeneous: titles
of 16 tokens that were never asked before; the same with one or five new pictures of 224 px; twenty products asked again
and again.

lone: one client on a plain socket, each request after the last. saturated: as many clients as keep the core busy, in a closed loop, and
the service's CPU time over the requests answered. 70 %: an open loop of Poisson arrivals at .7 of the saturated rate;
latency counts from the moment that a request was due. Ratios are of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.int8 import PAPER, SMOKE, Size
from bench.open_loop import Connections, Reply, closed_loop, lone_loop, open_loop
from bench.served import (
    ROOT,
    ServiceProcess,
    add_result_options,
    machine,
    picture_server,
    service_process,
    write_results,
)
from bench.serving_bundle import make_serving_bundle, title
from bench.serving_report import goals, plot
from tests.service.redis_process import free_port

GENERATOR_CORE, SERVICE_CORE = 0, 1
_ASKED_AGAIN = 20
_PATIENCE = 20.0


@dataclass(frozen=True)
class Load:
    """A homogeneous workload; its floor is the case of the same name in bench/serving_floor.py."""

    name: str
    images: int
    clients: int
    """That saturate one core, the largest batches being full"""
    most: int = 0
    """Products in the largest batch; 0 where batches are of pictures, several a product"""
    again: bool = False

    def bodies(self, origin: str, first: int) -> Iterator[dict[str, Any]]:
        """Requests from a number on."""
        number = first
        while True:
            own = number % _ASKED_AGAIN if self.again else number
            images = [f"{origin}/{'kept' if self.again else 'new'}/{own}-{place}.jpg" for place in range(self.images)]
            yield {"product": {"title": title(own), "images": images}, "k": 10}
            number += 1


LOADS = (
    Load("title", 0, 64, most=32),
    Load("1 image", 1, 12, most=8),
    Load("5 images", 5, 4),
    Load("5 images, cached", 5, 64, most=32, again=True),
)


def milliseconds(replies: Sequence[Reply]) -> dict[str, float]:
    """Percentiles of what was answered in full, and how many were not: RuntimeError when they are one in a hundred."""
    bad = [own for own in replies if own.status != 200 or own.degraded]
    if len(bad) * 100 > len(replies) or not replies:
        kinds = {(own.status, own.degraded) for own in bad}
        raise RuntimeError(f"{len(bad)} of {len(replies)} requests were not answered in full: {kinds}")
    good = [1000 * own.seconds for own in replies if own.status == 200 and not own.degraded]
    return {**{f"p{p}": round(float(np.percentile(good, p)), 3) for p in (50, 95, 99)}, "left_out": len(bad)}


async def measure_service(
    service: ServiceProcess, origin: str, load: Load, seconds: float, first: int
) -> dict[str, Any]:
    """Lone, saturated and 70 % of one load."""
    connections, bodies = Connections(service.port), load.bodies(origin, first)
    try:
        await closed_loop(connections, "/recommend", bodies, 1 if load.images else 4, seconds / 4)  # warm
        for body in islice(bodies, _ASKED_AGAIN if load.again else 0):  # a slow machine has not asked for each by then
            await connections.post("/recommend", json.dumps(body).encode())
        before = await _stages(service)
        lone = await asyncio.to_thread(lone_loop, service.port, "/recommend", bodies, seconds)
        after = await _stages(service)
        stages = {
            name: round(1000 * (own - before.get(name, 0.0)) / len(lone), 3)
            for name, own in after.items() if own > before.get(name, 0.0)
        }  # fmt: skip
        cpu = service.cpu_seconds()
        began = time.perf_counter()
        saturated = await closed_loop(connections, "/recommend", bodies, load.clients, seconds)
        elapsed = time.perf_counter() - began
        cpu = service.cpu_seconds() - cpu
        rate = len(saturated) / elapsed
        spread = await open_loop(connections, "/recommend", bodies, 0.7 * rate, 2 * seconds, seed=first)
        return {
            "lone": milliseconds(lone), "lone_stages": stages, "saturated": milliseconds(saturated),
            "per_second": round(rate, 2), "cpu_ms": round(1000 * cpu / len(saturated), 3),
            "at_70_percent": milliseconds(spread), "p99_over_p50": _p99_over_p50(spread),
        }  # fmt: skip
    finally:
        await connections.aclose()


def _p99_over_p50(replies: Sequence[Reply]) -> float:
    own = milliseconds(replies)
    return round(own["p99"] / own["p50"], 2)


async def _stages(service: ServiceProcess) -> dict[str, float]:
    """Seconds spent in every stage up to now, from the service's own metrics."""
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"http://127.0.0.1:{service.port}/metrics")).text
    prefix = 'mufin_stage_duration_seconds_sum{stage="'
    lines = (line[len(prefix) :].split('"} ') for line in page.splitlines() if line.startswith(prefix))
    return {stage: float(value) for stage, value in lines}


def queueing_spread(
    lone: float = 1.0, saturated: float = 1.0, most: int = 1, load: float = 0.7, arrivals: int = 500_000
) -> float:
    """p99 ÷ p50 that queueing alone makes, all products alike, Poisson arrivals at ``load`` of the saturated rate.

    Simulated: one server takes whoever waits, up to ``most`` at once, and is done with n of them after a + b n, so that one
    alone takes ``lone`` and the largest batch ``saturated`` each. With ``most`` 1, M/D/1. What the goal for homogeneous
    loads stands against: less is reached only where many at once cost less than one by one.
    """
    each = (most * saturated - lone) / (most - 1) if most > 1 else saturated
    once = saturated * most - each * most
    due = np.cumsum(np.random.default_rng(0).exponential(saturated / load, arrivals)).tolist()
    spent, now, first = [], 0.0, 0
    while first < arrivals:
        now = max(now, due[first])
        last = first + 1
        while last < min(first + most, arrivals) and due[last] <= now:
            last += 1
        now += once + each * (last - first)
        spent += [now - own for own in due[first:last]]
        first = last
    median, late = np.percentile(spent, (50, 99))
    return round(float(late / median), 2)


async def measure_reference(port: int, origin: str, load: Load, seconds: float) -> dict[str, float]:
    """Products a second of the plain reference, with two clients."""
    connections, bodies = Connections(port), load.bodies(origin, 50_000_000)
    try:
        await closed_loop(connections, "/recommend", bodies, 1, 1.0)
        began = time.perf_counter()
        replies = await closed_loop(connections, "/recommend", bodies, 2, seconds)
        return {"per_second": round(len(replies) / (time.perf_counter() - began), 3), **milliseconds(replies)}
    finally:
        await connections.aclose()


def run_pinned(module: str, *arguments: str) -> Any:
    """JSON that a module prints, run on the service's core."""
    command = ["taskset", "-c", str(SERVICE_CORE), sys.executable, "-m", module, *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


async def served(bundle: Path, loads: Sequence[Load], seconds: float) -> dict[str, Any]:
    """Means of two rounds, each in a process of its own; but the wider spread of the two."""
    rounds = []
    for turn in range(2):
        async with picture_server() as origin:
            flags = (
                *("--worker-threads", "1", "--fetch-trusted-origins", origin, "--drain-seconds", "0"),
                *("--deadline-milliseconds", "5000", "--log-level", "info"),
            )
            began = time.monotonic()
            with service_process(bundle, None, flags, core=SERVICE_CORE, floored=True) as service:
                ready, found, floors = time.monotonic() - began, dict[str, Any](), dict[str, Any]()
                for place, load in enumerate(loads):
                    first = (turn * 10 + place) * 1_000_000
                    before = await _floor(service, load, seconds)
                    found[load.name] = await measure_service(service, origin, load, seconds, first)
                    floors[load.name] = mean([before, await _floor(service, load, seconds)])
                    lone, floor = found[load.name]["lone"]["p50"], floors[load.name]["lone_ms"]
                    print(f"  {load.name}: {lone} ms, floor {floor}; {found[load.name]['per_second']}/s", flush=True)
                found["ready_seconds"] = round(ready, 2)
                found["resident_mib"] = round(service.resident_mib())
        rounds.append({"floor": floors, "service": found})
    whole: dict[str, Any] = mean(rounds)
    whole["service"]["ready_seconds"] = min(each["service"]["ready_seconds"] for each in rounds)  # files in memory
    for name, own in whole["service"].items():
        if isinstance(own, dict):
            wide = max((each["service"][name] for each in rounds), key=lambda each: float(each["p99_over_p50"]))
            own.update(at_70_percent=wide["at_70_percent"], p99_over_p50=wide["p99_over_p50"])
    for own in whole["floor"].values():
        own["best_batch"] = max(own["per_second"], key=lambda batch: float(own["per_second"][batch]))
    return whole


async def _floor(service: ServiceProcess, load: Load, seconds: float) -> Any:
    return await asyncio.to_thread(service.ask, {"case": load.name, "seconds": max(0.1, seconds / 4)})


def mean(found: Sequence[Any]) -> Any:
    """Of numbers; of dictionaries, key by key, of those that have it."""
    if not isinstance(found[0], dict):
        return round(sum(found) / len(found), 3)
    keys = dict.fromkeys(key for own in found for key in own)
    return {key: mean([own[key] for own in found if key in own]) for key in keys}


def ready_seconds(bundle: Path, times: int = 3) -> list[float]:
    """From the start of the process to readiness, on all cores, with full verification of a bundle in the page cache."""
    mine, found = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        for _ in range(times):
            began = time.monotonic()
            with service_process(bundle, None, ("--drain-seconds", "0"), core=None):
                found.append(round(time.monotonic() - began, 2))
    finally:
        os.sched_setaffinity(0, mine)
    return found


@contextmanager
def reference_process(labels: int, smoke: bool) -> Iterator[int]:
    """The port of a plain reference on the service's core; it may not be up yet."""
    port = free_port()
    command = [
        "taskset",
        "-c",
        str(SERVICE_CORE),
        sys.executable,
        "-m",
        "bench.serving_reference",
        str(labels),
        str(port),
    ]
    with subprocess.Popen([*command, *(["--smoke"] if smoke else [])], cwd=ROOT) as process:
        try:
            yield port
        finally:
            process.kill()


async def referred(port: int, seconds: float) -> dict[str, Any]:
    """The plain reference with titles, and with five pictures."""
    await _until_up(port)
    async with picture_server() as origin:
        return {load.name: await measure_reference(port, origin, load, seconds) for load in LOADS if load.images != 1}


async def _until_up(port: int) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(1200):
            try:
                await client.get(f"http://127.0.0.1:{port}/readyz")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
            else:
                return
    raise RuntimeError("the reference did not come up in two minutes")


def bulk(bundle: Path, products: int, folder: Path) -> dict[str, float]:
    """mufin-recommend over titles, one thread, on the service's core."""
    source, target = folder / "products.jsonl", folder / "answers.jsonl"
    source.write_text(
        "".join(json.dumps({"id": str(n), "title": title(n), "images": []}) + "\n" for n in range(products))
    )
    target.unlink(missing_ok=True)
    command = ["taskset", "-c", str(SERVICE_CORE), sys.executable, "-m", "mufin.recommend", str(bundle), str(source)]
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}

    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([*command, str(target), "--threads", "1", "--quiet"], cwd=ROOT, check=True, env=environment)
        return time.perf_counter() - began

    whole = seconds()
    opening = seconds()  # all answers are there already: what is left is opening the bundle
    return {"per_second": round(products / max(1e-6, whole - opening), 2), "opening_seconds": round(opening, 2)}


def _bundle(work: Path, labels: int, size: Size) -> Path:
    folder = work / f"{labels}-{size.width}"
    if not (folder / "manifest.json").is_file():
        print(f"making a bundle of {labels:,} labels", flush=True)
        make_serving_bundle(folder, labels, size)
    return folder


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything, in one run."""
    size = SMOKE if options.smoke else PAPER
    bundle = _bundle(work, options.labels, size)
    large = _bundle(work, options.large, size)
    small = _bundle(work, 400 if options.smoke else 10_000, SMOKE)
    found: dict[str, Any] = {**machine(), "labels_served": options.labels}
    os.sched_setaffinity(0, {GENERATOR_CORE})
    # The generator's own collections of garbage last 200 ms (torch lies in its memory): they would count as the service's.
    gc.collect()
    gc.freeze()
    gc.disable()
    found |= asyncio.run(served(bundle, LOADS, options.seconds))
    found["large"] = asyncio.run(served(large, (LOADS[0], LOADS[3]), options.seconds))
    found["ready_seconds_on_all_cores"] = ready_seconds(large)
    with reference_process(options.labels, options.smoke) as port:
        found["reference"] = asyncio.run(referred(port, options.seconds))
    found["bulk"] = bulk(bundle, 40 if options.smoke else 1000, work)
    found["queueing_p99_over_p50"] = {"one at a time": queueing_spread()}
    for load in LOADS:
        if load.most:
            own = found["service"][load.name]
            found["queueing_p99_over_p50"][load.name] = queueing_spread(
                own["lone"]["p50"], 1000 / own["per_second"], load.most
            )
    found["labels"] = {
        name: run_pinned("bench.serving_labels", str(own)) for name, own in (("small", small), ("large", large))
    }
    return found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--work", type=Path, help="keep the bundles there")
    add_result_options(parser)
    parser.add_argument("--smoke", action="store_true", help="tiny encoders, few labels, a second: whether it runs")
    options = parser.parse_args()
    if options.smoke:
        options.labels, options.large, options.seconds = 400, 800, 0.5
    if (os.cpu_count() or 1) < 2:
        print("bench.serving: left out, it needs two cores: one for the service, one for the load")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, options.work or Path(scratch))
    rows = goals(found)
    found["goals"] = [dict(zip(("measure", "goal", "figure", "reached"), row, strict=True)) for row in rows]
    for row in rows:
        print(f"{row[0]:<58}{row[1]:>9}{row[2]:>10}  {'' if row[3] else 'MISSED'}")
    ready = f"{found['large']['service']['ready_seconds']} s on one core, {found['ready_seconds_on_all_cores']} on all"
    print(f"bulk: {found['bulk']}; ready at {options.large:,} labels after {ready}")
    print(f"p99 ÷ p50 at 70 % load by queueing alone: {found['queueing_p99_over_p50']}")
    write_results(found, options, plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
