"""mufin-serve with the tiny model in memory, for tests that need a process: python -m tests.service.serve_memory.

Settings come as flags. MUFIN_TEST_TITLE_SECONDS makes titles slow; MUFIN_TEST_REFUSE refuses the bundle; a title that
holds MUFIN_TEST_KILLS_THREAD ends the thread that encodes it, MUFIN_TEST_HANGS keeps it for ever.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mufin.errors import BundleError
from mufin.inputs import FloatArray
from service.__main__ import serve
from service.bundles import Verify
from service.settings import Settings
from tests.service.memory_model import MemoryModel, shop


class FragileModel(MemoryModel):
    """Titles of its own kinds do what no model should."""

    def encode_titles(self, titles: Sequence[str]) -> FloatArray:
        """As the memory model, or never."""
        if any(os.environ.get("MUFIN_TEST_KILLS_THREAD", "\0") in title for title in titles):
            # As a fault in a library's own code would: Python is not told that the thread is gone.
            ctypes.CDLL(None).pthread_exit(None)
        while any(os.environ.get("MUFIN_TEST_HANGS", "\0") in title for title in titles):
            time.sleep(0.05)
        return super().encode_titles(titles)


def _open(folder: Path, verify: Verify, threads: int, resident: bool) -> MemoryModel:
    if os.environ.get("MUFIN_TEST_REFUSE"):
        raise BundleError("bundle has 3 labels, index has 2: run mufin-export again")
    return FragileModel(shop(), title_seconds=float(os.environ.get("MUFIN_TEST_TITLE_SECONDS", "0")))


if __name__ == "__main__":
    sys.exit(serve(Settings(_cli_parse_args=sys.argv[1:]), _open))
