"""What a person reads while training, without a terminal."""

from __future__ import annotations

import pytest

from mufin import progress as command_progress
from mufin.progress import ProgressBar
from mufin.training import progress as training_progress
from mufin.training.progress import Reporter


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """As ``time.monotonic``."""
        return self.now


def steps(step: Reporter | ProgressBar, clock: Clock) -> None:
    """Two networks, each with a task "ranker" of 4 steps in 80 s."""
    for _ in range(2):
        for done in range(1, 5):
            clock.now += 20
            (step.step if isinstance(step, Reporter) else step)("ranker", done, 4)
        clock.now += 1000


def test_a_task_that_comes_again_has_a_clock_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each fold of a combination trains under the same names; what the one before took says nothing of this one."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # with which rich takes anything for a terminal
        monkeypatch.delenv(name, raising=False)
    clock = Clock()
    monkeypatch.setattr(training_progress, "time", clock)
    steps(Reporter(), clock)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert lines[:4] == lines[4:]
    assert lines[6] == "ranker: 3/4, 40 s, 13 s left"
    monkeypatch.setattr(command_progress, "time", clock)
    steps(ProgressBar(), clock)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == lines[4:] and len(lines) == 8
