"""Kinds of label index on clustered vectors: build time, bytes a label, recall over query time.

    python -m bench.label_index [--smoke] [--labels 10000,100000 --kinds ivf-sq8,ivf-pq] [--out RESULT.json]
    python -m bench.label_index --plot RESULT.json docs/figures/label-index.png

The vectors (``clustered``): 60 departments, families of some 1,000 labels within them, their sizes lognormal (sigma 1),
labels around their family; the spread of every level falls over the axes of a random rotation as i^-0.4, as that of
learned embeddings does. A query is a label moved until their cosine is about .78, the 300th nearest label then lies at
about .57. D = 192, K = 300, one seed. ``--spread 1.5`` makes families run into each other, which is harder.

Recall is the share of the exact 300 nearest labels found. Query times are those of ``mufin.label_search`` with the
vectors of the bundle behind it, one thread, one query at a time, index files opened as a bundle's are. Results are
written after every index.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from model_export.index_kinds import APPROXIMATE_KINDS, ApproximateKind, faiss_threads, set_effort
from model_export.index_tuning import ExactShortlists, exact_shortlists, query_milliseconds, tune
from model_export.label_index import write_vectors
from mufin.inputs import FloatArray
from mufin.label_search import EXACT, KINDS, LabelSearch, read_mapped

faiss: Any = _faiss

DIMENSION, SHORTLIST, QUERIES, TARGET = 192, 300, 256, 0.95
INVERTED = tuple(name for name in APPROXIMATE_KINDS if KINDS[name].lists)
EVERY = (EXACT, *APPROXIMATE_KINDS)
PLAN = (
    (10_000, EVERY), (100_000, EVERY), (300_000, EVERY), (1_000_000, (EXACT, *INVERTED)), (4_500_000, INVERTED),
    (1_000_000, ("hnsw-sq8",)),
)  # fmt: skip
SPREAD = 0.9
_MOST_TIMED_EXACTLY = 64
_BEYOND = 0.985
_MADE_AT_ONCE = 100_000


def clustered(count: int, spread: float = SPREAD, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """(L, D) labels, so far around their families, and (QUERIES, D) queries near some of them, of unit length."""
    random = np.random.default_rng(seed)
    scale = (1 + np.arange(DIMENSION)) ** -0.4
    axes = np.linalg.qr(random.standard_normal((DIMENSION, DIMENSION)))[0]
    shape = (scale[:, None] / np.linalg.norm(scale) * axes).astype(np.float32)

    def directions(number: int) -> FloatArray:
        return np.asarray(random.standard_normal((number, DIMENSION), dtype=np.float32) @ shape)

    departments = directions(60)
    families = max(8, count // 1000)
    centres = 0.8 * departments[random.integers(0, 60, families)] + directions(families)
    share = random.lognormal(0, 1, families)
    family = random.choice(families, count, p=share / share.sum())
    labels = np.empty((count, DIMENSION), dtype=np.float32)
    for start in range(0, count, _MADE_AT_ONCE):
        own = family[start : start + _MADE_AT_ONCE]
        labels[start : start + len(own)] = _unit(centres[own] + spread * directions(len(own)))
    near = labels[random.choice(count, QUERIES, replace=False)]
    return labels, _unit(near + 0.8 * directions(QUERIES))


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def measure_exact(labels: FloatArray, exact: ExactShortlists) -> dict[str, Any]:
    """Comparison with every label."""
    index = faiss.IndexFlatIP(DIMENSION)
    began = time.monotonic()
    index.add(labels)
    seconds = time.monotonic() - began
    search = LabelSearch(index, EXACT, labels)
    times = query_milliseconds(search, exact.queries[:_MOST_TIMED_EXACTLY], SHORTLIST)
    return {
        "kind": EXACT, "build_seconds": round(seconds, 2), "bytes_a_label": 4 * DIMENSION, "reached": True,
        "recall": 1.0, **_times(times), "curve": [],
    }  # fmt: skip


def measure(
    kind: ApproximateKind, labels: FloatArray, exact: ExactShortlists, folder: Path, threads: int
) -> dict[str, Any]:
    """Build, tune to the target, write, open as a bundle does, and time."""
    began = time.monotonic()
    index = kind.build(labels, threads)
    seconds = time.monotonic() - began
    nobody = np.zeros(0, dtype=np.int64)
    with faiss_threads(threads):
        tuned = tune(index, kind, labels, nobody, exact, TARGET)
        tuning_seconds = time.monotonic() - began - seconds
        beyond = tune(index, kind, labels, nobody, exact, _BEYOND)  # for the curve
        set_effort(index, kind, (tuned.best or tuned.highest).effort)
    path = folder / "labels.faiss"
    faiss.write_index(index, str(path))
    point = tuned.best or tuned.highest
    del index
    opened = read_mapped(path, KINDS[kind.name].flag)
    vectors = np.asarray(np.load(folder / "label_vectors.npy", mmap_mode="r"))
    search = LabelSearch(opened, kind.name, vectors, candidates=point.candidates)
    search.search(exact.queries, SHORTLIST)  # once: pages of mapped files come into memory
    times = query_milliseconds(search, exact.queries, SHORTLIST)
    bytes_a_label = path.stat().st_size / len(labels)
    del opened, search
    path.unlink()
    return {
        "kind": kind.name, "build_seconds": round(seconds, 2), "build_threads": threads if kind.lists else 1,
        "estimated_build_seconds": round(kind.build_seconds(len(labels), DIMENSION), 1),
        "tuning_seconds": round(tuning_seconds, 2), "bytes_a_label": round(bytes_a_label, 1),
        "estimated_bytes_a_label": round(kind.bytes_a_label(len(labels), DIMENSION), 1),
        "reached": tuned.best is not None, **point.to_json(kind), **_times(times),
        "estimated_ms": round(kind.cost.microseconds(point.work, DIMENSION) / 1000, 4),
        "curve": [
            {
                **p.to_json(kind), "lists": p.work.lists, "visited": p.work.visited, "codes": round(p.work.codes, 1),
                "scored": p.work.candidates,
            }
            for p in (*tuned.points, *beyond.points)
        ],
    }  # fmt: skip


def _times(times: FloatArray) -> dict[str, float]:
    return {
        "median_ms": round(float(np.median(times)), 4), "p95_ms": round(float(np.percentile(times, 95)), 4),
        "queries_timed": len(times),
    }  # fmt: skip


def run(
    plan: Sequence[tuple[int, Sequence[str]]], spread: float, threads: int, out: Path | None
) -> dict[str, Any]:  # fmt: skip
    """Every kind at every size, written down as soon as it is known."""
    results: list[dict[str, Any]] = []
    document: dict[str, Any] = {
        "dimension": DIMENSION,
        "shortlist": SHORTLIST,
        "target_recall": TARGET,
        "spread": spread,
    }
    document.update(_machine())
    for count, kinds in plan:
        labels, queries = clustered(count, spread)
        with faiss_threads(threads), tempfile.TemporaryDirectory() as scratch:
            exact = exact_shortlists(labels, queries, SHORTLIST)
            folder = Path(scratch)
            write_vectors(folder / "label_vectors.npy", labels)
            for name in kinds:
                own = (
                    measure_exact(labels, exact)
                    if name == EXACT
                    else measure(APPROXIMATE_KINDS[name], labels, exact, folder, threads)
                )
                results.append({"labels": count, **own})
                print({key: value for key, value in results[-1].items() if key != "curve"}, flush=True)
                document["results"] = results
                if out:
                    out.write_text(json.dumps(document, indent=1) + "\n")
    return document


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Recall over query time, one panel a number of labels."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    sizes = sorted({own["labels"] for own in document["results"]})
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(3.1 * len(sizes), 3.2), sharey=True, squeeze=False)
    colours = dict(zip(APPROXIMATE_KINDS, ("#8b5a2b", "#1f6f8b", "#7a9e3f", "#b5487a"), strict=True))
    for axis, size in zip(axes[0], sizes, strict=True):
        for own in (o for o in document["results"] if o["labels"] == size and o["curve"]):
            axis.plot(*_front(own["curve"]), marker="o", markersize=3, color=colours[own["kind"]], label=own["kind"])
        axis.axhline(document["target_recall"], color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=f"{size:,} labels", xlabel="ms a query, one thread", ylim=(0.7, 1.005))
        axis.set_xlim(0, min(axis.get_xlim()[1], 1.4))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"recall@{document['shortlist']}")
    axes[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _front(curve: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Points that no faster one beats."""
    times: list[float] = []
    recalls: list[float] = []
    for point in sorted(curve, key=lambda own: float(own["ms"])):
        if not recalls or point["recall"] > recalls[-1]:
            times.append(point["ms"])
            recalls.append(point["recall"])
    return times, recalls


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return {
        "machine": platform.machine(),
        "processor": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""),
        "faiss": f"{faiss.__version__} {faiss.get_compile_options().strip()}", "python": platform.python_version(),
    }  # fmt: skip


def main() -> int:
    """Measure, or plot what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="10,000 labels, two kinds: whether it runs")
    parser.add_argument("--labels", help="numbers of labels instead of the plan's, comma-separated")
    parser.add_argument("--kinds", help="kinds instead of all, comma-separated")
    parser.add_argument("--threads", type=int, default=2, help="of building (a graph: 1) and of ground truth")
    parser.add_argument(
        "--spread", type=float, default=SPREAD, help="of labels around their family (default %(default)s)"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, nargs=2, metavar=("RESULT", "PNG"))
    options = parser.parse_args()
    if options.plot:
        plot(json.loads(options.plot[0].read_text()), options.plot[1])
        return 0
    kinds = tuple(options.kinds.split(",")) if options.kinds else EVERY
    plan: Sequence[tuple[int, Sequence[str]]] = PLAN
    if options.smoke:
        plan = ((10_000, (EXACT, "ivf-sq8")),)
    elif options.labels:
        plan = [(int(count), kinds) for count in options.labels.split(",")]
    run(plan, options.spread, options.threads, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
