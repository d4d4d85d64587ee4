"""labels.bin, what a bundle answers of its labels, with the offsets and the lookup by id beside it.

Knows neither FAISS nor the manifest. Mapped, so that opening takes the same time for any L.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mufin.errors import BundleError
from mufin.inputs import Int64Array

LABELS_FILE = "labels.bin"
OFFSETS_FILE = "label_offsets.npy"
LOOKUP_FILE = "label_lookup.npy"

LabelSource = Literal["trained", "encoder"]
SOURCES: tuple[LabelSource, ...] = ("trained", "encoder")

_LOOKUP = np.dtype([("hash", "<u8"), ("label", "<u8")])
_DECODE = json.JSONDecoder().raw_decode  # lines begin with their list: decode() looks for blanks around it first
_AGAIN = "run mufin-export again"


LabelFields = tuple[str, str, tuple[str, ...], Mapping[str, Any]]
"""id, title, images, metadata"""


@dataclass(slots=True)
class Label:
    """What an answer says of a label. Not frozen: ten are made a request, and that takes four times as long."""

    index: int
    id: str
    title: str
    images: tuple[str, ...]
    """URLs, the label's own or image_base_url + path."""
    metadata: Mapping[str, Any]
    source: LabelSource


class LabelFile:
    """labels.bin with its offsets and its lookup by id. A label is parsed when asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises BundleError when the three files disagree."""
        self._path = folder / LABELS_FILE
        # The maps as plain arrays: memmap's own indexing costs microseconds, ten times that of reading a label.
        self._offsets: npt.NDArray[np.uint64] = _mapped(folder / OFFSETS_FILE)
        self._lookup = _mapped(folder / LOOKUP_FILE)
        self.count = len(self._lookup)
        if len(self._offsets) != self.count + 1:
            raise BundleError(f"{folder}: {len(self._offsets)} label offsets for {self.count} labels: {_AGAIN}")
        found, expected = self._path.stat().st_size, int(self._offsets[-1])
        if found != expected:
            raise BundleError(f"{self._path}: has {found} bytes, its offsets end at {expected}: {_AGAIN}")
        self._bytes = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r")).data

    def fields(self, index: int) -> LabelFields:
        """Of one label."""
        return self._parsed(int(self._offsets[index]), int(self._offsets[index + 1]))

    def read(self, labels: Int64Array) -> list[LabelFields]:
        """Of (N,) labels, in their order."""
        spans = list(zip(self._offsets[labels].tolist(), self._offsets[labels + 1].tolist(), strict=True))
        # As one list: parsing label by label takes half as long again.
        text = b"[%b]" % b",".join([self._bytes[start:end] for start, end in spans])
        try:
            found, end = _DECODE(str(text, "utf-8"))
        except ValueError:
            found, end = [], 0
        if len(found) != len(spans) or end != len(text):  # one of them is damaged: read alone it says so
            return [self._parsed(start, stop) for start, stop in spans]
        return [(identifier, title, tuple(images), metadata) for identifier, title, images, metadata in found]

    def _parsed(self, start: int, end: int) -> LabelFields:
        (identifier, title, images, metadata), decoded = _DECODE(text := str(self._bytes[start:end], "utf-8"))
        if decoded + 1 != len(text):
            raise BundleError(f"{self._path}: what stands at {start} to {end} is more than one label: {_AGAIN}")
        return identifier, title, tuple(images), metadata

    def index_of(self, label_id: str, removed: Int64Array | None = None) -> int | None:
        """Position of a label, or None when the bundle has no such id but those of ``removed`` labels (ascending)."""
        wanted = hash_id(label_id)
        hashes = self._lookup["hash"]
        position = int(np.searchsorted(hashes, np.uint64(wanted)))
        while position < self.count and int(hashes[position]) == wanted:
            index = int(self._lookup["label"][position])
            if self.fields(index)[0] == label_id and not _holds(removed, index):
                return index
            position += 1
        return None


def _mapped(path: Path) -> npt.NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _holds(ascending: Int64Array | None, index: int) -> bool:
    if ascending is None or len(ascending) == 0:
        return False
    place = int(np.searchsorted(ascending, index))
    return place < len(ascending) and int(ascending[place]) == index


LabelText = tuple[str, str, Sequence[str], Mapping[str, Any]]
"""id, title, images, metadata"""


def write_labels(folder: Path, labels: Iterable[LabelText]) -> int:
    """Write every label in order; returns how many there were."""
    return _write(folder, labels, array("Q", [0]), np.zeros(0, dtype=_LOOKUP), "wb")


def extend_labels(source: Path, folder: Path, labels: Iterable[LabelText]) -> int:
    """The label files of the bundle ``source`` with further labels behind its own; returns how many there are then."""
    shutil.copyfile(source / LABELS_FILE, folder / LABELS_FILE)
    offsets = array("Q", np.load(source / OFFSETS_FILE, allow_pickle=False).astype(np.uint64).tobytes())
    lookup = np.load(source / LOOKUP_FILE, allow_pickle=False)
    return _write(folder, labels, offsets, lookup, "ab")


def _write(
    folder: Path, labels: Iterable[LabelText], offsets: array[int], known: npt.NDArray[np.void],
    mode: Literal["wb", "ab"],
) -> int:  # fmt: skip
    hashes = array("Q")  # 8 bytes a label, a list of ints would take 40
    with (folder / LABELS_FILE).open(mode) as handle:
        for identifier, title, images, metadata in labels:
            line = json.dumps(
                [identifier, title, list(images), dict(metadata)], ensure_ascii=False, separators=(",", ":")
            )
            offsets.append(offsets[-1] + handle.write(line.encode("utf-8") + b"\n"))
            hashes.append(hash_id(identifier))
    np.save(folder / OFFSETS_FILE, np.asarray(offsets, dtype=np.uint64), allow_pickle=False)
    added = np.zeros(len(hashes), dtype=_LOOKUP)
    added["hash"], added["label"] = hashes, np.arange(len(known), len(known) + len(hashes))
    lookup = np.concatenate([known, added])
    # Stable, so that of equal hashes the smaller label comes first.
    lookup = lookup[np.argsort(lookup["hash"], kind="stable")]
    np.save(folder / LOOKUP_FILE, lookup, allow_pickle=False)
    return len(lookup)


def hash_id(identifier: str) -> int:
    """64 bits of an id, the same on every machine; equal hashes are told apart by the id itself."""
    return int.from_bytes(hashlib.blake2b(identifier.encode("utf-8"), digest_size=8).digest(), "little")
