"""Every picture of hostile_pictures.py, on the way that fetched bytes go: first bytes, pool, budget, decoder."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mufin.inputs import ImageLimits, Uint8Array
from service.decoding import BYTES_A_PIXEL, Decoder, PixelBudget
from service.errors import PictureError
from service.fetching import require_image
from service.settings import Settings
from tests.service.hostile_pictures import PICTURES, Colour, PictureCase

SIDE = 64
ENOUGH_SECONDS = 10.0


@pytest.fixture(name="decoder", scope="module")
def make_decoder() -> Decoder:
    """With the limits of the service as it starts."""
    settings = Settings(_cli_parse_args=[])
    return Decoder(1, settings.decode_budget_pixels, ImageLimits(max_pixels=settings.max_image_pixels))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{group}: {case.name}") for group, cases in PICTURES.items() for case in cases]
)
async def test_decoding_ends_as_the_table_says(case: PictureCase, decoder: Decoder) -> None:
    """The stated code and soon, or the stated colours."""
    content = case.make()
    assert len(content) <= Settings(_cli_parse_args=[]).max_image_bytes
    outcome, pixels = await _decoded(decoder, content)
    assert outcome == case.outcome
    if pixels is None:
        return
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    for colour, column in ((case.left, SIDE // 4), (case.right, SIDE * 3 // 4)):
        assert colour is None or _alike(pixels[SIDE // 2, column], colour)


async def _decoded(decoder: Decoder, content: bytes) -> tuple[str, Uint8Array | None]:
    try:
        async with asyncio.timeout(ENOUGH_SECONDS):
            require_image(content)
            return "ok", await decoder.decode(content, SIDE)
    except PictureError as error:
        return error.code, None


def _alike(pixel: Uint8Array, colour: Colour) -> bool:
    # Lossy encoders miss a pure colour by a little.
    return bool(np.abs(pixel.astype(int) - colour).max() <= 3)


def test_a_large_picture_is_not_passed_over_for_ever() -> None:
    """Who waits for the whole budget gets it before those who came later."""
    budget, order = PixelBudget(10), list[str]()
    first_may_go = threading.Event()

    def hold(name: str, pixels: int, wait: threading.Event | None = None) -> threading.Thread:
        def work() -> None:
            with budget.take(pixels):
                order.append(name)
                if wait is not None:
                    wait.wait(ENOUGH_SECONDS)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def waiting(number: int) -> None:
        until = time.monotonic() + ENOUGH_SECONDS
        while len(budget._queue) < number and time.monotonic() < until:
            time.sleep(0.001)

    threads = [hold("small", 4, first_may_go)]
    while not order:
        time.sleep(0.001)
    threads.append(hold("large", 10))
    waiting(1)
    threads.append(hold("later", 1))
    waiting(2)
    first_may_go.set()
    for thread in threads:
        thread.join(ENOUGH_SECONDS)
    assert order == ["small", "large", "later"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure memory")
def test_memory_stays_under_the_budget_with_64_pictures_at_once() -> None:
    """The costliest pictures of each kind in 64 threads: the process grows by no more than budget and contents."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.service.decode_memory"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for kind, figures in json.loads(done.stdout).items():
        assert figures["grown_bytes"] <= figures["budget_pixels"] * BYTES_A_PIXEL + figures["slack_bytes"], kind
        # Without the budget it would have been far more, or the bound would prove nothing.
        assert figures["at_once_pixels"] > 4 * figures["budget_pixels"]
