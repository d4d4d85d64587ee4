"""What an encoded picture says of itself, read without decoding it: size, and how many pieces it is made of.

Knows no Pillow and no budget. Reads bytes that anybody may have written; every loop here is bounded.
Sources: PNG third edition 5 (chunks), RFC 9649 (WebP), ITU T.81 annex B (JPEG markers).
"""

from __future__ import annotations

import re
import struct

from mufin.errors import ImageError

MAX_PNG_CHUNKS = 20_000
"""An encoder that writes the smallest usual chunks needs 8,000 for the largest picture allowed."""
MAX_JPEG_SEGMENTS = 5_000
MAX_JPEG_SCANS = 64
"""Progressive pictures have about 10. Each scan goes over all pixels again, and fifty bytes make one."""

_PNG = b"\x89PNG\r\n\x1a\n"
# What follows FF, stuffed bytes, fill bytes and restarts aside, which stand within a scan.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01


def size_in_header(content: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG or WebP; None for anything else or anything broken."""
    return _size_of_png(content) or _size_of_webp(content)


def check_pieces(content: bytes) -> None:
    """Refuse a picture whose pieces cost far more time than its size suggests. Raises ImageError."""
    if content.startswith(_PNG):
        _check_chunks(content)
    elif content.startswith(b"\xff\xd8"):
        _check_segments(content)


def _size_of_png(content: bytes) -> tuple[int, int] | None:
    if not content.startswith(_PNG + b"\0\0\0\rIHDR") or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def _size_of_webp(content: bytes) -> tuple[int, int] | None:
    """Of the canvas."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", content[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _check_chunks(content: bytes) -> None:
    position = len(_PNG)
    for _ in range(MAX_PNG_CHUNKS):
        # Length, type and checksum are twelve bytes beside the data.
        position += 12 + int.from_bytes(content[position : position + 4], "big")
        if position >= len(content):
            return
    raise ImageError("image_too_large", f"the image has more than {MAX_PNG_CHUNKS} chunks")


def _check_segments(content: bytes) -> None:
    position, scans = 2, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _MARKER.search(content, position)
        if found is None or content[found.end() - 1] == _EOI:
            return
        kind, position = content[found.end() - 1], found.end()
        if kind in (_SOI, _TEM):
            continue
        position += max(2, int.from_bytes(content[position : position + 2], "big"))
        scans += kind == _SOS
        if scans > MAX_JPEG_SCANS:
            raise ImageError("image_too_large", f"the image has more than {MAX_JPEG_SCANS} scans")
    raise ImageError("image_too_large", f"the image has more than {MAX_JPEG_SEGMENTS} segments")
