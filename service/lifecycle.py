"""Where the process stands between start and end; what the probes answer.

Knows neither signals nor bundles; others report, the probes read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Steps of a process's life, in order; FAILED ends the start."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class Lifecycle:
    """The one changing value that start, signals, probes and answers share."""

    phase: Phase = Phase.STARTING
    failure: str = ""
    """Why the start failed."""

    @property
    def started(self) -> bool:
        """Whether the start is over and went well."""
        return self.phase in (Phase.READY, Phase.DRAINING, Phase.STOPPED)

    @property
    def answers(self) -> bool:
        """Whether requests are taken: also while draining, until the listener closes."""
        return self.phase in (Phase.READY, Phase.DRAINING)

    def ready(self) -> None:
        """Bundles are open, verified and warm. A signal that came before wins."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY

    def drain(self) -> None:
        """A signal came: readiness is false from now on."""
        if self.phase in (Phase.STARTING, Phase.READY):
            self.phase = Phase.DRAINING

    def stop(self) -> None:
        """Nothing is taken any more."""
        self.phase = Phase.STOPPED

    def fail(self, reason: str) -> None:
        """The start went wrong; the process ends."""
        self.phase, self.failure = Phase.FAILED, reason
