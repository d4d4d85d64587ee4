"""Pictures of the built-in shop's products: colour, pattern and shape, drawn with Pillow.

Knows no titles, brands, kinds or sizes: nothing of them can be seen.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from mufin.datasets.shop_products import COLOURS, PATTERNS, SHAPES
from mufin.inputs import Int64Array

SIDE_PIXELS = 64
_DRAWN = 2 * SIDE_PIXELS
"""Drawn at twice the size and halved: smooth edges."""
PAINTS = {
    "red": (205, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 50),
    "green": (40, 145, 65),
    "blue": (40, 95, 205),
    "purple": (115, 45, 150),
    "pink": (245, 140, 190),
    "black": (40, 40, 45),
}


def draw_picture(colour: int, pattern: int, shape: int, view: int, random: np.random.Generator) -> bytes:
    """One encoded picture; view 0 is a PNG of the whole product, others are JPEG, 2 a close-up of the pattern."""
    jitter = random.integers(-12, 13, size=3)
    paint = _clip(np.asarray(PAINTS[COLOURS[colour]]) + jitter)
    ground = _clip(random.integers(222, 250) + random.integers(-4, 5, size=3))
    accent = _clip(np.asarray([250, 250, 248]) + random.integers(-5, 1, size=3))
    surface = _surface(PATTERNS[pattern], paint, accent, random)
    canvas = Image.new("RGB", (_DRAWN, _DRAWN), ground)
    canvas.paste(surface, (0, 0), _silhouette(SHAPES[shape], 1.25 if view == 2 else random.uniform(0.72, 0.92), random))
    return _encode(canvas.reduce(2), "JPEG" if view else "PNG")


def _clip(values: Int64Array) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in np.clip(values, 0, 255))
    return red, green, blue


def _surface(
    pattern: str, paint: tuple[int, int, int], accent: tuple[int, int, int], random: np.random.Generator
) -> Image.Image:
    surface = Image.new("RGB", (_DRAWN, _DRAWN), paint)
    draw = ImageDraw.Draw(surface)
    step, start = 32, int(random.integers(-31, 1))
    places = range(start, _DRAWN, step)
    if pattern == "striped":
        for top in places:
            draw.rectangle((0, top, _DRAWN, top + step // 2 - 1), accent)
    elif pattern == "checked":
        for row, top in enumerate(places):
            for left in range(start + row % 2 * step - step, _DRAWN, 2 * step):
                draw.rectangle((left, top, left + step - 1, top + step - 1), accent)
    elif pattern == "dotted":
        for row, top in enumerate(places):
            for left in range(start + row % 2 * step // 2 - step, _DRAWN, step):
                draw.ellipse((left + 6, top + 6, left + 25, top + 25), accent)
    return surface


def _silhouette(shape: str, scale: float, random: np.random.Generator) -> Image.Image:
    """Where the product is: 255 inside, somewhat off the middle."""
    mask = Image.new("L", (_DRAWN, _DRAWN), 0)
    draw = ImageDraw.Draw(mask)
    half = scale * _DRAWN / 2
    slack = max(0.0, _DRAWN / 2 - half)
    x, y = _DRAWN / 2 + random.uniform(-slack, slack, size=2)
    if shape == "round":
        draw.ellipse((x - half, y - half, x + half, y + half), 255)
    elif shape == "square":
        draw.rectangle((x - 0.88 * half, y - 0.88 * half, x + 0.88 * half, y + 0.88 * half), 255)
    elif shape == "pointed":
        draw.polygon(((x, y - half), (x - half, y + half), (x + half, y + half)), 255)
    else:
        draw.rectangle((x - 0.45 * half, y - half, x + 0.45 * half, y + half), 255)
    return mask


def _encode(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    if image_format == "JPEG":
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()
