"""mufin-serve with the tiny model in memory, for tests that need a process: python -m tests.service.serve_memory.

Settings come as flags. MUFIN_TEST_TITLE_SECONDS makes titles slow; MUFIN_TEST_REFUSE refuses the bundle.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mufin.errors import BundleError
from service.__main__ import serve
from service.bundles import Verify
from service.settings import Settings
from tests.service.memory_model import MemoryModel, shop


def _open(folder: Path, verify: Verify, threads: int, resident: bool) -> MemoryModel:
    if os.environ.get("MUFIN_TEST_REFUSE"):
        raise BundleError("bundle has 3 labels, index has 2: run mufin-export again")
    return MemoryModel(shop(), title_seconds=float(os.environ.get("MUFIN_TEST_TITLE_SECONDS", "0")))


if __name__ == "__main__":
    sys.exit(serve(Settings(_cli_parse_args=sys.argv[1:]), _open))
