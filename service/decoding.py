"""Picture bytes to pixels in a bounded pool of threads with a budget of pixels.

Knows no network and no model; what a picture may be is decided by ``mufin.inputs``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from PIL import Image

from mufin.errors import ImageError
from mufin.inputs import IMAGE_FORMATS, ImageLimits, Uint8Array, decode_image
from service.errors import PictureError

Out = TypeVar("Out")


class PixelBudget:
    """Pixels that may be in decoding at once; for threads."""

    def __init__(self, pixels: int) -> None:
        self._whole = pixels
        self._left = pixels
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until so many are free; more than the whole budget waits for all of it."""
        share = min(pixels, self._whole)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= share)
            self._left -= share
        try:
            yield
        finally:
            with self._changed:
                self._left += share
                self._changed.notify_all()


class Decoder:
    """The pool; shared by all requests."""

    def __init__(self, threads: int, budget_pixels: int, limits: ImageLimits) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mufin-decode")
        self._budget = PixelBudget(budget_pixels)
        self._limits = limits

    async def decode(self, content: bytes, side_pixels: int) -> Uint8Array:
        """(side, side, 3) uint8. Raises PictureError."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._decode, content, side_pixels)
        except ImageError as error:
            raise PictureError(error.code, str(error)) from error

    async def run(self, work: Callable[..., Out], *arguments: Any) -> Out:
        """Other work on picture bytes that must not hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Forget what waits; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, content: bytes, side_pixels: int) -> Uint8Array:
        with self._budget.take(_declared_pixels(content, self._limits)):
            return decode_image(content, side_pixels, self._limits)


def _declared_pixels(content: bytes, limits: ImageLimits) -> int:
    """Pixels that the header announces; a header that cannot be read costs the largest picture allowed."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except Exception:  # decode_image meets the same fault again and gives it its name
        return limits.max_pixels
    return min(width * height, limits.max_pixels)


def read_data_url(text: str, max_bytes: int) -> bytes:
    """Bytes of a ``data:image/...;base64,`` URL (RFC 2397). Raises PictureError."""
    head, comma, body = text.partition(",")
    kind = head[len("data:") :].lower()
    if not comma or not kind.startswith("image/") or not kind.endswith(";base64"):
        raise PictureError("image_url_refused", "a data URL must begin with data:image/...;base64,")
    if len(body) > (max_bytes + 2) // 3 * 4:
        raise PictureError("image_too_large", f"the image has more than {max_bytes} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError("image_truncated", "the data URL holds no valid base64") from error
