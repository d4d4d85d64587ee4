"""A run folder as a place: whose it is, who is at work in it, and what goes when the run is finished.

Knows nothing of what a run learns.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mufin.errors import CheckpointError
from mufin.training.checkpoint import MODEL_FOLDER, STATE_FILE
from mufin.training.curves import CURVES_FILE, draw_curves
from mufin.training.folds import FOLDS_FOLDER
from mufin.training.loop import METRICS_FILE
from mufin.training.refit import REFIT_FOLDER
from mufin.training.workers import Workers

CLAIM_FILE = ".mufin-train"
"""The first thing a run writes: it marks the folder as a run's, and is locked as long as a training is at work."""
_SCRATCH = ("cache", FOLDS_FOLDER, REFIT_FOLDER)
_WRITTEN = (*_SCRATCH, METRICS_FILE, CURVES_FILE, MODEL_FOLDER)
# What says that a file system has no such locks, as some that lie behind a network have not.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def claimed(folder: Path, workers: Workers) -> Iterator[None]:
    """The run folder, made where it is missing, for this training alone; a killed one holds nothing.

    The main process claims it for all of them. Raises CheckpointError, on every process, when the folder cannot be
    written, holds what a run would write over, or another training is at work in it.
    """
    handle, fault = -1, ""
    if workers.is_main:
        try:
            handle = _claim(folder)
        except CheckpointError as error:
            fault = str(error)
    try:
        if not workers.all_agree(not fault):  # nobody is left waiting for a main process that has given up
            raise CheckpointError(fault or f"{folder}: the main process could not take it; its error says why")
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _claim(folder: Path) -> int:
    """The locked file's descriptor. The file stays afterwards: were it deleted, two could hold locks on two of a name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        handle = os.open(folder / CLAIM_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror}); name another run folder") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return handle
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise CheckpointError(
                f"another mufin-train is at work in {folder}: wait for it, stop it, or name another run folder"
            ) from error
        raise CheckpointError(
            f"{folder / CLAIM_FILE}: cannot be locked ({error.strerror}); name a run folder on another file system"
        ) from error
    return handle


def _refuse_foreign(folder: Path) -> None:
    """What a run clears away or writes over must be its own; a log or a volume's lost+found may lie beside it."""
    # Runs within a run, of folds and refit, may have been begun by a version that left no mark.
    marked = any((place / CLAIM_FILE).exists() for place in (folder, *folder.absolute().parents[:2]))
    if marked or _is_older_run(folder):
        return
    found = next((name for name in sorted(_WRITTEN) if (folder / name).exists()), None)
    if found is not None:
        raise CheckpointError(
            f"{folder} is no run folder, and holds {found!r}, which a run would write over; name a new or empty one"
        )


def _is_older_run(folder: Path) -> bool:
    """Whether a version that did not mark its folders was at work here; its folds and refit are begun before it."""
    places = [folder, folder / REFIT_FOLDER, *folder.glob(f"{FOLDS_FOLDER}/*")]
    return any((p / STATE_FILE).is_file() or (p / MODEL_FOLDER / "run.json").is_file() for p in places)


def _has_scratch(folder: Path) -> bool:
    """Whether something is left of what ``remove_scratch`` removes."""
    return any((folder / name).exists() for name in _SCRATCH)


def remove_scratch(folder: Path) -> None:
    """What a run needs until it is finished."""
    for name in _SCRATCH:
        shutil.rmtree(folder / name, ignore_errors=True)


def tidy(folder: Path, workers: Workers, scored: bool) -> None:
    """Do what a finished run has left undone, killed at its very end; one that is whole is only read.

    Raises CheckpointError as ``claimed`` does, TrainingError as ``draw_curves`` does.
    """
    drawn = not scored or (folder / CURVES_FILE).is_file() or not (folder / METRICS_FILE).is_file()
    if workers.all_agree(drawn and not _has_scratch(folder)):
        return
    with claimed(folder, workers):
        if workers.is_main and not drawn:
            draw_curves(folder / METRICS_FILE, folder / CURVES_FILE)
        workers.wait()
        if workers.is_main:
            remove_scratch(folder)
