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
    started: bool = False
    """Whether the start is over and went well: whether it was ever READY."""

    @property
    def answers(self) -> bool:
        """Whether requests are taken: also while draining, until the listener closes, if there is what answers them."""
        return self.started and self.phase in (Phase.READY, Phase.DRAINING)

    @property
    def ends(self) -> bool:
        """Whether the process is on its way out, well."""
        return self.phase in (Phase.DRAINING, Phase.STOPPED)

    def ready(self) -> None:
        """Bundles are open, verified and warm. A signal that came before wins."""
        if self.phase is Phase.STARTING:
            self.phase, self.started = Phase.READY, True

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
