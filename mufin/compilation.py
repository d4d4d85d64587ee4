"""Compiled code (numba): for which CPU it is made, that it is kept on disk, and compiling without running.

Knows no kernel. numba is imported only by ``begin``.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal

from mufin.errors import ConfigError
from mufin.processor import processor_features

Kernel = Literal["numba", "numpy"]
"""compiled, or plain numpy, which is the reference"""
KERNELS: tuple[Kernel, ...] = ("numba", "numpy")

CPU_LEVELS: Mapping[str, tuple[str, ...]] = {
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v3": ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
    "x86-64": (),
}
"""Levels that code is made for, best first, and what a CPU must have: a build machine's own name would fit it alone."""

# LLVM halves its vectors at this level for the sake of CPUs that clock down; whole ones measured a tenth faster.
LEVEL_FEATURES = {"x86-64-v4": "-prefer-256-bit"}

_lock = threading.Lock()
_kept: set[str] = set()


def cpu_level() -> str | None:
    """The best of ``CPU_LEVELS`` that this CPU has; None on other architectures, where code is made for the CPU itself."""
    have = processor_features()
    if have is None:
        return None
    higher, best = set[str](), "x86-64"
    for level, needs in reversed(list(CPU_LEVELS.items())):
        higher |= set(needs)
        if not higher <= have:
            break
        best = level
    return best


def begin(remedy: str) -> None:
    """Before a module with kernels is imported. Raises ConfigError when numba is not installed, and says ``remedy``."""
    with _lock:
        try:
            numba: Any = importlib.import_module("numba")
        except ImportError as error:
            raise ConfigError(f"numba cannot be imported ({error}): {remedy}") from error
        if numba.config.CPU_NAME is None and (level := cpu_level()) is not None:
            # Before anything is compiled. No features but the level's own.
            numba.config.CPU_NAME, numba.config.CPU_FEATURES = level, LEVEL_FEATURES.get(level, "")


def kept(module: ModuleType) -> ModuleType:
    """The module, its ``KERNELS`` read from and written to numba's cache folder."""
    from mufin import kernel_cache

    with _lock:
        if module.__name__ not in _kept:
            for kernel in module.KERNELS:
                kernel_cache.keep_on_disk(kernel)
            _kept.add(module.__name__)
    return module


class _CompileOnly:
    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        numba: Any = importlib.import_module("numba")
        kernel = getattr(self._module, name)
        return lambda *arguments: kernel.compile(tuple(numba.typeof(value) for value in arguments))


def compile_only(module: ModuleType) -> Any:
    """The kernels' names; calling one compiles it and does not run it, since this CPU may not be able to."""
    return _CompileOnly(module)
