"""Every error that mufin raises on purpose.

Knows no HTTP and no exit codes; the callers map them.

    MufinError
    ├── InputError            a title or an image that cannot be used
    │   └── ImageError        ... with a coarse machine-readable code
    ├── CatalogueError        a fault in a catalogue folder: file, line, remedy
    ├── ConfigError           a training or export setting, alone or against another
    ├── CheckpointError       a run folder that cannot be read or continued
    ├── TrainingError         training cannot go on (NaN loss, out of memory, disk full)
    └── BundleError           a bundle that must not be opened
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

ImageErrorCode = Literal["not_an_image", "image_too_large", "image_too_small", "image_truncated"]


class MufinError(Exception):
    """Base of all errors raised on purpose; its text is meant for the user."""


class InputError(MufinError):
    """A title or an image that cannot be used."""


class ImageError(InputError):
    """An image that cannot be decoded within the limits; ``code`` is stable for programs."""

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ImageErrorCode = code


class CatalogueError(MufinError):
    """A fault in a catalogue folder; the text names file, line and remedy."""

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        place = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


class ConfigError(MufinError):
    """A setting that is wrong, alone or against another."""


class CheckpointError(MufinError):
    """A run folder that cannot be read or continued."""


class TrainingError(MufinError):
    """Training cannot go on; the last checkpoint is intact."""


class BundleError(MufinError):
    """A bundle that must not be opened; the text names both values and the remedy."""
