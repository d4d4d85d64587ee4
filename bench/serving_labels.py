"""Shortlist and reranking of one product over a bundle's labels, one thread, and the recall of its shortlist.

    python -m bench.serving_labels BUNDLE

Queries are labels moved away as in bench/label_index.py; prints JSON. Started by bench/serving.py on the service's core.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.label_index import clustered
from mufin.predictor import ProductBag, open_predictor

_SLOTS = 6
_ROUNDS = 4


def label_times(bundle: Path) -> dict[str, Any]:
    """Median milliseconds of one call, and recall at the bundle's shortlist size."""
    predictor = open_predictor(bundle, "structure", resident=True)
    count, size = predictor.labels.size, predictor.score_spec.shortlist_size
    labels, queries = clustered(count)
    exact = np.argpartition(-(queries @ labels.T), size - 1, axis=1)[:, :size]
    slots = np.random.default_rng(0).standard_normal((_SLOTS, predictor.dimension), dtype=np.float32)
    bags = [ProductBag(slots, query, True, None, None) for query in queries]
    times: list[float] = []
    hits = 0
    for turn in range(_ROUNDS + 1):
        for row, bag in enumerate(bags):
            began = time.perf_counter()
            shortlists = predictor.shortlist(bag.embedding[None])
            predictor.rerank([bag], shortlists)
            if turn:  # the first round touches the pages
                times.append(time.perf_counter() - began)
            else:
                hits += len(np.intersect1d(shortlists[0].labels, exact[row]))
    return {
        "labels": count, "ms": 1000 * float(np.median(times)), "p95_ms": 1000 * float(np.percentile(times, 95)),
        "recall": hits / exact.size,
    }  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    print(json.dumps(label_times(parser.parse_args().bundle)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
