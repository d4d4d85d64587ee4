"""Compiled resizing gives what Pillow gives, bit for bit, whatever the picture and the CPU."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mufin.compilation import cpu_level
from mufin.errors import ConfigError
from mufin.inputs import Uint8Array, decode_image, pillow_resize
from mufin.resizing import compiled_resize

RESIZE = compiled_resize()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Nothing but edges: every sum overshoots, and is cut."""
    return Image.fromarray(np.random.default_rng(seed).choice([0, 255], (height, width, 3)).astype(np.uint8))


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 140), st.integers(1, 140), st.integers(0, 9))
@example(1, 1, 128, 128, 0)
@example(128, 128, 128, 128, 0)
@example(128, 300, 128, 128, 0)
@example(300, 128, 128, 128, 0)
@example(4000, 1, 128, 1, 0)
@example(1, 4000, 1, 128, 0)
@example(8191, 7, 128, 1, 0)
def test_every_size_is_as_pillows(width: int, height: int, new_width: int, new_height: int, seed: int) -> None:
    """Smaller, larger, as large, and thin as a line; widths and heights that fill no block."""
    picture = noise(width, height, seed)
    expected = pillow_resize(picture, new_width, new_height)
    found = RESIZE(picture, new_width, new_height)
    assert found.shape == (new_height, new_width, 3) == expected.shape
    np.testing.assert_array_equal(found, expected)


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), *((kind, mode) for kind in ("PNG", "WEBP") for mode in ("RGB", "L", "RGBA", "P"))],
)
@pytest.mark.parametrize("size", [(200, 151), (40, 90), (1000, 700)])
def test_a_decoded_picture_is_the_same(kind: str, mode: str, size: tuple[int, int]) -> None:
    """From bytes to the square, by either."""
    picture = noise(*size).resize(size, Image.Resampling.BILINEAR, (3, 3, size[0] - 3, size[1] - 3)).convert(mode)
    content = _encoded(picture, kind)
    np.testing.assert_array_equal(decode_image(content, 128, resize=RESIZE), decode_image(content, 128))


def test_threads_do_not_mix_pictures_up() -> None:
    """Many at once, of two sizes."""
    pictures = [noise(100 + own % 2, 80, own) for own in range(24)]
    expected = [pillow_resize(own, 64, 50) for own in pictures]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda own: RESIZE(own, 64, 50), pictures * 4))
    for place, own in enumerate(found):
        np.testing.assert_array_equal(own, expected[place % 24])


def test_without_numba_it_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back by itself."""
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ConfigError, match="numba cannot be imported"):
        compiled_resize()


ELSEWHERE = """
import sys
import numpy as np
from PIL import Image
from mufin.resizing import compiled_resize
random = np.random.default_rng(7)
resize = compiled_resize()
for width, height in ((200, 151), (33, 90)):
    picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    sys.stdout.buffer.write(resize(picture, 57, 31).tobytes())
"""


def _of_another_process(cpu: str | None) -> Uint8Array:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    if cpu is not None:
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, timeout=120, check=True
    )
    return np.frombuffer(done.stdout, np.uint8)


def test_other_cpus_resize_alike() -> None:
    """Code for AVX2, and for no more than every x86-64 has."""
    if cpu_level() is None:
        pytest.skip("no x86-64 CPU")
    random = np.random.default_rng(7)
    pictures = [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((200, 151), (33, 90))
    ]
    expected = np.concatenate([pillow_resize(own, 57, 31).reshape(-1) for own in pictures])
    for cpu in (None, "haswell", "x86-64"):
        np.testing.assert_array_equal(_of_another_process(cpu), expected)
