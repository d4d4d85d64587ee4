"""Rows that were computed once, kept on disk for whatever asks for them again.

A row is known by a hash of its own content, so that a part of a catalogue, a fold or one with a label less, finds what
was computed of the whole. Knows neither titles nor images nor who computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mufin.inputs import FloatArray, Int64Array
from mufin.training.disk import allocate, atomic_write, load_kept, locked, save_array

KeyArray = npt.NDArray[np.bytes_]
_KEYS = ".keys.npy"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class KeptRows:
    """N rows, in files of a folder."""

    files: tuple[FloatArray, ...]
    """(n, W) each, memory maps"""
    file: Int64Array
    """(N,) into ``files``"""
    row: Int64Array
    """(N,) of that file"""

    def copy_to(self, out: FloatArray) -> None:
        """Fill (N, W)."""
        for number, rows in enumerate(self.files):
            own = np.flatnonzero(self.file == number)
            for start in range(0, len(own), _ROWS_AT_ONCE):  # a copy of all of them would be in memory
                part = own[start : start + _ROWS_AT_ONCE]
                out[part] = rows[self.row[part]]

    def as_array(self, path: Path) -> FloatArray:
        """(N, W) as a memory map: the file that has just these rows in their order, or a copy at ``path``."""
        if len(self.files) == 1 and np.array_equal(self.row, np.arange(len(self.files[0]))):
            return self.files[0]
        copy: FloatArray = allocate(path, np.float32, (len(self.row), self.files[0].shape[1]))
        self.copy_to(copy)
        return copy


def keys_of(rows: Iterable[npt.NDArray[Any]]) -> KeyArray:
    """(N,) hashes of arrays of one type, by content and size."""
    return np.array([hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows], dtype="S32")


def kept_rows(folder: Path, name: str, keys: KeyArray, compute: Callable[[Int64Array, Path], object]) -> KeptRows:
    """The rows of (N,) ``keys``, N at least 1, from ``folder``'s files of that ``name``.

    Distinct keys that no file has are computed first: ``compute`` writes the rows of the positions it is given into a
    .npy file, which is kept.
    """
    distinct, first = np.unique(keys, return_index=True)
    with locked(folder):
        found = _files(folder, name)
        unknown = np.sort(first[~np.isin(distinct, np.concatenate([keys[:0], *(own for own, _ in found)]))])
        if len(unknown):
            target = folder / f"{name}-{hashlib.blake2b(keys[unknown].tobytes(), digest_size=16).hexdigest()}"
            atomic_write(target.with_name(target.name + ".npy"), lambda to: compute(unknown, to))
            save_array(target.with_name(target.name + _KEYS), keys[unknown])
            found = _files(folder, name)
    held = np.concatenate([own for own, _ in found])
    order = np.argsort(held, kind="stable")
    place = order[np.searchsorted(held, keys, sorter=order)]
    starts = np.cumsum([0, *(len(own) for own, _ in found)])
    file = np.searchsorted(starts, place, side="right") - 1
    used, number = np.unique(file, return_inverse=True)
    files = tuple(load_kept(found[own][1]) for own in used)
    return KeptRows(files, number.astype(np.int64), place - starts[file])


def _files(folder: Path, name: str) -> list[tuple[KeyArray, Path]]:
    """Keys and rows of every file; the keys come last, so that rows without keys are no file yet.

    Nor are keys without rows: a damaged file of rows may be deleted alone.
    """
    pairs = [
        (path, path.with_name(path.name.removesuffix(_KEYS) + ".npy"))
        for path in sorted(folder.glob(f"{name}-*{_KEYS}"))
    ]
    return [(load_kept(keys, mapped=False), rows) for keys, rows in pairs if rows.is_file()]
