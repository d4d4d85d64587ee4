"""Compiled code on disk: read again while neither the function's file nor what all kernels share has changed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numba
import pytest

from mufin import kernel_cache

SOURCE = "import numba\n\n\n@numba.njit\ndef twice(x):\n    return 2 * x\n"


def compilations(path: Path) -> int:
    """How many times the function in ``path`` is compiled when it is loaded anew and called."""
    spec = importlib.util.spec_from_file_location("own_kernel", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel_cache.keep_on_disk(module.twice)
    assert module.twice(21) == 42
    return sum(module.twice.stats.cache_misses.values())


def test_code_is_read_until_its_file_or_what_kernels_share_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper is compiled into every kernel, and numba alone would go on with the old one."""
    own, shared = tmp_path / "own_kernel.py", tmp_path / "shared.py"
    own.write_text(SOURCE)
    shared.write_text("first")
    monkeypatch.setattr(kernel_cache, "_SHARED", shared)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    assert compilations(own) == 1
    assert compilations(own) == 0
    shared.write_text("second, longer")
    assert compilations(own) == 1
    assert compilations(own) == 0
    own.write_text(SOURCE + "\n# other\n")
    assert compilations(own) == 1
