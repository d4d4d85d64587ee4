"""How long each stage of an answer takes on this machine, by the bundle's golden products.

Knows no network and no report. Times depend on the machine, so they stand in report.json and never in the manifest.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from mufin.golden import Golden, read_golden
from mufin.inputs import FloatArray
from mufin.predictor import Predictor

_CALLS = 40
_WARM_UP_CALLS = 3
_STAGE_SECONDS = 3.0
"""A slow encoder gets fewer calls, so that the export does not wait for the report."""
_RESULTS = 10


def measure_stages(predictor: Predictor, folder: Path, calls: int = _CALLS) -> dict[str, Any]:
    """Median and 90th percentile of each stage in milliseconds, one item a call, warm; with the machine's facts.

    ``folder``: the bundle, for its golden products. A stage that none of them reaches is left out.
    """
    golden = read_golden(folder)
    stages = [
        {"stage": name, "work": work, **_timed(run, items, calls)}
        for name, work, run, items in _stages(predictor, golden)
        if items
    ]
    return {"machine": machine_facts(), "threads": 1, "stages": stages}


def _stages(predictor: Predictor, golden: Golden) -> Iterator[tuple[str, str, Callable[[Any], object], list[Any]]]:
    """Name, what one call does, the call, and the items it is made with in turn."""
    titles = [title for title, there in zip(golden.titles, golden.has_title, strict=True) if there]
    yield "title", "encode 1 title", lambda title: predictor.encode_titles([title]), titles
    images = [golden.pixels[i : i + 1] for i in range(len(golden.pixels))]
    yield "image", "encode 1 image", predictor.encode_images, images
    parts = list(zip(_image_vectors(golden), _title_vectors(golden), strict=True))
    yield "bag", f"{golden.slots.shape[1]} slots at most", lambda part: predictor.bag([part[0]], [part[1]]), parts
    bags = predictor.bag([images for images, _ in parts], [title for _, title in parts], golden.titles)
    size = min(predictor.score_spec.shortlist_size, predictor.labels.size)
    searched = f"{size} of {predictor.labels.size:,} labels"
    yield "shortlist", searched, lambda bag: predictor.shortlist(bag.embedding[None]), list(bags)
    found = predictor.shortlist_without(bags, 1)
    pairs = list(zip(bags, found, strict=True))
    yield "rerank", f"{size} labels", lambda pair: predictor.rerank([pair[0]], [pair[1]]), pairs
    scored = list(zip(bags, found, predictor.rerank(bags, found), strict=True))
    yield "fuse", f"best {_RESULTS}", lambda own: predictor.fuse(own[0], own[1], own[2], _RESULTS), scored


def _image_vectors(golden: Golden) -> list[FloatArray]:
    return np.split(golden.image_vectors, golden.image_offsets[1:-1])


def _title_vectors(golden: Golden) -> list[FloatArray | None]:
    pairs = zip(golden.title_vectors, golden.has_title, strict=True)
    return [vector if there else None for vector, there in pairs]


def _timed(run: Callable[[Any], object], items: list[Any], calls: int) -> dict[str, Any]:
    turn = cycle(items)
    for _ in range(min(_WARM_UP_CALLS, calls)):
        run(next(turn))
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < calls and (not taken or time.perf_counter() - began < _STAGE_SECONDS):
        item, start = next(turn), time.perf_counter()
        run(item)
        taken.append(1000 * (time.perf_counter() - start))
    median, high = np.percentile(taken, [50, 90])
    return {"median_ms": round(float(median), 4), "p90_ms": round(float(high), 4), "calls": len(taken)}


def machine_facts() -> dict[str, Any]:
    """Processor and number of cores, as far as the system tells."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    return {"processor": model, "cores": os.cpu_count()}
