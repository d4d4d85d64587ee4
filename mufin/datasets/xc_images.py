"""The images of MM-AmazonTitles-300K: base64 lines of img.bin, decoded into the pack of a catalogue.

Knows no titles and no labels.
"""

from __future__ import annotations

import base64
import binascii
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mufin.datasets.catalogue_folder import Account
from mufin.datasets.image_pack import ImagePack, packed_name
from mufin.errors import CatalogueError
from mufin.inputs import Int64Array
from mufin.progress import ProgressBar

IMAGE_FILE = "images/img.bin"
_LONGEST_LINE_BYTES = 1 << 26
_IMAGES_BETWEEN_REPORTS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Offsets:
    """The images of a part: item i owns ``offsets[indptr[i]:indptr[i + 1]]``."""

    indptr: Int64Array
    offsets: Int64Array
    cut: int
    """Images beyond the most an item may have"""


class PackedImages:
    """Which packed images each item of a part has, and the ASIN each was filed under."""

    def __init__(
        self, parts: Mapping[str, _Offsets], offsets: Int64Array, spans: Int64Array, keys: Sequence[str]
    ) -> None:
        """``offsets`` (n,) in img.bin, ascending; ``spans`` (n, 2) offset and length in the pack, length 0 for none."""
        self._parts, self._offsets, self._spans, self._keys = parts, offsets, spans, keys

    def count(self, part: str) -> int | None:
        """Items of a part; None when it has no list of images."""
        return len(self._parts[part].indptr) - 1 if part in self._parts else None

    def of(self, part: str, row: int) -> list[tuple[str, str]]:
        """(name in the catalogue, ASIN) of an item's images."""
        if part not in self._parts:
            return []
        own = self._parts[part]
        offsets = own.offsets[own.indptr[row] : own.indptr[row + 1]]
        places = np.searchsorted(self._offsets, offsets).tolist()
        found = [(*self._spans[place].tolist(), self._keys[place]) for place in places]
        return [(packed_name(offset, length), key) for offset, length, key in found if length]


def pack_images(source: Path, catalogue: Path, most: int, account: Account, progress: ProgressBar) -> PackedImages:
    """Decodes every image that an item names, at most ``most`` an item, once each, in the order of img.bin.

    Memory: 40 bytes and the ASIN an image, and one image. Raises CatalogueError with the byte offset.
    """
    parts: dict[str, _Offsets] = {}
    for part in ("train", "test", "label"):
        path = source / f"images/{part}.img.bin.npz"
        if path.is_file():
            parts[part] = _read_offsets(path, most)
            account.leave_out(f"images beyond the first {most} of an item", path, None, parts[part].cut)
    offsets = np.unique(np.concatenate([np.zeros(0, np.int64), *(own.offsets for own in parts.values())]))
    spans, keys = np.zeros((len(offsets), 2), dtype=np.int64), []
    path = source / IMAGE_FILE
    if len(offsets) and not path.is_file():
        raise CatalogueError(path, None, f"is missing, {len(offsets)} images lie in it; fetch it or say --max-images 0")
    size = 0
    if len(offsets):
        with path.open("rb") as file, ImagePack(catalogue) as pack:
            for place, offset in enumerate(offsets.tolist()):
                key, encoded = _read_image(file, path, offset)
                keys.append(key)
                if encoded:
                    pack.add(encoded)
                    spans[place] = size, len(encoded)
                    size += len(encoded)
                else:
                    account.leave_out("images without bytes", path)
                if (place + 1) % _IMAGES_BETWEEN_REPORTS == 0 or place + 1 == len(offsets):
                    progress("decoding images", place + 1, len(offsets))
    account.written["images"] = int(np.count_nonzero(spans[:, 1]))
    return PackedImages(parts, offsets, spans, keys)


def _read_offsets(path: Path, most: int) -> _Offsets:
    """Per item the byte offsets of its first images, by slot. Stored is offset + 1."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            kind = stored["format"].item()
            data, indices, indptr = stored["data"], stored["indices"], np.asarray(stored["indptr"], dtype=np.int64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CatalogueError(path, None, f"is no sparse matrix of scipy ({error}); fetch it again") from error
    if kind not in (b"csr", "csr"):
        raise CatalogueError(path, None, f"is stored as {kind!r}, expected csr")
    offsets = np.asarray(data).astype(np.int64) - 1
    if not np.array_equal(offsets + 1, data) or (len(offsets) and offsets.min() < 0):
        raise CatalogueError(path, None, "holds values that are no byte offset + 1 (whole numbers from 1)")
    sizes = np.diff(indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    slots = np.arange(len(rows)) - np.repeat(indptr[:-1], sizes)
    kept = offsets[np.lexsort((indices, rows))][slots < most]
    ends = np.cumsum(np.minimum(sizes, most))
    return _Offsets(np.concatenate([[0], ends]).astype(np.int64), kept, int(len(offsets) - len(kept)))


def _read_image(file: BinaryIO, path: Path, offset: int) -> tuple[str, bytes]:
    """(ASIN, encoded image) of the line at a byte offset."""
    file.seek(max(0, offset - 1))
    before = file.read(1) if offset else b"\n"
    line = file.readline(_LONGEST_LINE_BYTES)
    key, tab, payload = line.partition(b"\t")
    if before != b"\n" or not tab or not key:
        reason = f"byte {offset}: found {line[:40]!r}, expected the start of a line ASIN<TAB>base64"
        raise CatalogueError(path, None, reason + "; the .npz files belong to another img.bin")
    try:
        return key.decode("latin-1"), base64.b64decode(payload.strip(), validate=True)
    except binascii.Error as error:
        raise CatalogueError(
            path, None, f"byte {offset}: {key!r} has broken base64 ({error}); fetch it again"
        ) from error
