"""Leaves something alone for a while after it failed several times in a row.

Knows neither what failed nor why; the owner reports outcomes and asks before the next try.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Breaker:
    """Opens after ``failures`` in a row, lets one try through after ``rest_seconds``."""

    failures: int
    rest_seconds: float
    clock: Callable[[], float] = time.monotonic
    _in_a_row: int = field(default=0, init=False)
    _closed_again_at: float = field(default=0.0, init=False)
    _failed_at: float = field(default=-math.inf, init=False)

    @property
    def is_open(self) -> bool:
        """Whether the owner should leave it alone now."""
        return self._in_a_row >= self.failures and self.clock() < self._closed_again_at

    def allow(self) -> bool:
        """Ask before a try; after the rest one caller at a time is let through."""
        if self._in_a_row < self.failures:
            return True
        if self.clock() < self._closed_again_at:
            return False
        # One probe: whoever asks while it runs is told to rest on.
        self._closed_again_at = self.clock() + self.rest_seconds
        return True

    def succeeded(self) -> None:
        """Report a success."""
        self._in_a_row = 0

    def failed(self, began: float = math.inf) -> None:
        """Report a failure.

        ``began``: by ``clock``, when the try began. One that was under way when the last failure was counted tells nothing
        new: tries that fail side by side, by one hold-up of this process perhaps, count once.
        """
        if began <= self._failed_at:
            return
        self._failed_at = self.clock()
        self._in_a_row += 1
        if self._in_a_row >= self.failures:
            self._closed_again_at = self.clock() + self.rest_seconds


class BreakerGroup:
    """A breaker a name, for the names used last."""

    def __init__(self, failures: int, rest_seconds: float, most_names: int = 4096) -> None:
        self._failures = failures
        self._rest_seconds = rest_seconds
        self._most_names = most_names
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def open_count(self) -> int:
        """How many are left alone now."""
        return sum(breaker.is_open for breaker in self._breakers.values())

    def of(self, name: str) -> Breaker:
        """The breaker of a name; the one unused longest makes room."""
        breaker = self._breakers.get(name)
        if breaker is None:
            breaker = self._breakers[name] = Breaker(self._failures, self._rest_seconds)
            if len(self._breakers) > self._most_names:
                self._breakers.popitem(last=False)
        else:
            self._breakers.move_to_end(name)
        return breaker
