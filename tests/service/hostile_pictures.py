"""The table of hostile and odd pictures, made here: what each is, and how decoding it ends. Adding one is a line.

Knows no decoder; test_hostile_pictures.py decodes them and docs/security.md shows them.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image

from service.errors import PictureCode

Colour = tuple[int, int, int]
RED: Colour = (255, 0, 0)
WHITE: Colour = (255, 255, 255)
GREY: Colour = (128, 128, 128)


@dataclass(frozen=True)
class PictureCase:
    """One picture, and how decoding it ends."""

    name: str
    make: Callable[[], bytes]
    outcome: PictureCode | Literal["ok"]
    left: Colour | None = None
    """Of a picture that is well: the colour left of the middle; None: any."""
    right: Colour | None = None
    """And right of it."""


# ---- pieces


def saved(mode: str, colour: Any, kind: str, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    """A picture of one colour, encoded."""
    return encoded(Image.new(mode, size, colour), kind, **options)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture, encoded."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(kind: str) -> bytes:
    """A red picture, as red as the format can."""
    return encoded(Image.new("RGB", (64, 64), RED), kind, **({"lossless": True} if kind == "WEBP" else {}))


def greedy_exif(kind: str) -> bytes:
    """EXIF of 2 MB, of which every entry claims half."""
    return with_exif(kind, exif_of(1500, 900_000, 2_000_000))


def halves(mode: str = "RGB") -> Image.Image:
    """Red above, white below."""
    image = Image.new("RGB", (64, 64), WHITE)
    image.paste(RED, (0, 0, 64, 32))
    return image.convert(mode)


def turned(kind: str, orientation: int) -> bytes:
    """The halves with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(halves(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def with_exif(kind: str, exif: bytes) -> bytes:
    """A red picture with these bytes for EXIF."""
    if kind == "PNG":
        return with_chunks(chunk(b"eXIf", exif))
    if kind == "WEBP":
        return saved("RGB", RED, "WEBP", lossless=True, exif=exif)
    return with_segments(
        *(b"\xff\xe1" + _counted(b"Exif\0\0" + exif[at : at + 60_000]) for at in range(0, len(exif), 60_000))
    )


def exif_of(entries: int, size: int, total: int) -> bytes:
    """An EXIF directory whose entries all claim the same ``size`` bytes of ``total``."""
    tags = b"".join(struct.pack("<HHLL", 0x8000 + own, 7, size, total - size) for own in range(entries))
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + tags + bytes(4)
    return head + bytes(max(0, total - len(head)))


def chunk(kind: bytes, data: bytes, crc: int | None = None, length: int | None = None) -> bytes:
    """A PNG chunk, whose checksum and length may lie."""
    told = len(data) if length is None else length
    return struct.pack(">I", told) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png(
    width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG put together by hand; ``rows`` are not compressed yet."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows, 9)) + after + chunk(b"IEND", b"")


def with_chunks(*chunks: bytes, last: bool = False) -> bytes:
    """A red PNG with more chunks, before or after its pixels."""
    whole = saved("RGB", RED, "PNG")
    at = len(whole) - 12 if last else 33
    return whole[:at] + b"".join(chunks) + whole[at:]


def with_segments(*segments: bytes) -> bytes:
    """A red JPEG with more segments and without its JFIF one."""
    whole = saved("RGB", RED, "JPEG")
    return whole[:2] + b"".join(segments) + whole[4 + int.from_bytes(whole[4:6], "big") :]


def jpeg_that_says(width: int, height: int) -> bytes:
    """A small JPEG whose header gives another size."""
    whole = saved("RGB", RED, "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def jpeg_with_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = saved("L", 200, "JPEG", (2000, 2000), progressive=True)
    at = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[at:-2] * number + whole[-2:]


def webp_that_says(width: int, height: int) -> bytes:
    """A WebP whose canvas is of another size than its picture."""
    whole = bytearray(saved("RGBA", (255, 0, 0, 128), "WEBP"))
    assert whole[12:16] == b"VP8X"
    whole[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(whole)


def zipped(before: bytes) -> bytes:
    """A picture that is a ZIP archive as well."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.sh", "echo")
    return before + buffer.getvalue()


def mpo() -> bytes:
    """Two JPEGs in one, as phones and stereo cameras write them."""
    return encoded(halves(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")])


def animated(kind: str) -> bytes:
    """A red frame, then a blue one."""
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (64, 64), "blue")]
    return encoded(Image.new("RGB", (64, 64), RED), kind, save_all=True, append_images=frames, **options)


def palette(transparent: bool) -> bytes:
    """One entry of a palette, red or see-through."""
    image = Image.new("P", (64, 64), 3)
    image.putpalette([255, 0, 0] * 4)
    return encoded(image, "PNG", **({"transparency": 3} if transparent else {}))


def grey16(level: int) -> bytes:
    """16 bits a pixel."""
    return encoded(Image.fromarray(np.full((64, 64), level, dtype=np.uint16)), "PNG")


def _counted(data: bytes) -> bytes:
    return struct.pack(">H", len(data) + 2) + data


def _bomb(length: int) -> bytes:
    return zlib.compress(bytes(length), 9)


def cut(kind: str, end: int | float) -> bytes:
    """The first bytes of a picture of noise: so many, or that share of them."""
    pixels = np.random.default_rng(7).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(pixels), kind)
    return whole[: int(len(whole) * end) if isinstance(end, float) else end]


PICTURES: dict[str, Sequence[PictureCase]] = {
    "plain": [
        *(PictureCase(kind, partial(red, kind), "ok", RED, RED) for kind in ("PNG", "JPEG", "WEBP")),
        PictureCase("progressive JPEG", lambda: saved("RGB", RED, "JPEG", progressive=True), "ok", RED, RED),
        PictureCase("JPEG, 4:4:4, quality 1", lambda: saved("RGB", RED, "JPEG", quality=1, subsampling=0), "ok"),
        PictureCase("PNG, 1 bit a pixel", lambda: saved("1", 0, "PNG"), "ok", (0, 0, 0), (0, 0, 0)),
    ],
    "no picture": [
        PictureCase("zero bytes", lambda: b"", "not_an_image"),
        PictureCase("one byte", lambda: b"\xff", "not_an_image"),
        PictureCase("1 MB of zeros", lambda: bytes(1_000_000), "not_an_image"),
        PictureCase("text", lambda: b"hello", "not_an_image"),
        PictureCase("HTML", lambda: b"<!doctype html><script>alert(1)</script>", "not_an_image"),
        PictureCase("SVG", lambda: b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "not_an_image"),
        PictureCase("PostScript", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file", "not_an_image"),
        PictureCase("PDF", lambda: b"%PDF-1.7\n", "not_an_image"),
        PictureCase("ZIP", lambda: zipped(b""), "not_an_image"),
        PictureCase("RIFF that is sound", lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), "not_an_image"),
    ],
    "other formats, whole": [
        *(PictureCase(kind, partial(saved, "RGB", RED, kind), "not_an_image") for kind in ("GIF", "TIFF", "BMP", "ICO", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "DDS", "SGI", "ICNS", "EPS", "PDF", "QOI")),
    ],
    "sizes": [
        PictureCase("1x1", lambda: saved("RGB", RED, "PNG", (1, 1)), "image_too_small"),
        PictureCase("2x50", lambda: saved("RGB", RED, "PNG", (2, 50)), "image_too_small"),
        PictureCase("3x3", lambda: saved("RGB", RED, "PNG", (3, 3)), "ok", RED, RED),
        PictureCase("1x20000", lambda: saved("RGB", RED, "PNG", (1, 20_000)), "image_too_small"),
        PictureCase("20000x3", lambda: saved("RGB", RED, "PNG", (20_000, 3)), "image_too_large"),
        PictureCase("10000x3", lambda: saved("RGB", RED, "PNG", (10_000, 3)), "ok"),
        PictureCase("0x0", lambda: png(0, 0, b""), "not_an_image"),
        PictureCase("a width of 2^31", lambda: png(2**31, 64, b"\0"), "image_too_large"),
        PictureCase("JPEG without height", lambda: jpeg_that_says(64, 0), "not_an_image"),
    ],
    "bombs": [
        PictureCase("PNG, 30,000x30,000 of one colour", lambda: png(30_000, 30_000, bytes(1000)), "image_too_large"),
        PictureCase("PNG, 5,100x5,000, whole, 1 bit a pixel", lambda: png(5100, 5000, bytes(5000 * 639), bits=1), "image_too_large"),
        PictureCase("PNG, 5,000x5,000, whole, in 4 kB", lambda: png(5000, 5000, bytes(5000 * 626), bits=1), "ok", (0, 0, 0), (0, 0, 0)),
        PictureCase("JPEG that says 65,500x65,500", lambda: jpeg_that_says(65_500, 65_500), "image_too_large"),
        PictureCase("WebP that says 16,384x16,384", lambda: webp_that_says(16_384, 16_384), "image_too_large"),
        PictureCase("WebP, 16,383x64", lambda: saved("RGB", RED, "WEBP", (16_383, 64)), "image_too_large"),
        PictureCase("PNG with 50 MB of pixels too many", lambda: png(64, 64, bytes(50_000_000)), "ok", (0, 0, 0), (0, 0, 0)),
        PictureCase("PNG with 50 MB of compressed text", lambda: with_chunks(chunk(b"zTXt", b"a\0\0" + _bomb(50_000_000))), "image_truncated"),
        PictureCase("PNG with 50 MB of international text", lambda: with_chunks(chunk(b"iTXt", b"a\0\1\0\0\0" + _bomb(50_000_000))), "image_truncated"),
        PictureCase("PNG with 100 texts of 1 MB", lambda: with_chunks(*[chunk(b"zTXt", b"a%d\0\0" % own + _bomb(1_000_000)) for own in range(100)]), "image_truncated"),
        PictureCase("PNG with 4 MB of plain text", lambda: with_chunks(chunk(b"tEXt", b"a\0" + b"x" * 4_000_000)), "ok", RED, RED),
        PictureCase("PNG with a 50 MB colour profile", lambda: with_chunks(chunk(b"iCCP", b"a\0\0" + _bomb(50_000_000))), "image_truncated"),
        PictureCase("PNG of 30,000 chunks", lambda: with_chunks(chunk(b"abCd", b"") * 30_000), "image_too_large"),
        PictureCase("JPEG of 10,000 segments", lambda: with_segments(b"\xff\xfe\0\2" * 10_000), "image_too_large"),
        PictureCase("JPEG of 60 scans", lambda: jpeg_with_scans(50), "ok"),
        PictureCase("JPEG of 10,000 scans", lambda: jpeg_with_scans(10_000), "image_too_large"),
        *(PictureCase(f"{kind}, EXIF whose 1,500 entries claim 900 kB each", partial(greedy_exif, kind), "ok", RED, RED) for kind in ("PNG", "JPEG", "WEBP")),
        PictureCase("PNG, animated, says 2^31 frames", lambda: with_chunks(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))), "ok", RED, RED),
    ],
    "cut and broken": [
        *(PictureCase(f"{kind}, cut in the middle", partial(cut, kind, 0.5), "image_truncated") for kind in ("PNG", "JPEG", "WEBP")),
        PictureCase("PNG, the first 12 bytes", partial(cut, "PNG", 12), "not_an_image"),
        PictureCase("JPEG, the first 12 bytes", partial(cut, "JPEG", 12), "image_truncated"),
        PictureCase("WebP, the first 12 bytes", partial(cut, "WEBP", 12), "not_an_image"),
        PictureCase("PNG, without its last byte", partial(cut, "PNG", -1), "ok"),
        PictureCase("JPEG, without its last byte", partial(cut, "JPEG", -1), "image_truncated"),
        PictureCase("WebP, without its last byte", partial(cut, "WEBP", -1), "image_truncated"),
        PictureCase("PNG without pixels", lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)) + chunk(b"IEND", b""), "image_truncated"),
        PictureCase("PNG with too few pixels", lambda: png(64, 64, bytes(100)), "image_truncated"),
        PictureCase("PNG, a checksum of its pixels that is wrong", lambda: with_chunks(chunk(b"IDAT", b"", crc=1)), "ok"),
        PictureCase("PNG, a chunk of 2^31 bytes", lambda: with_chunks(chunk(b"tEXt", b"a\0b", length=2**31)), "image_truncated"),
        PictureCase("PNG, a header too short", lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0\0\x40"), "image_truncated"),
        PictureCase("PNG, bits and colours that do not go together", lambda: png(64, 64, bytes(9000), bits=3, colour=6), "not_an_image"),
        PictureCase("PNG, a palette picture without palette", lambda: png(64, 64, bytes(65 * 64), colour=3), "ok"),
        PictureCase("PNG, pixels that are no zlib stream", lambda: with_chunks(chunk(b"IDAT", b"garbage")), "image_truncated"),
        PictureCase("PNG, its header twice", lambda: with_chunks(chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))), "image_too_large"),
        PictureCase("JPEG with garbage between its segments", lambda: with_segments(b"garbage"), "not_an_image"),
        PictureCase("JPEG without Huffman tables: the usual ones", lambda: saved("RGB", RED, "JPEG").replace(b"\xff\xc4", b"\xff\xfe"), "ok"),
        PictureCase("WebP whose canvas is not its picture's size", lambda: webp_that_says(70, 70), "image_truncated"),
    ],
    "colours": [
        PictureCase("grey", lambda: saved("L", 128, "PNG"), "ok", GREY, GREY),
        PictureCase("CMYK JPEG", lambda: saved("CMYK", (0, 255, 255, 0), "JPEG"), "ok", RED, RED),
        PictureCase("16 bits, grey", lambda: grey16(32_896), "ok", GREY, GREY),
        PictureCase("16 bits, black", lambda: grey16(0), "ok", (0, 0, 0), (0, 0, 0)),
        PictureCase("16 bits, coloured", lambda: png(8, 8, (b"\0" + b"\xff\xff\0\0\0\0" * 8) * 8, bits=16, colour=2), "ok", RED, RED),
        PictureCase("palette", lambda: palette(False), "ok", RED, RED),
        PictureCase("palette, see-through", lambda: palette(True), "ok", WHITE, WHITE),
        PictureCase("see-through PNG", lambda: saved("RGBA", (255, 0, 0, 0), "PNG"), "ok", WHITE, WHITE),
        PictureCase("half see-through PNG", lambda: saved("RGBA", (255, 0, 0, 128), "PNG"), "ok", (255, 127, 127), (255, 127, 127)),
        PictureCase("see-through WebP", lambda: saved("RGBA", (255, 0, 0, 0), "WEBP", lossless=True), "ok", WHITE, WHITE),
        PictureCase("grey with alpha", lambda: saved("LA", (0, 0), "PNG"), "ok", WHITE, WHITE),
        PictureCase("one colour declared see-through", lambda: saved("RGB", RED, "PNG", transparency=RED), "ok", WHITE, WHITE),
        PictureCase("a broken colour profile in a PNG", lambda: saved("RGB", RED, "PNG", icc_profile=b"garbage" * 99), "ok", RED, RED),
        PictureCase("a broken colour profile in a JPEG", lambda: saved("RGB", RED, "JPEG", icc_profile=b"garbage" * 99), "ok", RED, RED),
        PictureCase("a colour profile that is no zlib stream", lambda: with_chunks(chunk(b"iCCP", b"a\0\0garbage")), "ok", RED, RED),
        PictureCase("a colour profile by an unknown method", lambda: with_chunks(chunk(b"iCCP", b"a\0\x09garbage")), "not_an_image"),
    ],
    "frames and turns": [
        PictureCase("animated PNG: the first frame", lambda: animated("PNG"), "ok", RED, RED),
        PictureCase("animated WebP: the first frame", lambda: animated("WEBP"), "ok", RED, RED),
        PictureCase("two JPEGs in one (MPO): the first", mpo, "ok"),
        *(PictureCase(f"{kind}, EXIF orientation 6: turned clockwise", partial(turned, kind, 6), "ok", WHITE, RED) for kind in ("PNG", "JPEG", "WEBP")),
        PictureCase("JPEG, EXIF orientation 8: turned the other way", lambda: turned("JPEG", 8), "ok", RED, WHITE),
        PictureCase("JPEG, EXIF orientation 99: as it is", lambda: turned("JPEG", 99), "ok"),
        PictureCase("JPEG, EXIF that is garbage", lambda: with_exif("JPEG", b"garbage" * 9), "ok", RED, RED),
        PictureCase("JPEG, EXIF cut short", lambda: with_exif("JPEG", b"II*\0\x08\0\0\0\xff\xff"), "ok", RED, RED),
        PictureCase("JPEG, EXIF that points into itself", lambda: with_exif("JPEG", b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHLL", 0x8769, 4, 1, 8) + b"\x08\0\0\0"), "ok", RED, RED),
        PictureCase("PNG, EXIF that is garbage", lambda: with_exif("PNG", b"garbage"), "ok", RED, RED),
    ],
    "two things in one": [
        PictureCase("PNG and HTML behind it", lambda: saved("RGB", RED, "PNG") + b"<script>alert(1)</script>", "ok", RED, RED),
        PictureCase("PNG and HTML in a text chunk", lambda: with_chunks(chunk(b"tEXt", b"a\0<script>alert(1)</script>")), "ok", RED, RED),
        PictureCase("JPEG and ZIP", lambda: zipped(saved("RGB", RED, "JPEG")), "ok", RED, RED),
        PictureCase("JPEG and a comment that is PHP", lambda: with_segments(b"\xff\xfe" + _counted(b"<?php system('id') ?>")), "ok", RED, RED),
        PictureCase("GIF and JPEG behind it", lambda: b"GIF89a" + saved("RGB", RED, "JPEG"), "not_an_image"),
        PictureCase("PNG's first bytes, then a JPEG", lambda: b"\x89PNG\r\n\x1a\n" + saved("RGB", RED, "JPEG"), "not_an_image"),
        PictureCase("JPEG's first bytes, then a PNG", lambda: b"\xff\xd8\xff" + saved("RGB", RED, "PNG"), "not_an_image"),
        PictureCase("WebP's first bytes, then a PNG", lambda: b"RIFF\0\0\0\0WEBP" + saved("RGB", RED, "PNG"), "not_an_image"),
    ],
}  # fmt: skip
