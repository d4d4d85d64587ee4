"""Mutated pictures against the decoder: pixels or a stated error, soon, whatever the bytes.

Knows no network.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Iterator

import numpy as np

from mufin.inputs import ImageLimits
from service.decoding import Decoder
from service.errors import PictureError
from service.fetching import require_image
from tests.service.hostile_pictures import PICTURES

SLOWEST_SECONDS = 5.0
_SIDE = 32
_LIMITS = ImageLimits(max_pixels=500_000)
_LARGEST_SEED_BYTES = 20_000
_NUMBERS = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xda",
)


def fuzz_images(cases: int, seed: int) -> int:
    """Try so many pictures; how many were decoded. Raises AssertionError, or whatever was not meant to be raised."""
    return asyncio.run(_fuzz(cases, seed))


async def _fuzz(cases: int, seed: int) -> int:
    decoder, decoded = Decoder(1, _LIMITS.max_pixels, _LIMITS), 0
    try:
        for content in mutants(random.Random(seed), cases):
            began = time.perf_counter()
            try:
                require_image(content)
                pixels = await decoder.decode(content, _SIDE)
            except PictureError:
                continue
            finally:
                assert time.perf_counter() - began < SLOWEST_SECONDS, content[:100].hex()
            assert pixels.shape == (_SIDE, _SIDE, 3) and pixels.dtype == np.uint8
            decoded += 1
    finally:
        decoder.close()
    return decoded


def mutants(chance: random.Random, number: int) -> Iterator[bytes]:
    """Pictures of the table, each changed a little; most of them still begin like a picture."""
    made = [case.make() for group, cases in PICTURES.items() if group != "other formats, whole" for case in cases]
    seeds = [content for content in made if 0 < len(content) <= _LARGEST_SEED_BYTES]
    for _ in range(number):
        content = chance.choice(seeds)
        for _ in range(chance.choice((0, 1, 1, 2, 4, 16))):
            content = _changed(chance, content, seeds)
        yield _checksums_mended(content) if chance.random() < 0.7 else content


def _changed(chance: random.Random, content: bytes, seeds: list[bytes]) -> bytes:
    # Most of what decides lies near the beginning.
    reach = len(content) if chance.random() < 0.5 else min(len(content), 200)
    at, end = sorted((chance.randint(0, reach), chance.randint(0, reach)))
    kind = chance.randrange(6)
    if kind == 0:
        return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    if kind == 1:
        number = chance.choice(_NUMBERS)
        return content[:at] + number + content[at + len(number) :]
    if kind == 2:
        return content[:at] + content[end:]
    if kind == 3:
        return content[:at] + content[at:end] * chance.choice((2, 3)) + content[end:]
    if kind == 4:
        return content[: chance.randint(0, len(content))]
    other = chance.choice(seeds)
    return content[:at] + other[chance.randint(0, len(other)) :]


def _checksums_mended(content: bytes) -> bytes:
    """A PNG whose checksums are right, or no mutant would come past them."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    mended, at = bytearray(content), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)
