"""Classifier scores of shortlists: compiled over the label records in place, or plain numpy over gathered ones.

Knows neither index nor manifest. numba is imported only when a compiled reranker is made; nothing falls back from one
kernel to the other by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mufin.compilation import KERNELS, Kernel, begin, compile_only, kept
from mufin.errors import ConfigError, InputError
from mufin.inputs import FloatArray, Int64Array
from mufin.label_files import SOURCES
from mufin.label_records_file import RECORD_NUMBERS, RECORDS_FILE, RecordBlock, RecordFile, RecordNumber, RecordWriter
from mufin.scoring import CrossAttention, LabelRecords, classifier_scores


class Reranker(Protocol):
    """Scores of labels for products. Thread-safe."""

    def rerank(
        self, bags: Sequence[FloatArray], embeddings: Sequence[FloatArray], labels: Sequence[Int64Array]
    ) -> list[FloatArray]:
        """B products, one call: slots (S, D) after self-attention and embedding (D,) of each, and its labels (n,).

        Returns s(x, l) (n,) float32 of each, in -1..1, in the order of its labels; no company changes a score.
        """


class GatheredReranker:
    """numpy over records that a label store hands out: for stores in memory or elsewhere, and several heads."""

    def __init__(self, records: Callable[[Int64Array], LabelRecords], attention: CrossAttention | None) -> None:
        self._records, self._attention = records, attention

    def rerank(
        self, bags: Sequence[FloatArray], embeddings: Sequence[FloatArray], labels: Sequence[Int64Array]
    ) -> list[FloatArray]:
        """See ``Reranker``."""
        return [self._one(*product) for product in zip(bags, embeddings, labels, strict=True)]

    def _one(self, bag: FloatArray, embedding: FloatArray, labels: Int64Array) -> FloatArray:
        if len(labels) == 0:
            return np.zeros(0, dtype=np.float32)
        records = self._records(labels)
        if self._attention is None:
            return np.asarray(records.classifiers @ embedding, dtype=np.float32)
        return classifier_scores(self._attention, bag, records)


class CompiledReranker:
    """numba over a record file in place. Releases the GIL while it computes."""

    def __init__(self, records: RecordFile, attention: CrossAttention | None, kernels: Any = None) -> None:
        """Compiles, or reads what was compiled before, and scores one label: the first request is as fast as others.

        ``kernels``: what is called in place of the compiled functions, to compile without running. Raises ConfigError
        for several heads, which ``GatheredReranker`` scores, and when numba is not there.
        """
        if attention is not None and attention.heads != 1:
            raise ConfigError(f"cross attention has {attention.heads} heads, compiled reranking folds 1: use numpy")
        self._kernels = kernels or _kernels()
        self._count, self._dimension, self._attention = records.count, records.dimension, attention
        self._numbers, self._floats, self._octets = _views(records)
        if attention is not None:  # copies: the compiler tells read-only arrays and others apart
            vectors = (attention.query_matrix.T.reshape(-1), attention.query_bias, attention.norm_weight)
            self._vectors = tuple(np.array(own, dtype=np.float32) for own in (*vectors, attention.norm_bias))
        self._places = _places(records.rows.dtype, records.slots)
        self.rerank(
            [np.zeros((1, self._dimension), np.float32)], [np.zeros(self._dimension, np.float32)],
            [np.zeros(min(1, self._count), np.int64)],
        )  # fmt: skip

    def rerank(
        self, bags: Sequence[FloatArray], embeddings: Sequence[FloatArray], labels: Sequence[Int64Array]
    ) -> list[FloatArray]:
        """See ``Reranker``. Raises InputError for a label that there is not and a product of another dimension."""
        if not bags:
            return []
        flat = np.ascontiguousarray(np.concatenate(labels), dtype=np.int64)
        self._check(flat, bags if self._attention is not None else embeddings)
        ends = list(accumulate(map(len, labels)))  # numpy's cumsum and split take ten calls each, for a few numbers
        scores = np.zeros(len(flat), dtype=np.float32)
        if self._attention is None:
            stacked = np.ascontiguousarray(np.stack(embeddings), dtype=np.float32)
            bounds = np.array(ends, dtype=np.int64)
            self._kernels.plain_scores(self._numbers, self._floats, self._places, flat, bounds, stacked, scores)
        else:
            self._attend(self._attention, bags, flat, ends, scores)
        return [scores[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _attend(
        self, attention: CrossAttention, bags: Sequence[FloatArray], labels: Int64Array, ends: list[int],
        scores: FloatArray,
    ) -> None:  # fmt: skip
        self._kernels.cross_attention_scores(
            self._numbers, self._floats, self._octets, self._places, labels, np.array(ends, dtype=np.int64),
            np.concatenate(bags).astype(np.float32), np.array(list(accumulate(map(len, bags))), dtype=np.int64),
            *self._vectors, np.float32(attention.norm_epsilon), scores,
        )  # fmt: skip

    def _check(self, labels: Int64Array, products: Sequence[FloatArray]) -> None:
        """Compiled code reads wherever it is told to."""
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < self._count):
            raise InputError(f"labels {int(labels.min())}..{int(labels.max())} are asked for, there are {self._count}")
        for product in products:
            if product.shape[-1] != self._dimension or product.size == 0:
                raise InputError(f"a product is {product.shape}, the records have dimension {self._dimension}")


def make_reranker(
    records: RecordFile, attention: CrossAttention | None, kernel: Kernel, gather: Callable[[Int64Array], LabelRecords]
) -> Reranker:
    """The reranker of a record file. Several heads are numpy's with either kernel: nothing else computes them."""
    if kernel not in KERNELS:
        raise ConfigError(f"kernel is {kernel!r}, must be one of {', '.join(KERNELS)}")
    if kernel == "numpy" or (attention is not None and attention.heads != 1):
        return GatheredReranker(gather, attention)
    return CompiledReranker(records, attention)


def _views(records: RecordFile) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """The same memory as (L, numbers), (L, floats) and (L, bytes) of a record."""
    rows = np.asarray(records.rows)
    octets = np.ndarray((len(rows), rows.dtype.itemsize), np.uint8, rows)
    octets.flags.writeable = False  # one type for the compiler, whatever the source
    number: dict[RecordNumber, Any] = {"float32": np.float32, "float16": np.uint16, "int8": np.int8}
    return octets.view(number[records.number]), octets.view(np.float32), octets


def _places(kind: np.dtype[np.void], slots: int) -> tuple[int, int, int, int, int, int]:
    """M, and where things begin in a record, each counted in its own view."""
    fields: Mapping[str, Any] = kind.fields or {}
    starts = {name: int(field[1]) for name, field in fields.items()}
    number_bytes = kind["classifier"].base.itemsize
    scales = starts.get("scales", starts["means"])  # numbers without scales never look at them
    return (
        slots, starts["count"], starts["classifier"] // number_bytes, starts["gram"] // 4, starts["means"] // 4,
        scales // 4,
    )  # fmt: skip


def _kernels() -> Any:
    """The compiled module. Raises ConfigError when numba is not installed."""
    begin("install it, or open the bundle with kernel='numpy'")
    from mufin import reranking_kernels

    return kept(reranking_kernels)


def compile_here() -> None:
    """Compile every kernel for every record type for the CPU that numba is set to."""
    kernels = compile_only(_kernels())
    two, one = np.ones(2, dtype=np.float32), np.ones((1, 2), dtype=np.float32)
    attention = CrossAttention(np.eye(2, dtype=np.float32), two, two, two)
    block = RecordBlock([one], [one], one, np.ones(1, dtype=np.bool_), SOURCES[0])
    for number in RECORD_NUMBERS:
        with tempfile.TemporaryDirectory() as folder:
            with RecordWriter(Path(folder), 2, 1, number) as writer:
                writer.append(block)
            records = RecordFile(Path(folder) / RECORDS_FILE)
            CompiledReranker(records, attention, kernels)
            CompiledReranker(records, None, kernels)
