"""records.bin: what reranking needs of every label, one contiguous record of one length a label.

Knows the layout and the number types, neither cross attention nor the manifest. Mapped, so that opening takes the
same time for any L, or copied to memory when asked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from mufin.errors import BundleError, ConfigError
from mufin.inputs import BoolArray, FloatArray, Int64Array, Uint8Array
from mufin.label_files import SOURCES, LabelSource
from mufin.scoring import LabelRecords, l2_normalise

RECORDS_FILE = "records.bin"

RecordNumber = Literal["float32", "float16", "int8"]
RECORD_NUMBERS: tuple[RecordNumber, ...] = ("float32", "float16", "int8")

_MAGIC = b"MUFINREC"
# magic, L, D, M, stride, bytes a number; padded to one cache line.
_HEADER = struct.Struct("<8sQIIII32x")
_CACHE_LINE_BYTES = 64
_INT8_TOP = 127
_AGAIN = "run mufin-export again"


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """N labels on their way into records.bin. Bags hold real slots only: images first, the title last."""

    keys: Sequence[FloatArray]
    """N times (m, D): the bag after self-attention, 1 <= m <= M"""
    values: Sequence[FloatArray]
    """N times (m, D): W_o W_v bag + W_o b_v + b_o, or W_v bag + b_v with several attention heads"""
    classifiers: FloatArray
    """(N, D), unit length"""
    has_title: BoolArray
    """(N,)"""
    source: LabelSource


def record_type(dimension: int, slots: int, number: str) -> np.dtype[np.void]:
    """One record as a numpy type: whole cache lines, so that no two labels share one.

    ``gram`` and ``means`` follow from the values as stored (reranking_kernels.py says what for); ``scales`` are int8's,
    one a row of numbers: classifier, keys, values.
    """
    scales = [("scales", "<f4", (1 + 2 * slots,))] if number == "int8" else []
    head = [("gram", "<f4", (slots, slots)), ("means", "<f4", (slots,)), *scales]
    numbers = [
        ("classifier", number, (dimension,)),
        ("keys", number, (slots, dimension)),
        ("values", number, (slots, dimension)),
        ("count", "u1"),
        ("has_title", "u1"),
        ("source", "u1"),
    ]
    fields = [*head, _padding("padding_head", head), *numbers]
    return np.dtype([*fields, _padding("padding", fields)])


def _padding(name: str, fields: Sequence[Any]) -> tuple[str, str, tuple[int]]:
    return name, "u1", (-np.dtype(list(fields)).itemsize % _CACHE_LINE_BYTES,)


class RecordWriter:
    """Writes records.bin block by block, so that memory does not grow with L."""

    def __init__(self, folder: Path, dimension: int, slots: int, number: RecordNumber) -> None:
        self._type = record_type(dimension, slots, number)
        self._sizes = (dimension, slots, self._type.itemsize, np.dtype(number).itemsize)
        self._handle: BinaryIO = (folder / RECORDS_FILE).open("wb")
        self._handle.write(b"\0" * _HEADER.size)
        self._count = 0

    def append(self, block: RecordBlock) -> None:
        """Add N labels behind those already written."""
        self._handle.write(pack_records(block, self._type).tobytes())
        self._count += len(block.keys)

    def copy(self, rows: npt.NDArray[np.void]) -> None:
        """Add (N,) records of another file, of the same numbers and dimension and no more slots, as they are."""
        self._handle.write(widen_records(rows, self._type).tobytes())
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


def pack_records(block: RecordBlock, kind: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """(N,) records of a ``record_type``."""
    count, slots = len(block.keys), kind["keys"].shape[0]
    rows = np.zeros(count, dtype=kind)
    keys, values = (np.zeros((count, slots, kind["keys"].shape[1]), dtype=np.float32) for _ in range(2))
    for row, (own_keys, own_values) in enumerate(zip(block.keys, block.values, strict=True)):
        rows["count"][row] = len(own_keys)
        keys[row, : len(own_keys)] = own_keys
        values[row, : len(own_values)] = own_values
    rows["has_title"] = block.has_title
    rows["source"] = SOURCES.index(block.source)
    numbers = np.concatenate([block.classifiers[:, None], keys, values], axis=1)
    if "scales" in (kind.names or ()):
        # A scale a row, not a record: slots of one label differ in length, and a row costs four bytes more.
        scales = np.abs(numbers).max(axis=2) / np.float32(_INT8_TOP)
        rows["scales"] = scales
        numbers = np.rint(numbers / np.where(scales > 0, scales, 1)[..., None])
    rows["classifier"], rows["keys"], rows["values"] = numbers[:, 0], numbers[:, 1 : 1 + slots], numbers[:, 1 + slots :]
    stored = _floats(rows, "values").astype(np.float64)
    rows["means"] = stored.mean(axis=2)
    stored -= stored.mean(axis=2, keepdims=True)
    rows["gram"] = stored @ stored.transpose(0, 2, 1)
    return rows


def widen_records(rows: npt.NDArray[np.void], kind: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """(N,) records in another ``record_type`` of the same numbers and dimension with at least as many slots."""
    if rows.dtype == kind:
        return rows
    slots = rows.dtype["keys"].shape[0]
    wide = np.zeros(len(rows), dtype=kind)
    for field in ("classifier", "count", "has_title", "source"):
        wide[field] = rows[field]
    for field in ("keys", "values", "means"):
        wide[field][:, :slots] = rows[field]
    wide["gram"][:, :slots, :slots] = rows["gram"]
    if "scales" in (kind.names or ()):
        more, scales = kind["keys"].shape[0], rows["scales"]
        wide["scales"][:, : 1 + slots] = scales[:, : 1 + slots]
        wide["scales"][:, 1 + more : 1 + more + slots] = scales[:, 1 + slots :]
    return wide


def _floats(rows: npt.NDArray[np.void], field: Literal["classifier", "keys", "values"]) -> FloatArray:
    """A field of (N,) records as float32."""
    numbers = np.ascontiguousarray(rows[field], dtype=np.float32)
    if "scales" not in (rows.dtype.names or ()):
        return numbers
    slots = rows.dtype["keys"].shape[0]
    first, last = {"classifier": (0, 1), "keys": (1, 1 + slots), "values": (1 + slots, 1 + 2 * slots)}[field]
    scales = rows["scales"][:, first:last]
    return np.asarray(numbers * (scales if field == "classifier" else scales[..., None]), dtype=np.float32)


class RecordFile:
    """records.bin, mapped or in memory. Thread-safe: nothing is written."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError when header and length disagree."""
        with path.open("rb") as handle:
            header = handle.read(_HEADER.size)
        if len(header) < _HEADER.size or header[: len(_MAGIC)] != _MAGIC:
            raise BundleError(f"{path}: begins with {header[:8]!r}, not {_MAGIC!r}: {_AGAIN}")
        _, self.count, self.dimension, self.slots, stride, number_bytes = _HEADER.unpack(header)
        widths = {np.dtype(number).itemsize: number for number in RECORD_NUMBERS}
        if number_bytes not in widths:
            raise BundleError(f"{path}: has numbers of {number_bytes} bytes, needs {sorted(widths)}: {_AGAIN}")
        self.number: RecordNumber = widths[number_bytes]
        kind = record_type(self.dimension, self.slots, self.number)
        expected, found = _HEADER.size + self.count * stride, path.stat().st_size
        if kind.itemsize != stride or expected != found:
            raise BundleError(
                f"{path}: {self.count} records of {stride} bytes (needs {kind.itemsize}) make {expected} bytes, "
                f"the file has {found}: {_AGAIN}"
            )
        self.path = path
        mapped = np.memmap(path, dtype=kind, mode="r", offset=_HEADER.size, shape=(self.count,))
        self._rows: npt.NDArray[np.void] = np.asarray(mapped)  # memmap's own indexing costs microseconds
        self._resident = False

    @property
    def rows(self) -> npt.NDArray[np.void]:
        """(L,) records of a ``record_type``, read-only, on a cache line each."""
        return self._rows

    @property
    def resident_bytes(self) -> int:
        """Of this process's own memory; 0 while the records are mapped."""
        return self._rows.nbytes if self._resident else 0

    @property
    def mapped_bytes(self) -> int:
        """Of the page cache, as far as it holds the file; 0 when the records are resident."""
        return 0 if self._resident else self._rows.nbytes

    def make_resident(self) -> None:
        """Copy the records into memory, once, at opening: no request waits for the disk then.

        Raises BundleError when there is not enough memory or the file was cut off meanwhile.
        """
        if self._resident:
            return
        wanted = self._rows.nbytes
        try:
            memory = np.empty(wanted + _CACHE_LINE_BYTES, dtype=np.uint8)
        except MemoryError as error:
            raise BundleError(
                f"{self.path}: {wanted} bytes of records do not fit into memory: open the bundle with resident=False"
            ) from error
        start = -memory.ctypes.data % _CACHE_LINE_BYTES
        octets: Uint8Array = memory[start : start + wanted]
        with self.path.open("rb") as handle:
            handle.seek(_HEADER.size)
            _read_whole(handle, octets, self.path)
        rows = octets.view(self._rows.dtype)
        rows.flags.writeable = False
        self._rows, self._resident = rows, True

    def gather(self, labels: Int64Array) -> LabelRecords:
        """Records of (N,) labels as float32, in their order."""
        rows = np.asarray(self._rows[labels])
        return LabelRecords(
            keys=_floats(rows, "keys"),
            values=_floats(rows, "values"),
            mask=np.arange(self.slots)[None, :] < rows["count"][:, None],
            classifiers=_floats(rows, "classifier"),
        )

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) unit length: the mean of each label's bag, as the shortlist compares it."""
        # Empty slots are stored as zeros, so the sum needs no mask, and the length is divided out.
        return l2_normalise(_floats(np.asarray(self._rows[labels]), "keys").sum(axis=1))

    def layout(self, label: int) -> tuple[int, bool]:
        """Images in a label's bag, and whether its title follows them."""
        has_title = bool(self._rows["has_title"][label])
        return int(self._rows["count"][label]) - has_title, has_title

    def untrained(self, labels: Int64Array) -> BoolArray:
        """(N,) bool: which of the labels came into the bundle without training."""
        return np.asarray(self._rows["source"][labels] == SOURCES.index("encoder"))

    def sources(self, labels: Int64Array) -> list[LabelSource]:
        """How each of (N,) labels came into the bundle."""
        return [SOURCES[number] for number in self._rows["source"][labels].tolist()]


def check_number(number: str) -> None:
    """Raise ConfigError for a record type that does not exist."""
    if number not in RECORD_NUMBERS:
        raise ConfigError(f"record_type is {number!r}, must be one of {', '.join(RECORD_NUMBERS)}")


def _read_whole(handle: BinaryIO, target: Uint8Array, path: Path) -> None:
    view, filled = memoryview(target.data), 0
    while filled < len(view):
        count = handle.readinto(view[filled:])  # type: ignore[attr-defined]  # a file opened with "rb" has it
        if not count:
            raise BundleError(f"{path}: ended after {filled} of {len(view)} bytes: copy the bundle again")
        filled += count
