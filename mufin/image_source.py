"""The bytes of a catalogue's images: files of its folder, parts of packed files, or URLs fetched once and kept.

Knows no pixels and no requests of strangers: a catalogue's owner is trusted, so addresses are not vetted here
(the service's fetching is another matter, docs/security.md).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from mufin.errors import CatalogueError

if TYPE_CHECKING:
    import httpx

CACHE_FOLDER_NAME = ".image-cache"
_PACKED = re.compile(r"(?P<file>.+\.bin)#(?P<offset>[0-9]{1,15})\+(?P<length>[0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class PackedImage:
    """An image that is a run of bytes of a larger file, named ``FILE.bin#OFFSET+LENGTH``."""

    file: str
    """Path relative to the folder"""
    offset: int
    """Its first byte"""
    length: int
    """Its number of bytes"""


def packed_image(image: str) -> PackedImage | None:
    """What a name of the form ``FILE.bin#OFFSET+LENGTH`` says; None for URLs and for whole files."""
    found = None if is_url(image) else _PACKED.fullmatch(image)
    return None if found is None else PackedImage(found["file"], int(found["offset"]), int(found["length"]))


def is_url(image: str) -> bool:
    """Whether an image is fetched, not read from the folder."""
    return image[:8].lower().startswith(("http://", "https://"))


def image_name_fault(image: str) -> str | None:
    """Why an image's name can never be read, whatever lies on the disk; None when it can."""
    if not image.strip():
        return "an image has an empty name; remove it from the list"
    if is_url(image):
        try:
            host = urlsplit(image).hostname
        except ValueError:
            host = None
        return None if host else f"image URL {image!r} has no host; write http(s)://host/path"
    if "://" in image or image.startswith("data:"):
        return f"image {image[:80]!r} is neither http(s):// nor a path; download it into the folder"
    if "\0" in image or "\\" in image:
        return f"image path {image!r} holds a NUL or a backslash; write it with forward slashes"
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts:
        return f"image path {image!r} leaves the catalogue folder; copy the file into it and name it relative to it"
    packed = packed_image(image)
    if packed is not None and packed.length == 0:
        return f"packed image {image!r} has no bytes; remove it from the list"
    return None


class ImageReader:
    """Reads the images of one catalogue folder. Thread-safe; close it, or use it in a ``with``."""

    def __init__(
        self,
        folder: Path,
        cache_folder: Path | None = None,
        *,
        timeout_seconds: float = 20.0,
        max_image_bytes: int = 20_000_000,
        attempts: int = 3,
    ) -> None:
        """``cache_folder``: where fetched images are kept; by default ``.image-cache`` inside the catalogue."""
        self.folder = folder
        self.cache_folder = cache_folder or folder / CACHE_FOLDER_NAME
        self._timeout_seconds = timeout_seconds
        self._max_image_bytes = max_image_bytes
        self._attempts = attempts
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes connections; the cache stays."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def read(self, image: str) -> bytes:
        """The encoded image. Raises CatalogueError with the remedy."""
        fault = image_name_fault(image)
        if fault is not None:
            raise CatalogueError(self.folder, None, fault)
        return self._read_url(image) if is_url(image) else self._read_file(image)

    def _read_packed(self, packed: PackedImage) -> bytes:
        path, end = self.folder / packed.file, packed.offset + packed.length
        if packed.length > self._max_image_bytes:
            reason = f"has an image of {packed.length} bytes, allowed are {self._max_image_bytes}; shrink it"
            raise CatalogueError(path, None, reason)
        try:
            # Opened anew each time: nothing is shared between threads, and nothing stays open.
            with path.open("rb") as file:
                file.seek(packed.offset)
                content = file.read(packed.length)
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); restore the file of packed images"
            raise CatalogueError(path, None, reason) from error
        if len(content) != packed.length:
            reason = f"ends before byte {end}, where a packed image ends; restore the file of packed images"
            raise CatalogueError(path, None, reason)
        return content

    def _read_file(self, image: str) -> bytes:
        packed = packed_image(image)
        if packed is not None:
            return self._read_packed(packed)
        path = self.folder / image
        try:
            if path.stat().st_size > self._max_image_bytes:
                raise CatalogueError(
                    path, None, f"has {path.stat().st_size} bytes, allowed are {self._max_image_bytes}; shrink it"
                )
            return path.read_bytes()
        except OSError as error:
            raise CatalogueError(
                path, None, f"cannot be read ({error.strerror}); restore the file or remove the image from its item"
            ) from error

    def _read_url(self, url: str) -> bytes:
        kept = self.cache_folder / hashlib.sha256(url.encode()).hexdigest()
        try:
            return kept.read_bytes()
        except FileNotFoundError:
            content = self._fetch(url)
        self._keep(kept, content)
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        """Written aside and renamed: a crash or a second reader never sees half an image."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).replace(path)
        except OSError as error:
            raise CatalogueError(
                path.parent, None, f"fetched images cannot be kept ({error.strerror}); give a writable cache folder"
            ) from error

    def _fetch(self, url: str) -> bytes:
        """Tries again after a dropped connection or a 5xx answer, waiting 0.5, 1, 2... seconds."""
        import httpx

        reason = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(0.25 * 2**attempt)
            try:
                with self._http().stream("GET", url) as response:
                    if response.status_code == 200:
                        return self._receive(url, response)
                    reason = f"the server answered {response.status_code}"
                    if response.status_code < 500:
                        break
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = f"{type(error).__name__}: {error}"
        raise CatalogueError(
            self.folder, None, f"image {url} cannot be fetched ({reason}); mend the URL or remove it from its item"
        )

    def _receive(self, url: str, response: httpx.Response) -> bytes:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > self._max_image_bytes:
                raise CatalogueError(
                    self.folder, None, f"image {url} has more than the allowed {self._max_image_bytes} bytes; shrink it"
                )
        return bytes(content)

    def _http(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None:
                self._client = httpx.Client(follow_redirects=True, max_redirects=5, timeout=self._timeout_seconds)
            return self._client
