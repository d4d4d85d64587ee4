"""Writing what may fill a disk: whole or not at all, and with a message that says what to do.

Knows nothing of what is written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from mufin.errors import TrainingError

_NEXT_TO_NOTHING_BYTES = 1 << 16


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn the many forms of "no space left" into one TrainingError that names ``path`` and the remedy."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # torch and safetensors lose the error number; what was written so far still fills the disk here.
        if full or (not isinstance(error, OSError) and shutil.disk_usage(path.parent).free < _NEXT_TO_NOTHING_BYTES):
            raise TrainingError(
                f"{path}: the disk is full; free space and run mufin-train again to resume from the last checkpoint"
            ) from error
        raise


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, fsync it and rename it into place.

    Raises TrainingError when the disk is full; what stood at ``path`` stays.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with full_disk_explained(path):
            write(temporary)
            temporary.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """``atomic_write`` of one .npy file."""

    def write(to: Path) -> None:
        with to.open("wb") as file:  # numpy would give a path's name an ending
            np.save(file, array)

    atomic_write(path, write)


def load_kept(path: Path, mapped: bool = True) -> npt.NDArray[Any]:
    """A .npy file that is kept for several trainings, as a memory map. Raises TrainingError when it is damaged."""
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None)
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(
            f"{path}: cannot be read ({error}); delete it, and what it held is computed again"
        ) from error
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: whoever comes second waits, and finds what the first has written. A killed one holds nothing."""
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def allocate(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[Any]]:
    """A new .npy memory map whose blocks are reserved: a full disk is an error here, not a SIGBUS at the first write."""
    with full_disk_explained(path):
        array: np.memmap[tuple[int, ...], np.dtype[Any]] = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return array
