"""What the model calls alone cost, in process: tokens and pixels in, ranked labels out, no text, no picture, no HTTP.

    python -m bench.serving_floor BUNDLE [--seconds 3]

ONNX Runtime, FAISS and reranking on the inputs of bench/serving.py, one thread; prints JSON. Started by that bench on the
core that the service has, so that both are measured on the same ground.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mufin.inputs import FloatArray, TokenBatch, Uint8Array
from mufin.predictor import Predictor, open_predictor

BATCHES = (1, 4, 8, 16)
_VOCABULARY = 50
_PRODUCTS = 20
"""That differ: as many as the cached load of the service asks for again and again"""


@dataclass(frozen=True)
class Case:
    """What products come with, and what of it has to be encoded."""

    name: str
    images: int
    encoded: bool


CASES = (
    Case("title", 0, True),
    Case("1 image", 1, True),
    Case("5 images", 5, True),
    Case("5 images, cached", 5, False),
)


@dataclass(frozen=True)
class Inputs:
    """Of one call."""

    tokens: TokenBatch
    pixels: Uint8Array
    """(encoded images, side, side, 3)"""
    titles: FloatArray
    """(B, D), where titles are not encoded"""
    images: FloatArray
    """(B x images, D), where images are not encoded"""


@dataclass
class Floor:
    """The stages over one bundle."""

    predictor: Predictor
    tokens: int

    def call(self, case: Case, batch: int) -> Callable[[], None]:
        """A call that ranks so many products, others each time, as the service gets them; inputs are made beforehand."""
        random = np.random.default_rng(0)
        inputs = itertools.cycle([self._inputs(case, batch, random) for _ in range(max(2, _PRODUCTS // batch))])
        predictor = self.predictor

        def run() -> None:
            own = next(inputs)
            titles = predictor.encode_tokens(own.tokens) if case.encoded else own.titles
            images = predictor.encode_images(own.pixels) if case.encoded and case.images else own.images
            bags = predictor.bag(np.split(images, batch), list(titles))
            shortlists = predictor.shortlist(np.stack([bag.embedding for bag in bags]))
            predictor.rerank(bags, shortlists)

        return run

    def _inputs(self, case: Case, batch: int, random: np.random.Generator) -> Inputs:
        side, dimension = self.predictor.input_spec.image_side_pixels, self.predictor.dimension
        ids = random.integers(4, _VOCABULARY, (batch, self.tokens))
        encoded = batch * case.images if case.encoded else 0
        return Inputs(
            TokenBatch(ids, np.ones_like(ids)),
            random.integers(0, 256, (encoded, side, side, 3)).astype(np.uint8),
            random.standard_normal((batch, dimension), dtype=np.float32),
            random.standard_normal((batch * case.images, dimension), dtype=np.float32),
        )


def measure(run: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Median milliseconds of a call, wall clock, and mean milliseconds of CPU."""
    run()
    times: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times)), 1000 * (time.process_time() - cpu) / len(times)


def floor(bundle: Path, tokens: int, seconds: float) -> dict[str, Any]:
    """Of every case: a lone product, and the batch that does most products a second."""
    own, found = Floor(open_predictor(bundle, "structure"), tokens), {}
    for case in CASES:
        points = {batch: measure(own.call(case, batch), seconds / len(BATCHES)) for batch in BATCHES}
        best = min(points, key=lambda batch: points[batch][0] / batch)
        found[case.name] = {
            "lone_ms": points[1][0], "best_batch": best, "best_per_second": 1000 * best / points[best][0],
            "best_cpu_ms": points[best][1] / best, "lone_cpu_ms": points[1][1],
        }  # fmt: skip
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6, help="a case")
    options = parser.parse_args()
    print(json.dumps(floor(options.bundle, options.tokens, options.seconds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
