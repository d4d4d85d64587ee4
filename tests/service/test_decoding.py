"""Bytes to pixels in the pool, data URLs, the pixel budget."""

from __future__ import annotations

import asyncio
import base64
import threading

import numpy as np
import pytest

from mufin.inputs import ImageLimits
from service.decoding import Decoder, PixelBudget, read_data_url
from service.errors import PictureError
from service.fetching import require_image
from tests.service.serving import picture


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "not_an_image"), (b"hello", "not_an_image"), (picture()[:60], "image_truncated"),
     (picture(size=(2, 50)), "image_too_small"), (picture(size=(101, 100)), "image_too_large")],
)  # fmt: skip
async def test_a_bad_picture_has_its_code(content: bytes, code: str) -> None:
    """Errors of mufin.inputs become the codes of the wire."""
    decoder = Decoder(1, 1_000_000, ImageLimits(max_pixels=10_000))
    with pytest.raises(PictureError) as raised:
        await decoder.decode(content, 16)
    assert raised.value.code == code
    decoder.close()


async def test_many_pictures_decode_within_a_budget_smaller_than_each() -> None:
    """A picture over the whole budget waits for all of it instead of for ever."""
    decoder = Decoder(4, 10, ImageLimits())
    pixels = await asyncio.gather(*(decoder.decode(picture("blue", kind="JPEG"), 16) for _ in range(20)))
    assert all(own.shape == (16, 16, 3) and own.dtype == np.uint8 for own in pixels)
    decoder.close()


def test_the_budget_is_never_exceeded() -> None:
    """Threads wait for what is not free."""
    budget, lock = PixelBudget(100), threading.Lock()
    used, most = 0, 0

    def work(pixels: int) -> None:
        nonlocal used, most
        for _ in range(20):
            with budget.take(pixels):
                with lock:
                    used += min(pixels, 100)
                    most = max(most, used)
                with lock:
                    used -= min(pixels, 100)

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (30, 50, 70, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert 0 < most <= 100
    assert used == 0


def test_a_data_url_is_read() -> None:
    """The plain case."""
    content = picture()
    assert read_data_url("data:image/png;base64," + base64.b64encode(content).decode(), 10_000) == content


@pytest.mark.parametrize(
    ("url", "code"),
    [("data:image/png;base64", "image_url_refused"), ("data:image/png,abc", "image_url_refused"),
     ("data:text/html;base64,PGI+", "image_url_refused"), ("data:image/png;base64,a", "image_truncated"),
     ("data:image/png;base64,ä", "image_truncated"), ("data:image/png;base64," + "A" * 4000, "image_too_large")],
)  # fmt: skip
def test_a_bad_data_url_has_its_code(url: str, code: str) -> None:
    """Only base64 images within the limit are read."""
    with pytest.raises(PictureError) as raised:
        read_data_url(url, 1000)
    assert raised.value.code == code


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_known_by_their_first_bytes(kind: str) -> None:
    """Nothing is raised for what mufin.inputs can decode."""
    content = picture(kind=kind)
    require_image(content)
    assert len(content) > 12
