"""mufin-serve over a tiny bundle whose encoders take as long as told: python -m bench.overload_service FOLDER [flags].

The graphs of the bundle mean nothing and take microseconds; hashing before each call stands for real encoders,
outside Python's lock as they are. Everything else is the service as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mufin.inputs import FloatArray, Uint8Array
from mufin.item_encoder import ItemEncoder
from service.__main__ import serve
from service.bundles import Model, Verify, open_from_disk
from service.settings import Settings

_TELL_SECONDS = 1.0


class Burner:
    """Computes for so many milliseconds, as measured once at the start, in one call outside Python's lock.

    Many short calls would ask for the lock again and again, and wait for it up to 5 ms each time: no session does that.
    """

    def __init__(self) -> None:
        turns, began = 20_000, time.perf_counter()
        self._burn_turns(turns)
        self._turns_per_millisecond = turns / (1000 * (time.perf_counter() - began))

    def _burn_turns(self, turns: int) -> None:
        hashlib.pbkdf2_hmac("sha256", b"", b"", turns)

    def burn(self, milliseconds: float) -> None:
        """About so long, on an idle core."""
        self._burn_turns(max(1, round(milliseconds * self._turns_per_millisecond)))


def slowed(model: Model, title_milliseconds: float, image_milliseconds: float) -> Model:
    """The model, its encoders taking so long an item."""
    burner = Burner()
    encoder = model.encoder
    titles: Callable[[Sequence[str]], tuple[FloatArray, list[tuple[int, int]]]] = encoder.encode_counted
    images: Callable[[Uint8Array], FloatArray] = encoder.encode_images

    def encode_counted(items: Sequence[str]) -> tuple[FloatArray, list[tuple[int, int]]]:
        burner.burn(title_milliseconds * len(items))
        return titles(items)

    def encode_images(pixels: Uint8Array) -> FloatArray:
        burner.burn(image_milliseconds * len(pixels))
        return images(pixels)

    assert isinstance(encoder, ItemEncoder)
    object.__setattr__(encoder, "encode_counted", encode_counted)
    object.__setattr__(encoder, "encode_images", encode_images)
    return model


def _open(folder: Path, verify: Verify, threads: int, resident: bool) -> Model:
    title, image = (float(own) for own in os.environ["MUFIN_BENCH_ENCODER_MILLISECONDS"].split(","))
    return slowed(open_from_disk(folder, verify, threads, resident), title, image)


def _tell_tasks() -> None:
    """A line now and then with the number of asyncio tasks of this process."""
    while True:
        time.sleep(_TELL_SECONDS)
        line = json.dumps({"event": "tasks", "tasks": len(asyncio.tasks._all_tasks)})  # type: ignore[attr-defined]
        os.write(2, f"{line}\n".encode())  # in one piece: the log is written by another thread


if __name__ == "__main__":
    threading.Thread(target=_tell_tasks, daemon=True).start()
    sys.exit(serve(Settings(_cli_parse_args=sys.argv[1:]), _open))
