"""Proof that an event loop's thread does nothing that may wait: files, names, sleeps, models, pictures, hashes.

Knows no app. Works by what is called on which thread, not by the clock, so that a slow machine proves nothing wrong.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

# Python's own audit events of calls that may wait. socket.connect is not among them: asyncio's does not wait.
_EVENTS = frozenset(
    {"open", "os.listdir", "os.scandir", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "time.sleep"}
)


@dataclass
class LoopGuard:
    """What was caught on the guarded thread."""

    caught: list[str] = field(default_factory=list)
    _thread: int | None = None

    def note(self, what: str) -> None:
        """Called wherever something may wait."""
        if threading.get_ident() == self._thread:
            self.caught.append(what)

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """Guard the calling thread, which is the event loop's."""
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None


_guards: list[LoopGuard] = []
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS:
        for guard in _guards:
            guard.note(f"{event} {str(arguments[:1])[:200]}")


@contextmanager
def loop_guard(patch: pytest.MonkeyPatch, *calls: tuple[Any, str]) -> Iterator[LoopGuard]:
    """Audit events, and calls of (owner, name), which go on working."""
    global _hooked  # an audit hook cannot be taken away again
    guard = LoopGuard()
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    for owner, name in calls:
        patch.setattr(owner, name, _noted(guard, getattr(owner, name), name))
    _guards.append(guard)
    try:
        yield guard
    finally:
        _guards.remove(guard)


def _noted(guard: LoopGuard, call: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def noting(*arguments: Any, **named: Any) -> Any:
        guard.note(name)
        return call(*arguments, **named)

    return noting
