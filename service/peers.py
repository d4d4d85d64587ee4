"""The other end of a connection, as those who answer it see it: whether it hung up.

What the server's protocol puts into a request's scope (``PEER``), so that noticing a hang-up takes no task of its own.
Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Callable

PEER = "mufin.peer"


class Peer:
    """Of one connection; its requests are answered one after the other, so one at most waits to be told."""

    __slots__ = ("_gone", "when_gone")

    def __init__(self) -> None:
        self._gone = False
        self.when_gone: Callable[[], object] | None = None
        """Called once, when it hangs up"""

    def has_gone(self) -> bool:
        """Whether it hung up."""
        return self._gone

    def hang_up(self) -> None:
        """It is gone."""
        self._gone = True
        if self.when_gone is not None:
            self.when_gone()
