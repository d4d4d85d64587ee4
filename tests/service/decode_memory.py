"""Decodes 64 large pictures at once and prints by how much the process grew; a program of its own, run by a test.

Knows no test. Needs Linux.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
from PIL import Image

from mufin.inputs import ImageLimits
from service.decoding import Decoder
from tests.service.hostile_pictures import encoded, exif_of, saved, with_exif

PICTURES, SIZE, BUDGET_PIXELS = 64, (1200, 1000), 4_000_000
SLACK_BYTES = 24 << 20
"""Stacks and arenas of 64 threads, and what Pillow reads outside of the budget."""


def kinds() -> dict[str, bytes]:
    """The costliest pictures there are, by memory a pixel; all of the same size."""
    see_through = (255, 0, 0, 128)
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = Image.fromarray(np.full(SIZE[::-1], 40_000, dtype=np.uint16))
    red = Image.new("RGB", SIZE, "red")
    return {
        "PNG with alpha, turned": saved("RGBA", see_through, "PNG", SIZE, exif=turned),
        "PNG, 16 bits": encoded(grey, "PNG"),
        "WebP with alpha": saved("RGBA", see_through, "WEBP", SIZE, lossless=True),
        "WebP, animated": saved(
            "RGBA", see_through, "WEBP", SIZE, save_all=True, append_images=[Image.new("RGBA", SIZE, (0, 0, 255, 99))]
        ),
        "JPEG, progressive, CMYK": saved("CMYK", (1, 2, 3, 4), "JPEG", SIZE, progressive=True, subsampling=0),
        "JPEG, two in one": encoded(red, "MPO", save_all=True, append_images=[red], progressive=True, subsampling=0),
    }


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024


def _memory_now() -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    return _memory("VmRSS")


async def _grown(content: bytes) -> int:
    """Bytes by which the process is larger at its peak than before."""
    decoder = Decoder(PICTURES, BUDGET_PIXELS, ImageLimits())
    await decoder.decode(with_exif("JPEG", exif_of(1, 9, 99)), 64)
    before = _memory_now()
    await asyncio.gather(*(decoder.decode(content, 64) for _ in range(PICTURES)))
    decoder.close()
    return _memory("VmHWM") - before


def main() -> None:
    """Print the figures as JSON."""
    pixels = SIZE[0] * SIZE[1] * PICTURES
    figures = {
        kind: {
            "grown_bytes": asyncio.run(_grown(content)),
            "budget_pixels": BUDGET_PIXELS,
            "at_once_pixels": pixels,
            "slack_bytes": SLACK_BYTES,
        }
        for kind, content in kinds().items()
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
