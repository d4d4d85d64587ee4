"""How far a long command is, on stderr: a bar where rich is installed and a terminal is there, lines elsewhere.

Knows nothing of what is being done; serving installs no rich, so it is asked for late.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

_SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Used in a ``with``; call it with a task's name, the steps done and the steps in all."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stack = ExitStack()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress
            except ImportError:
                return self
            self._bars = self._stack.enter_context(Progress(console=Console(stderr=True)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, task: str, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._bars is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total)
            self._bars.update(self._tasks[task], completed=done)
            if done >= total:  # what comes next under this name has a bar and a clock of its own
                del self._tasks[task]
            return
        now = time.monotonic()
        started = self._started.setdefault(task, now)
        if done >= total:
            del self._started[task]
        if done >= total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - started) / max(1, done) * (total - done)
            sys.stderr.write(f"{task}: {done}/{total}, {left:.0f} s left\n")
