"""Compiled code on disk, in numba's cache folder: read wherever it lies, written where that is allowed.

Imports numba, so it is imported only beside a module with kernels. Knows none.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numba as _numba
from numba.core.caching import CompileResultCacheImpl as _CompileResultCacheImpl
from numba.core.caching import FunctionCache as _FunctionCache
from numba.core.caching import UserProvidedCacheLocator as _UserProvidedCacheLocator

# numba ships no types.
numba: Any = _numba
FunctionCache: Any = _FunctionCache
CompileResultCacheImpl: Any = _CompileResultCacheImpl
UserProvidedCacheLocator: Any = _UserProvidedCacheLocator

_log = logging.getLogger(__name__)
_SHARED = Path(__file__).with_name("kernel_parts.py")


class _ReadableLocator(UserProvidedCacheLocator):  # type: ignore[misc]
    """NUMBA_CACHE_DIR as it is: numba passes over a folder that it cannot write, and what an image holds would not be read."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        if not numba.config.CACHE_DIR:
            return None
        own = cls(py_func, py_file)
        return own if Path(own.get_cache_path()).is_dir() else None


class _CacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_ReadableLocator, *CompileResultCacheImpl._locator_classes)


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's cache on disk, read wherever it lies: a folder that cannot be written only saves nothing."""

    _impl_class = _CacheImpl

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        # numba notices a change of the function's own file alone; what all kernels share is compiled into them, too.
        shared = _SHARED.stat()
        self._cache_file._source_stamp = (self._cache_file._source_stamp, shared.st_mtime, shared.st_size)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _log.warning("compiled code is not kept for the next start: %s", error)


def keep_on_disk(dispatcher: Any) -> None:
    """Read and write the compiled code in numba's cache folder, or go without when there is none to be had."""
    try:
        dispatcher._cache = _Cache(dispatcher.py_func)
    except (RuntimeError, OSError) as error:
        _log.warning("it is compiled at every start: %s", error)
