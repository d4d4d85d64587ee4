"""Many encoded images in one file of a catalogue, so that a million pictures are not a million files.

Knows no pixels. mufin.image_source reads them by their names, FILE.bin#OFFSET+LENGTH.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO, Self

PACK_NAME = "images/images.bin"


class ImagePack:
    """Appends encoded images to ``images/images.bin``; used in a ``with``. Without an image there is no file."""

    def __init__(self, catalogue: Path) -> None:
        self._path = catalogue / PACK_NAME
        self._file: IO[bytes] | None = None
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, encoded: bytes) -> str:
        """The name under which a catalogue item lists the image. ValueError for no bytes."""
        if not encoded:
            raise ValueError("an image without bytes cannot be packed")
        offset = self._size
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        self._file.write(encoded)
        self._size += len(encoded)
        return packed_name(offset, len(encoded))


def packed_name(offset: int, length: int) -> str:
    """How a catalogue names ``length`` bytes from ``offset`` of its pack."""
    return f"{PACK_NAME}#{offset}+{length}"
