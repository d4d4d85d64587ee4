"""Reranking 300 of 100,000 labels for one product, six slots on both sides, one thread: numpy, torch and compiled.

    python -m bench.reranking [--smoke] [--out bench/results/NAME.json]

Every turn asks for other labels, so that records come from memory, not from a cache of the processor; all ways take
turns over the same labels. Times are wall clock of one call, from the product's slots to the scores: the median of the
turns, and the shortest. ``batch of 8``: a call for eight products, by product. ``cold``: the file's pages are dropped
before every call; what that costs is this machine's disk. Vectors are random, and few of them are repeated to make so many
labels; times do not depend on them.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import mmap
import platform
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_export.label_records import fold_attention
from mufin.compilation import cpu_level
from mufin.inputs import FloatArray, Int64Array
from mufin.label_records_file import RECORD_NUMBERS, RECORDS_FILE, RecordBlock, RecordFile, RecordNumber, RecordWriter
from mufin.reranking import CompiledReranker, GatheredReranker, Reranker
from mufin.scoring import l2_normalise
from mufin.training.config import NetworkConfig
from mufin.training.model import BagAttention

SLOTS = 6
SHORTLIST = 300
BATCH = 8
DIMENSIONS = (192, 768)
DISTINCT = 5000
HEADER_BYTES = 64


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    labels: int
    turns: int
    torch_turns: int
    cold_turns: int


FULL, SMOKE = Sizes(100_000, 200, 20, 20), Sizes(1_000, 5, 2, 2)


def write_records(folder: Path, block: RecordBlock, labels: int, number: RecordNumber) -> RecordFile:
    """A file of ``labels`` records that repeats a block of fewer."""
    own = folder / number
    own.mkdir(parents=True)
    with RecordWriter(own, block.classifiers.shape[1], SLOTS, number) as writer:
        writer.append(block)
    path, distinct = own / RECORDS_FILE, len(block.keys)
    content = path.read_bytes()[HEADER_BYTES:]
    with path.open("r+b") as handle:
        handle.seek(8)
        handle.write(struct.pack("<Q", labels))
        handle.seek(0, os.SEEK_END)
        for _ in range(labels // distinct - 1):
            handle.write(content)
        os.fsync(handle.fileno())
    return RecordFile(path)


def make_block(attention: BagAttention, count: int, random: np.random.Generator) -> RecordBlock:
    """``count`` labels with all slots used."""
    dimension = attention.query.in_features
    bags = random.standard_normal((count, SLOTS, dimension), dtype=np.float32)
    classifiers = l2_normalise(random.standard_normal((count, dimension), dtype=np.float32))
    values = fold_attention(attention).label.values(bags)
    return RecordBlock(list(bags), list(values), classifiers, np.ones(count, dtype=np.bool_), "trained")


@dataclass(frozen=True)
class Work:
    """What every way of reranking is asked."""

    bag: FloatArray
    embedding: FloatArray
    labels: Sequence[Int64Array]
    """One shortlist a turn"""

    def call(self, reranker: Reranker, turn: int, products: int = 1) -> None:
        """One call, for ``products`` at once."""
        wanted = [self.labels[(turn + i) % len(self.labels)] for i in range(products)]
        reranker.rerank([self.bag] * products, [self.embedding] * products, wanted)


def torch_call(attention: BagAttention, records: RecordFile, work: Work) -> Callable[[int], None]:
    """The network as trained: keys and values projected at every call; bags and classifiers gathered as float32."""
    product = torch.from_numpy(work.bag)

    def call(turn: int) -> None:
        with torch.no_grad():
            gathered = records.gather(work.labels[turn])
            bags, mask = torch.from_numpy(gathered.keys), torch.from_numpy(gathered.mask)
            queries = product.expand(len(bags), -1, -1)
            attended, _ = attention.attend(queries, *attention.project(bags), mask)
            adapted = torch.nn.functional.normalize(attended.mean(dim=1), dim=-1)
            (adapted * torch.from_numpy(gathered.classifiers)).sum(dim=-1)

    return call


def in_turns(calls: dict[str, Callable[[int], None]], turns: int) -> dict[str, list[float]]:
    """Milliseconds of each call, all of them once a turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns):
        for name, call in calls.items():
            began = time.perf_counter()
            call(turn)
            times[name].append(1000 * (time.perf_counter() - began))
    return times


def drop_pages(records: RecordFile) -> None:
    """Take a mapped file out of this process and out of the page cache."""
    mapped: Any = records.rows
    while not isinstance(mapped, mmap.mmap):
        mapped = mapped.base
    mapped.madvise(mmap.MADV_DONTNEED)
    with records.path.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_times(reranker: Reranker, records: RecordFile, work: Work, turns: int) -> list[float]:
    """Milliseconds of calls that find no page in memory."""
    times = []
    for turn in range(turns):
        drop_pages(records)
        began = time.perf_counter()
        work.call(reranker, turn)
        times.append(1000 * (time.perf_counter() - began))
    return times


def measure(dimension: int, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """All ways at one dimension."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    attention = BagAttention(NetworkConfig(dimension=dimension)).eval().requires_grad_(False)
    block = make_block(attention, min(DISTINCT, sizes.labels), random)
    product = fold_attention(attention).product
    bag = random.standard_normal((SLOTS, dimension), dtype=np.float32)
    shortlists = [random.choice(sizes.labels, SHORTLIST, replace=False) for _ in range(max(sizes.turns, BATCH))]
    work = Work(bag, l2_normalise(bag.mean(axis=0)), shortlists)
    files = {number: write_records(folder, block, sizes.labels, number) for number in RECORD_NUMBERS}
    compiled = {number: CompiledReranker(own, product) for number, own in files.items()}
    plain = GatheredReranker(files["float32"].gather, product)
    for turn in range(len(shortlists)):  # every page that will be asked for is in memory
        for own in compiled.values():
            work.call(own, turn)
    calls: dict[str, Callable[[int], None]] = {"numpy float32": lambda turn: work.call(plain, turn)}
    for number, own in compiled.items():
        calls[f"numba {number}"] = lambda turn, own=own: work.call(own, turn)  # type: ignore[misc]
        calls[f"numba {number}, batch of {BATCH}"] = lambda turn, own=own: work.call(own, turn, BATCH)  # type: ignore[misc]
    times = in_turns(calls, sizes.turns)
    for name in times:
        if "batch" in name:
            times[name] = [own / BATCH for own in times[name]]
    times["torch, as trained"] = in_turns({"t": torch_call(attention, files["float32"], work)}, sizes.torch_turns)["t"]
    for number, own in compiled.items():
        times[f"numba {number}, cold"] = cold_times(own, files[number], work, sizes.cold_turns)
    for number, records in files.items():
        records.make_resident()
        own = CompiledReranker(records, product)
        for turn in range(len(shortlists)):
            work.call(own, turn)
        calls = {number: lambda turn, own=own: work.call(own, turn)}  # type: ignore[misc]
        times[f"numba {number}, resident"] = in_turns(calls, sizes.turns)[number]
        del own
    reference = float(np.median(times["numpy float32"]))
    return {
        "dimension": dimension,
        "record_bytes": {number: own.rows.dtype.itemsize for number, own in files.items()},
        "ways": {name: summary(own, reference) for name, own in times.items()},
    }


def summary(times: Sequence[float], reference: float) -> dict[str, float]:
    """Median and shortest in ms, and how many times faster than numpy the median is."""
    median = float(np.median(times))
    return {"median_ms": round(median, 3), "shortest_ms": round(min(times), 3), "ratio": round(reference / median, 2)}


def facts() -> dict[str, Any]:
    """Machine and libraries."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return {
        "machine": platform.machine(),
        "processor": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""),
        "cores": os.cpu_count(), "code_for": os.environ.get("NUMBA_CPU_NAME") or cpu_level(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("numba", "numpy", "torch")},
    }  # fmt: skip


def main() -> int:
    """Measure both dimensions, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="few labels and turns: whether it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = SMOKE if options.smoke else FULL
    results = []
    for dimension in DIMENSIONS:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(dimension, sizes, Path(folder)))
        print(f"D = {dimension}, {sizes.labels} labels, {SHORTLIST} reranked")
        for name, own in results[-1]["ways"].items():
            print(f"  {name:<28}{own['median_ms']:>9.3f} ms{own['shortest_ms']:>9.3f} ms{own['ratio']:>7.2f} x")
    if options.out is not None:
        found = {"sizes": vars(sizes), "slots": SLOTS, "shortlist": SHORTLIST, **facts(), "results": results}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
