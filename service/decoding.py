"""Picture bytes to pixels in a bounded pool of threads with a budget of pixels, which is a budget of memory.

Knows no network and no model; what a picture may be is decided by ``mufin.inputs``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ctypes
import io
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from PIL import Image, PngImagePlugin

from mufin.errors import ImageError
from mufin.inputs import ImageLimits, Uint8Array, decode_image
from mufin.resizing import compiled_resize
from service.errors import PictureError
from service.picture_headers import check_pieces, size_in_header

Out = TypeVar("Out")


BYTES_A_PIXEL = 34
"""Most memory that decoding takes for one pixel of the budget; the costliest are WebP pictures with alpha."""
_JPEG_SHARE, _WHOLE_JPEG_SHARE = 0.3, 0.65
"""Of that, what a JPEG takes at most: the coefficients of a progressive one in CMYK, and its reduced pixels; or all
its pixels, where Pillow takes it for the first of several (MPO) and does not reduce it."""

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# Texts and profiles unpacked from one PNG, all chunks together; Pillow would allow 64 MiB outside of any budget.
PngImagePlugin.MAX_TEXT_MEMORY = 4 << 20


class PixelBudget:
    """Pixels that may be in decoding at once; for threads, first come first served."""

    def __init__(self, pixels: int) -> None:
        self._whole = pixels
        self._left = pixels
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until so many are free; more than the whole budget waits for all of it."""
        share, ticket = min(pixels, self._whole), object()
        with self._changed:
            self._queue.append(ticket)
            # In order, or a large picture would wait for ever behind small ones that keep coming.
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._left >= share)
            self._queue.popleft()
            self._left -= share
            self._changed.notify_all()
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
        self._resize = compiled_resize()
        _return_large_blocks()
        # A hostile picture makes Pillow warn thousands of times; nobody needs to read that.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    async def decode(self, content: bytes, side_pixels: int) -> Uint8Array:
        """(side, side, 3) uint8. Raises PictureError."""
        return await self.run(self._decode, content, side_pixels)

    async def run(self, work: Callable[..., Out], *arguments: Any) -> Out:
        """Other work on picture bytes that must not hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Forget what waits; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, content: bytes, side_pixels: int) -> Uint8Array:
        try:
            check_pieces(content)
            with self._budget.take(_cost_pixels(content, self._limits)):
                return decode_image(content, side_pixels, self._limits, self._resize)
        except ImageError as error:
            raise PictureError(error.code, str(error)) from error
        except Exception as error:
            # Parsers fed with hostile bytes raise whatever they like; none of it is a reason to answer 500.
            raise PictureError("image_truncated", "the image is broken or cut short") from error


def _return_large_blocks() -> None:
    """Have freed pictures go back to the system; glibc alone would come to keep them, up to 32 MiB each a thread.

    Without it 64 threads held three times what their pictures took at their most (tests/service/decode_memory.py).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # not glibc
    mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    mallopt(_M_TRIM_THRESHOLD, 4 << 20)


def _cost_pixels(content: bytes, limits: ImageLimits) -> int:
    """Pixels of the budget that decoding takes; a header that cannot be read costs the largest picture allowed."""
    size, share = size_in_header(content), 1.0
    if size is None:
        size, share = _size_of_jpeg(content)
    if size is None:
        return limits.max_pixels
    width, height = size
    if min(size) < limits.min_side_pixels:
        return 1  # decode_image refuses it with the right code
    if max(size) > limits.max_side_pixels or width * height > limits.max_pixels:
        # Pillow's WebP reader sets aside memory for the pixels before anybody can ask for the size.
        raise ImageError(
            "image_too_large",
            f"the image is {width}x{height}; allowed are {limits.max_side_pixels} a side "
            f"and {limits.max_pixels} pixels",
        )
    return max(1, round(width * height * share))


def _size_of_jpeg(content: bytes) -> tuple[tuple[int, int] | None, float]:
    """Width and height as Pillow finds them, which sets no memory aside for a JPEG; and what a pixel of it costs."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return image.size, _JPEG_SHARE if image.format == "JPEG" else _WHOLE_JPEG_SHARE
    except Exception:  # decode_image meets the same fault again and gives it its name
        return None, 1.0


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
