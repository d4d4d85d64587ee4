"""What a deployment needs, computed from measured figures: the tables of docs/capacity.md.

    python -m bench.capacity [--serving bench/results/NAME-serving.json] [--mix KIND=RATE ...] [--out FILE]

Measured here: the bytes that an entry takes in a real Redis. Taken from bench.serving: requests a second of one core.
Computed: core hours for a million requests at 65 % load, where the HPA stands; bytes a label of every file that grows
with the labels, from the layouts of docs/bundle.md. --out keeps everything as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from mufin.label_records_file import record_type
from service.cache import cache_key
from service.redis_client import RedisClient
from service.shared_cache import RedisCache
from tests.service.redis_process import redis_process

UTILISATION = 0.65
"""The HPA's target: beyond it waiting grows, below it cores idle."""
SERVING = Path("bench/results/2026-11-27-serving.json")
OUT = Path("bench/results/2026-11-26-capacity.json")
_ENTRIES = 20_000
_DAY = 86_400.0
_ENCODER = "sha256:" + "0" * 64
SLOTS = 6
# Bytes a label of ivf-sq8 beside one a dimension: 204 in all at D = 192, measured by bench.label_index at 300,000 and 4.5 million.
_INDEX_BYTES = 12
# label_offsets.npy and label_lookup.npy; labels.bin with a title of some 60 characters and an id, as the bench makes them.
_LOOKUP_BYTES, _TEXT_BYTES = 24, 120
SIZES = (300_000, 4_500_000, 100_000_000)


@dataclass(frozen=True)
class LabelBytes:
    """Of one label, by file."""

    records: int
    vectors: int
    index: int
    other: int = _LOOKUP_BYTES + _TEXT_BYTES

    @property
    def whole(self) -> int:
        """All of them."""
        return self.records + self.vectors + self.index + self.other


def label_bytes(dimension: int, number: str) -> LabelBytes:
    """Six slots a label, an approximate index with its 16-bit vectors."""
    return LabelBytes(record_type(dimension, SLOTS, number).itemsize, 2 * dimension, dimension + _INDEX_BYTES)


def core_hours(per_second: float) -> float:
    """For a million requests, cores being busy to ``UTILISATION``."""
    return 1e6 / (per_second * UTILISATION) / 3600


def cores(requests_per_second: float, per_second: float) -> float:
    """That so many requests a second need."""
    return requests_per_second / (per_second * UTILISATION)


async def _fill(url: str, width: int) -> None:
    client = RedisClient(url, 5.0)
    cache = RedisCache(client, 7 * _DAY)
    for first in range(0, _ENTRIES, 500):
        values = {
            cache_key(_ENCODER, "image", str(n).encode()): os.urandom(2 * width) for n in range(first, first + 500)
        }
        await cache.put_many(values, 7 * _DAY)
    await cache.aclose()


def _used_bytes(url: str) -> int:
    with Redis.from_url(url) as own:
        return int(own.info("memory")["used_memory"])


def redis_entry_bytes(width: int) -> float:
    """Of one embedding in a real Redis: key, fp16 numbers, expiry and its own tables."""
    with tempfile.TemporaryDirectory() as folder, redis_process(Path(folder)) as redis:
        before = _used_bytes(redis.url)
        asyncio.run(_fill(redis.url, width))
        return round((_used_bytes(redis.url) - before) / _ENTRIES, 1)


def rate_table(serving: dict[str, Any]) -> list[str]:
    """Markdown: what one core does."""
    lines = [
        "| request | a second on one core, saturated | core hours a million at 65 % | cores for 1,000 a second at 65 % |",
        "|---|---|---|---|",
    ]
    for name, own in serving["service"].items():
        if isinstance(own, dict):
            rate = own["per_second"]
            lines.append(f"| {name} | {rate:.1f} | {core_hours(rate):.2f} | {cores(1000, rate):.1f} |")
    return lines


def label_table() -> list[str]:
    """Markdown: memory by labels."""
    lines = [
        "| D | numbers | records | label vectors | index | ids and titles | a label | "
        + " | ".join(f"{size:,}" for size in SIZES) + " |",
        "|---" * (7 + len(SIZES)) + "|",
    ]  # fmt: skip
    for dimension in (192, 768):
        for number in ("float32", "float16", "int8"):
            own = label_bytes(dimension, number)
            sizes = " | ".join(f"{size * own.whole / 1e9:,.1f} GB" for size in SIZES)
            lines.append(
                f"| {dimension} | {number} | {own.records:,} | {own.vectors:,} | {own.index} | {own.other} | "
                f"{own.whole:,} | {sizes} |"
            )
    return lines


def redis_table(entries: dict[str, float]) -> list[str]:
    """Markdown: what a Redis holds."""
    lines = ["| width | bytes an entry | entries in 1 GiB | in 8 GiB |", "|---|---|---|---|"]
    for width, own in entries.items():
        held = " | ".join(f"{size * 2**30 / own / 1e6:.1f} M" for size in (1, 8))
        lines.append(f"| {width} | {own:,.0f} | {held} |")
    return lines


def mix_line(serving: dict[str, Any], mix: Sequence[str]) -> str:
    """Cores for so many requests a second of each kind (KIND=RATE). Raises SystemExit for a kind that was not measured."""
    whole = 0.0
    for own in mix:
        name, _, rate = own.rpartition("=")
        if name not in serving["service"]:
            known = ", ".join(key for key, value in serving["service"].items() if isinstance(value, dict))
            raise SystemExit(f"bench.capacity: --mix {own!r}: there are {known}; write KIND=REQUESTS_A_SECOND")
        whole += cores(float(rate), serving["service"][name]["per_second"])
    return f"{' + '.join(mix)}: {whole:.1f} cores at {UTILISATION:.0%}"


def tables(serving: dict[str, Any], entries: dict[str, float]) -> str:
    """All of them, as docs/capacity.md has them."""
    return "\n\n".join("\n".join(own) for own in (rate_table(serving), label_table(), redis_table(entries)))


def main() -> int:
    """Measure, compute, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--serving", type=Path, default=SERVING, help="figures of bench.serving")
    parser.add_argument("--mix", action="append", default=[], metavar="KIND=RATE", help="how many cores these need")
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    serving = json.loads(options.serving.read_text(encoding="utf-8"))
    if options.mix:
        print(mix_line(serving, options.mix))
        return 0
    if shutil.which("redis-server") is None:
        print("bench.capacity: left out, redis-server not on PATH")
        return 0
    entries = {str(width): redis_entry_bytes(width) for width in (192, 768)}
    print(tables(serving, entries))
    if options.out is not None:
        options.out.write_text(json.dumps({"redis_entry_bytes": entries}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
