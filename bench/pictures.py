"""What a picture costs before it is encoded: fetching it over HTTP, decoding it, resizing it.

    python -m bench.pictures [--smoke] [--out bench/results/NAME.json]

Fetching: the service's own fetcher against httpcore's pool with a bare GET, which checks nothing; five pictures at a time
from a server in another process, on uvloop. Decoding: the service's decoder on JPEGs of several sizes, with compiled
resizing and with Pillow's. All ways take turns; CPU time of one thread, the median of the turns.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import httpcore
import numpy as np
import uvloop
from PIL import Image

from bench.served import machine, picture_server
from mufin.inputs import DEFAULT_IMAGE_LIMITS, Resize, decode_image, pillow_resize
from mufin.resizing import compiled_resize
from service.decoding import Decoder
from service.fetching import Fetcher, FetchLimits
from service.picture_urls import UrlPolicy

SIDES = (224, 500, 800, 1000, 1500)
SIDE_OF_MODEL = 128
_TOGETHER = 5


def jpeg(side: int) -> bytes:
    """Smooth patches of some twenty pixels: neither flat nor noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (side // 20 + 1, side // 20 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def in_turns(ways: dict[str, Callable[[], object]], turns: int, pictures: int) -> dict[str, float]:
    """CPU milliseconds a picture of each way, which handles so many a call: the median of the turns, after one that warms."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            spent[name].append(1000 * (time.process_time() - began) / pictures)
    return {name: round(statistics.median(own[1:]), 4) for name, own in spent.items()}


def decoding(turns: int) -> dict[str, Any]:
    """By the side of a JPEG: the whole decoding, and resizing alone."""
    resizes: dict[str, Resize] = {"compiled": compiled_resize(), "pillow": pillow_resize}
    # Its making has memory given back as in the service.
    Decoder(1, DEFAULT_IMAGE_LIMITS.max_pixels, DEFAULT_IMAGE_LIMITS).close()
    found: dict[str, Any] = {}
    for side in SIDES:
        content, picture = jpeg(side), Image.open(io.BytesIO(jpeg(side)))
        picture.draft(None, (2 * SIDE_OF_MODEL, 2 * SIDE_OF_MODEL))
        picture.load()

        def decode(resize: Resize, content: bytes = content) -> object:
            return [decode_image(content, SIDE_OF_MODEL, resize=resize) for _ in range(10)]

        def shrink(resize: Resize, picture: Image.Image = picture) -> object:
            return [resize(picture, SIDE_OF_MODEL, SIDE_OF_MODEL) for _ in range(10)]

        found[str(side)] = {
            "kilobytes": len(content) >> 10,
            "decode_ms": in_turns({name: partial(decode, own) for name, own in resizes.items()}, turns, 10),
            "resize_ms": in_turns({name: partial(shrink, own) for name, own in resizes.items()}, turns, 10),
        }
        print(f"  {side} px: {found[str(side)]}", flush=True)
    return found


@contextmanager
def other_process() -> Iterator[str]:
    """The origin of a picture server in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.pictures", "--serve"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def fetching(origin: str, turns: int, pictures: int) -> dict[str, float]:
    """CPU milliseconds a picture."""
    numbers = count()
    asked = ModuleType("sniffio")  # httpcore looks for it at every call, and a failed import would be the larger part
    asked.current_async_library = lambda: "asyncio"  # type: ignore[attr-defined]
    sys.modules.setdefault("sniffio", asked)
    fetcher = Fetcher(UrlPolicy(trusted_origins=frozenset({origin})), FetchLimits())
    ways: dict[str, Callable[[str], Awaitable[object]]] = {"service": fetcher.fetch}
    spent: dict[str, list[float]] = {"service": [], "httpcore, bare": []}
    async with httpcore.AsyncConnectionPool() as pool:

        async def bare(url: str) -> bytes:
            return (await pool.request("GET", url)).content

        ways["httpcore, bare"] = bare
        for _ in range(turns + 1):
            for name, way in ways.items():
                began = time.process_time()
                for _ in range(pictures // _TOGETHER):
                    await asyncio.gather(*(way(f"{origin}/{next(numbers)}.jpg") for _ in range(_TOGETHER)))
                spent[name].append(1000 * (time.process_time() - began) / pictures)
    await fetcher.aclose()
    return {name: round(statistics.median(own[1:]), 4) for name, own in spent.items()}


async def _serve() -> None:
    async with picture_server() as origin:
        print(origin, flush=True)
        await asyncio.Event().wait()


def main() -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a turn: whether it runs")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(_serve())
        return 0
    turns, pictures = (1, 50) if options.smoke else (15, 500)
    found: dict[str, Any] = machine()
    with other_process() as origin:
        found["fetch_ms"] = uvloop.run(fetching(origin, turns, pictures))
    print(f"fetching, ms of CPU a picture: {found['fetch_ms']}\ndecoding, to {SIDE_OF_MODEL} px:", flush=True)
    found["decoding"] = decoding(turns)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
