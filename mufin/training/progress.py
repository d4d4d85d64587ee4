"""What a person sees while training: bars with ETA on a terminal, plain lines elsewhere.

Knows nothing of what is being done; told by whoever does it.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 15.0


class Reporter:
    """One bar a task name. Without a terminal: a line every 15 s and at the end of each task."""

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._quiet = quiet
        self._console = console
        self._bars: Progress | None = None
        if console.is_terminal and not quiet:
            self._bars = Progress(
                TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
            )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._last_line = 0.0

    def __enter__(self) -> Reporter:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def step(self, task: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` steps of a task are behind us."""
        if self._quiet:
            return
        if self._bars is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, note=note)
            self._bars.update(self._tasks[task], completed=done, total=total, note=note)
            if done >= total:  # the next network's task of this name has a bar and a clock of its own
                del self._tasks[task]
            return
        now = time.monotonic()
        started, first = self._started.setdefault(task, (now, done - 1))
        if done >= total:
            del self._started[task]
        if done >= total or now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - started) / max(done - first, 1) * (total - done)
            print(f"{task}: {done}/{total}, {now - started:.0f} s, {left:.0f} s left {note}".rstrip(), file=sys.stderr)

    def say(self, text: str) -> None:
        """A line of text among the bars."""
        if not self._quiet:
            self._console.print(text, highlight=False, markup=False)
