"""What a worker does with titles and pixels that waited: one call of the encoder, and what follows a title's vector.

Knows no queue and no cache. Functions of an encoder alone, so that whoever queues them is not held by its own stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from mufin.inputs import FloatArray, Uint8Array
from service.batching import run_batch
from service.bundles import Encoder


class Sequel(Protocol):
    """What a worker does with vectors that it has just made, before it gives them back: a way there and back less."""

    def __call__(self, jobs: Sequence[Any], vectors: Sequence[FloatArray]) -> list[Any]:
        """A result for every job; ``vectors``: the title's of each."""
        ...


@dataclass(slots=True)
class TitleItem:
    """One title on its way to the encoder."""

    title: str
    sequel: Sequel | None = None
    job: Any = None


@dataclass(slots=True)
class TitleResult:
    """What comes back of it."""

    packed: bytes
    """The vector (title_width,), as a cache keeps it"""
    tokens: tuple[int, int]
    """(known, unknown) to the tokenizer"""
    result: Any = None
    """Of the sequel; an Exception: it failed"""


def encode_titles(encoder: Encoder, number: np.dtype[Any], items: Sequence[TitleItem]) -> list[TitleResult]:
    """Vectors and tokens of each title, and what follows them: of one kind together, and failing alone."""
    vectors, tokens = encoder.encode_counted([own.title for own in items])
    packed = [vector.tobytes() for vector in vectors.astype(number)]
    kinds: dict[Sequel, list[int]] = {}
    for row, own in enumerate(items):
        if own.sequel is not None:
            kinds.setdefault(own.sequel, []).append(row)
    results: dict[int, Any] = {}
    for sequel, rows in kinds.items():
        pairs = [(items[row].job, unpacked(packed[row], number)) for row in rows]
        results.update(zip(rows, run_batch(partial(_continue, sequel), pairs), strict=True))
    return [TitleResult(packed[row], tokens[row], results.get(row)) for row in range(len(items))]


def _continue(sequel: Sequel, pairs: Sequence[tuple[Any, FloatArray]]) -> list[Any]:
    return sequel([job for job, _ in pairs], [vector for _, vector in pairs])


def unpacked(packed: bytes, number: np.dtype[Any]) -> FloatArray:
    """A vector as a cache keeps it -> float32."""
    return np.frombuffer(packed, dtype=number).astype(np.float32)


def encode_images(encoder: Encoder, pixels: Sequence[Uint8Array]) -> list[FloatArray]:
    """(side, side, 3) each -> (D,) each."""
    return list(encoder.encode_images(np.stack(pixels)))
