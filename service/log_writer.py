"""Log lines on their way out: written by a thread of their own, and dropped rather than waited for.

Standard error is usually a pipe. When whoever reads it stops reading, the pipe fills, and a process that writes to it
itself stands still with all its requests. Knows no log format.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from typing import Protocol


class TextOut(Protocol):
    """What lines are written to."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


# How long a line may wait for others: each waking of the writer costs those who are answered meanwhile.
_GATHER_SECONDS = 0.02
# In one piece: each write gives Python's lock away, and waits to get it back.
_MOST_AT_ONCE = 100
# Some five seconds of a busy process; 4 MB at most with lines of 400 bytes.
_MOST_LINES = 10_000
_LAST_WORDS_SECONDS = 2.0


class LogWriter:
    """A stream for ``logging.StreamHandler`` that never blocks; what it must drop it counts and tells of."""

    def __init__(self, out: TextOut, most_lines: int = _MOST_LINES) -> None:
        self._out, self._most_lines = out, most_lines
        # Not queue.Queue: to put a line into one costs as much as to make it.
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._some, self._closing = threading.Event(), threading.Event()
        self._writing = False
        """Whether lines may have been taken that are not written yet"""
        threading.Thread(target=self._write_on, name="mufin-log", daemon=True).start()
        atexit.register(self.close)

    def write(self, text: str) -> None:
        """Take a line, or drop it when too many wait already."""
        if len(self._lines) >= self._most_lines:
            self._dropped += 1
            return
        self._lines.append(text)
        if not self._some.is_set():
            self._some.set()

    def flush(self) -> None:
        """Lines are on their way; there is nothing to wait for."""

    def close(self) -> None:
        """Give what waits a moment to be written, at the end of the process."""
        self._closing.set()
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while (self._lines or self._writing) and time.monotonic() < until:
            time.sleep(0.005)

    def _write_on(self) -> None:
        while True:
            self._some.wait()
            self._writing = True
            if len(self._lines) == 1:
                self._closing.wait(_GATHER_SECONDS)
            self._some.clear()  # first: a line that comes from here on is taken below, or sets it again
            while self._lines:
                self._write([self._lines.popleft() for _ in range(min(len(self._lines), _MOST_AT_ONCE))])
            self._writing = False

    def _write(self, lines: list[str]) -> None:
        dropped, self._dropped = self._dropped, 0
        told = f'{{"event": "log_lines_dropped", "level": "warning", "lines": {dropped}}}\n' if dropped else ""
        try:
            self._out.write("".join([*lines, told]))
            self._out.flush()
        except (OSError, ValueError):
            # A full disk, or nobody there to read: the next lines are tried again.
            self._dropped += dropped + len(lines)
