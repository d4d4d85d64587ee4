"""What the model calls alone cost, in process: tokens and pixels in, ranked labels out, no text, no picture, no HTTP.

ONNX Runtime, FAISS and reranking on the inputs of bench/serving.py, one thread. Called by bench/floored_service.py in the
process that serves, so that both are measured on the same ground.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mufin.inputs import FloatArray, TokenBatch, Uint8Array
from mufin.predictor import Predictor

_VOCABULARY = 50
_PRODUCTS = 20
"""That differ: as many as the cached load of the service asks for again and again"""


@dataclass(frozen=True)
class Case:
    """What products come with, and what of it has to be encoded."""

    name: str
    images: int
    encoded: bool
    batches: tuple[int, ...]
    """Products a call: one, and as many as the service may put into one"""


CASES = (
    Case("title", 0, True, (1, 8, 16, 32)),
    Case("1 image", 1, True, (1, 4, 8)),
    Case("5 images", 5, True, (1, 4, 16)),
    Case("5 images, cached", 5, False, (1, 8, 16, 32)),
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


def floor(own: Floor, case: Case, seconds: float) -> dict[str, Any]:
    """Of a lone product, and of each batch: products a second, and the CPU time of one. ``seconds``: of the lone product
    and of all batches, each."""
    lone = measure(own.call(case, 1), seconds)
    rest = case.batches[1:]
    points = {1: lone, **{batch: measure(own.call(case, batch), seconds / len(rest)) for batch in rest}}
    return {
        "lone_ms": lone[0], "lone_cpu_ms": lone[1],
        "per_second": {str(batch): 1000 * batch / wall for batch, (wall, _) in points.items()},
        "cpu_ms": {str(batch): cpu / batch for batch, (_, cpu) in points.items()},
    }  # fmt: skip
