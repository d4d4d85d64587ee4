"""What an overloaded service does: goodput, latency of what it accepts, refusals, memory, recovery.

    python -m bench.overload [--smoke] [--out bench/results/NAME.json] [--plot docs/images/NAME.svg]

A title and one picture that nobody has asked before, in an open loop (bench/open_loop.py) at 1, 2, 5 and 10 times the
capacity, which is measured first with 14 clients in a closed loop; then half the capacity, to see how soon all is well
again. Good: 200 within the deadline of 800 ms, counted from the moment the request was due. The service has one worker
and one core, the generator and the picture server another. The bundle is tiny; its encoders are made to take 2 ms a
title and 12 ms a picture (bench/overload_service.py).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.open_loop import Connections, Reply, closed_loop, open_loop
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

DEADLINE_SECONDS = 0.8
ENCODER_MILLISECONDS = (2.0, 12.0)
FACTORS = (1.0, 2.0, 5.0, 10.0)
# Few enough that nobody is refused: a refused client of a closed loop asks again at once, which is overload.
CLIENTS = 14
AFTERWARDS = 0.5
_SAMPLE_SECONDS = 0.25


@dataclass
class Sizes:
    """Seconds of each part."""

    warm: float = 4.0
    capacity: float = 10.0
    step: float = 20.0
    recovery: float = 8.0
    factors: tuple[float, ...] = FACTORS


SMOKE = Sizes(0.5, 1.0, 1.5, 1.0, (1.0, 5.0))


@dataclass
class Memory:
    """Resident MiB of the service, looked at all the time."""

    service: ServiceProcess
    samples: list[float] = field(default_factory=list)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.samples.append(self.service.resident_mib())
            await asyncio.sleep(_SAMPLE_SECONDS)


def is_good(reply: Reply) -> bool:
    """Answered, and in time."""
    return reply.status == 200 and reply.seconds <= DEADLINE_SECONDS


def summary(replies: Sequence[Reply], seconds: float, capacity: float) -> dict[str, Any]:
    """One step's figures; latencies are of all 200s, the late ones included."""
    answered = sorted(1000 * own.seconds for own in replies if own.status == 200)
    refused = [own for own in replies if own.status == 429]
    statuses = Counter(own.status for own in replies)
    waits = Counter(own.retry_after or "none" for own in refused)
    goodput = sum(map(is_good, replies)) / seconds
    return {
        "sent_per_second": round(len(replies) / seconds, 1),
        "goodput_per_second": round(goodput, 1),
        "goodput_of_capacity": round(goodput / capacity, 3),
        "p50_ms": round(float(np.percentile(answered, 50)), 1) if answered else None,
        "p99_ms": round(float(np.percentile(answered, 99)), 1) if answered else None,
        "late": sum(own.status == 200 and not is_good(own) for own in replies),
        "share_429": round(len(refused) / len(replies), 3),
        "retry_after_seconds": dict(sorted(waits.items())),
        "refused_p99_ms": round(1000 * float(np.percentile([own.seconds for own in refused], 99)), 1)
        if refused
        else None,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "degraded": dict(Counter(own.degraded for own in replies if own.degraded)),
    }


def recovery_seconds(replies: Sequence[Reply]) -> float:
    """When the last request was due that was not answered well, after the load had gone."""
    return round(max((own.due for own in replies if not is_good(own)), default=0.0), 2)


async def measure(service: ServiceProcess, origin: str, sizes: Sizes) -> dict[str, Any]:
    """Capacity, then every factor and the recovery from it."""
    connections, bodies = Connections(service.port), products(origin)
    memory = Memory(service)
    await closed_loop(connections, "/recommend", bodies, 4, sizes.warm)
    watching = asyncio.ensure_future(memory.watch())
    try:
        replies = await closed_loop(connections, "/recommend", bodies, CLIENTS, sizes.capacity)
        capacity = sum(own.status == 200 for own in replies) / sizes.capacity
        print(f"capacity {capacity:.1f} a second")
        steps = []
        for factor in sizes.factors:
            steps.append(await _step(connections, bodies, capacity, factor, sizes, memory))
    finally:
        watching.cancel()
        await connections.aclose()
    return {"capacity_per_second": round(capacity, 1), "steps": steps}


async def _step(
    connections: Connections,
    bodies: Iterator[dict[str, Any]],
    capacity: float,
    factor: float,
    sizes: Sizes,
    memory: Memory,
) -> dict[str, Any]:
    """One factor's overload, then a load that fits."""
    memory.samples.clear()
    load = asyncio.ensure_future(
        open_loop(connections, "/recommend", bodies, capacity * factor, sizes.step, seed=int(factor * 10))
    )
    # Not one after the other: answers to the overload are still coming while the load that fits begins.
    await asyncio.wait((load,), timeout=sizes.step)
    after = await open_loop(connections, "/recommend", bodies, capacity * AFTERWARDS, sizes.recovery, seed=1)
    found = {
        "factor": factor,
        **summary(await load, sizes.step, capacity),
        "recovery_seconds": recovery_seconds(after),
        "not_good_afterwards": sum(not is_good(own) for own in after) / len(after),
        "memory_mib": {"least": round(min(memory.samples)), "most": round(max(memory.samples))},
    }
    print(
        f"{factor:>4}x: goodput {found['goodput_of_capacity']:.0%}, p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms, "
        f"429 {found['share_429']:.0%} {found['retry_after_seconds']}, {found['statuses']}, {found['degraded']}, "
        f"recovery {found['recovery_seconds']} s, {found['memory_mib']} MiB"
    )
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """Goodput and p99 over the factor."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "overload"
    factors = [own["factor"] for own in found["steps"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    left.plot(factors, [100 * own["goodput_of_capacity"] for own in found["steps"]], "o-", label="answered in time")
    left.plot(factors, [100 * factor for factor in factors], ":", color="grey", label="asked")
    left.set(xlabel="load, times the capacity", ylabel="% of the capacity", ylim=(0, 220), xticks=factors)
    right.plot(factors, [own["p99_ms"] for own in found["steps"]], "o-", label="99 %")
    right.plot(factors, [own["p50_ms"] for own in found["steps"]], "o-", label="half")
    right.axhline(1000 * DEADLINE_SECONDS, ls=":", color="grey", label="deadline")
    right.set(xlabel="load, times the capacity", ylabel="ms until the answer", ylim=(0, None), xticks=factors)
    for axes in (left, right):
        axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


async def run(sizes: Sizes) -> dict[str, Any]:
    """One service, all steps."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_tiny_bundle(Path(folder) / "bundle", labels=2000, shortlist_size=300)
        async with picture_server() as origin:
            flags = ("--worker-threads", "1", "--fetch-trusted-origins", origin, "--drain-seconds", "0")
            with service_process(bundle, ENCODER_MILLISECONDS, flags, core=1) as service:
                return await measure(service, origin, sizes)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_result_options(parser)
    parser.add_argument("--smoke", action="store_true", help="a few seconds: whether it runs")
    options = parser.parse_args()
    facts = machine()
    found = {**facts, "encoder_ms": ENCODER_MILLISECONDS, **asyncio.run(run(SMOKE if options.smoke else Sizes()))}
    write_results(found, options, plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
