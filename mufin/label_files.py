"""The label files of a bundle: records.bin for reranking, labels.bin for answering.

Know neither FAISS nor the manifest. Both are mapped, so that opening takes the same time for any L.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from mufin.errors import BundleError
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.scoring import LabelRecords, l2_normalise

RECORDS_FILE = "records.bin"
LABELS_FILE = "labels.bin"
OFFSETS_FILE = "label_offsets.npy"
LOOKUP_FILE = "label_lookup.npy"

LabelSource = Literal["trained", "encoder"]
SOURCES: tuple[LabelSource, ...] = ("trained", "encoder")

_MAGIC = b"MUFINREC"
# magic, L, D, M, stride, bytes a number; padded to one cache line.
_HEADER = struct.Struct("<8sQIIII32x")
_CACHE_LINE_BYTES = 64
_AGAIN = "run mufin-export again"


@dataclass(frozen=True, slots=True)
class Label:
    """What an answer says of a label."""

    index: int
    id: str
    title: str
    images: tuple[str, ...]
    """URLs, the label's own or image_base_url + path."""
    metadata: Mapping[str, Any]
    source: LabelSource


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """N labels on their way into records.bin. Bags hold real slots only: images first, the title last."""

    keys: Sequence[FloatArray]
    """N times (m, D): the bag after self-attention, 1 <= m <= M"""
    values: Sequence[FloatArray]
    """N times (m, D): W_o W_v bag + W_o b_v + b_o"""
    classifiers: FloatArray
    """(N, D), unit length"""
    has_title: BoolArray
    """(N,)"""
    source: LabelSource


def record_type(dimension: int, slots: int, number: str) -> np.dtype[np.void]:
    """One record as a numpy type: whole cache lines, so that no two labels share one."""
    fields = [
        ("classifier", number, (dimension,)),
        ("keys", number, (slots, dimension)),
        ("values", number, (slots, dimension)),
        ("count", "u1"),
        ("has_title", "u1"),
        ("source", "u1"),
    ]
    used = np.dtype(fields).itemsize
    padding = -used % _CACHE_LINE_BYTES
    return np.dtype([*fields, ("padding", "u1", (padding,))])


class RecordWriter:
    """Writes records.bin block by block, so that memory does not grow with L."""

    def __init__(self, folder: Path, dimension: int, slots: int, number: Literal["float32", "float16"]) -> None:
        self._type = record_type(dimension, slots, number)
        self._sizes = (dimension, slots, self._type.itemsize, np.dtype(number).itemsize)
        self._handle: BinaryIO = (folder / RECORDS_FILE).open("wb")
        self._handle.write(b"\0" * _HEADER.size)
        self._count = 0

    def append(self, block: RecordBlock) -> None:
        """Add N labels behind those already written."""
        rows = np.zeros(len(block.keys), dtype=self._type)
        rows["classifier"] = block.classifiers
        rows["has_title"] = block.has_title
        rows["source"] = SOURCES.index(block.source)
        for row, (keys, values) in enumerate(zip(block.keys, block.values, strict=True)):
            rows["count"][row] = len(keys)
            rows["keys"][row, : len(keys)] = keys
            rows["values"][row, : len(values)] = values
        self._handle.write(rows.tobytes())
        self._count += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._handle.seek(0)
            self._handle.write(_HEADER.pack(_MAGIC, self._count, *self._sizes))
        self._handle.close()


class RecordFile:
    """records.bin, mapped. Thread-safe: nothing is written."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError when header and length disagree."""
        with path.open("rb") as handle:
            header = handle.read(_HEADER.size)
        if len(header) < _HEADER.size or header[: len(_MAGIC)] != _MAGIC:
            raise BundleError(f"{path}: begins with {header[:8]!r}, not {_MAGIC!r}: {_AGAIN}")
        _, self.count, self.dimension, self.slots, stride, number_bytes = _HEADER.unpack(header)
        self.number: Literal["float32", "float16"] = "float16" if number_bytes == 2 else "float32"
        kind = record_type(self.dimension, self.slots, self.number)
        expected, found = _HEADER.size + self.count * stride, path.stat().st_size
        if kind.itemsize != stride or expected != found:
            raise BundleError(
                f"{path}: {self.count} records of {stride} bytes (needs {kind.itemsize}) make {expected} bytes, "
                f"the file has {found}: {_AGAIN}"
            )
        self._rows = np.memmap(path, dtype=kind, mode="r", offset=_HEADER.size, shape=(self.count,))

    def gather(self, labels: Int64Array) -> LabelRecords:
        """Records of (N,) labels as float32, in their order."""
        rows = np.asarray(self._rows[labels])
        return LabelRecords(
            keys=np.ascontiguousarray(rows["keys"], dtype=np.float32),
            values=np.ascontiguousarray(rows["values"], dtype=np.float32),
            mask=np.arange(self.slots)[None, :] < rows["count"][:, None],
            classifiers=np.ascontiguousarray(rows["classifier"], dtype=np.float32),
        )

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) unit length: the mean of each label's bag, as the shortlist compares it."""
        rows = np.asarray(self._rows[labels])
        # Empty slots are stored as zeros, so the sum needs no mask, and the length is divided out.
        return l2_normalise(rows["keys"].astype(np.float32).sum(axis=1))

    def layout(self, label: int) -> tuple[int, bool]:
        """Images in a label's bag, and whether its title follows them."""
        has_title = bool(self._rows["has_title"][label])
        return int(self._rows["count"][label]) - has_title, has_title

    def source(self, label: int) -> LabelSource:
        """How a label came into the bundle."""
        return SOURCES[int(self._rows["source"][label])]


class LabelFile:
    """labels.bin with its offsets and its lookup by id. A label is parsed when asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises BundleError when the three files disagree."""
        self._path = folder / LABELS_FILE
        self._offsets: npt.NDArray[np.uint64] = np.load(folder / OFFSETS_FILE, mmap_mode="r", allow_pickle=False)
        self._lookup = np.load(folder / LOOKUP_FILE, mmap_mode="r", allow_pickle=False)
        self.count = len(self._lookup)
        if len(self._offsets) != self.count + 1:
            raise BundleError(f"{folder}: {len(self._offsets)} label offsets for {self.count} labels: {_AGAIN}")
        found, expected = self._path.stat().st_size, int(self._offsets[-1])
        if found != expected:
            raise BundleError(f"{self._path}: has {found} bytes, its offsets end at {expected}: {_AGAIN}")
        self._bytes: npt.NDArray[np.uint8] = np.memmap(self._path, dtype=np.uint8, mode="r")

    def fields(self, index: int) -> tuple[str, str, tuple[str, ...], Mapping[str, Any]]:
        """id, title, images, metadata of one label."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        identifier, title, images, metadata = json.loads(self._bytes[start:end].tobytes())
        return identifier, title, tuple(images), metadata

    def index_of(self, label_id: str) -> int | None:
        """Position of a label, or None when the bundle has no such id."""
        wanted = hash_id(label_id)
        hashes = self._lookup["hash"]
        position = int(np.searchsorted(hashes, np.uint64(wanted)))
        while position < self.count and int(hashes[position]) == wanted:
            index = int(self._lookup["label"][position])
            if self.fields(index)[0] == label_id:
                return index
            position += 1
        return None


def write_labels(folder: Path, labels: Iterable[tuple[str, str, Sequence[str], Mapping[str, Any]]]) -> int:
    """Write (id, title, images, metadata) of every label in order; returns how many there were."""
    offsets, hashes = [0], []
    with (folder / LABELS_FILE).open("wb") as handle:
        for identifier, title, images, metadata in labels:
            line = json.dumps(
                [identifier, title, list(images), dict(metadata)], ensure_ascii=False, separators=(",", ":")
            )
            offsets.append(offsets[-1] + handle.write(line.encode("utf-8") + b"\n"))
            hashes.append(hash_id(identifier))
    np.save(folder / OFFSETS_FILE, np.asarray(offsets, dtype=np.uint64), allow_pickle=False)
    lookup = np.zeros(len(hashes), dtype=[("hash", "<u8"), ("label", "<u8")])
    keys = np.asarray(hashes, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    lookup["hash"], lookup["label"] = keys[order], order
    np.save(folder / LOOKUP_FILE, lookup, allow_pickle=False)
    return len(hashes)


def hash_id(identifier: str) -> int:
    """64 bits of an id, the same on every machine; equal hashes are told apart by the id itself."""
    return int.from_bytes(hashlib.blake2b(identifier.encode("utf-8"), digest_size=8).digest(), "little")
