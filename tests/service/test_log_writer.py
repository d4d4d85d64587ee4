"""Lines that are written in order, dropped when nobody takes them, and not lost at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from service.log_writer import LogWriter


class Slow:
    """Takes lines when it is let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.lines: list[str] = []
        self.faults = 0

    def write(self, text: str, /) -> None:
        """As a pipe whose reader sleeps."""
        self.open.wait(5)
        if self.faults:
            self.faults -= 1
            raise OSError("no space left on device")
        self.lines += text.splitlines(keepends=True)

    def flush(self) -> None:
        """Nothing is kept back."""


def test_lines_come_out_in_order() -> None:
    """All of them, by the end."""
    out = Slow()
    out.open.set()
    writer = LogWriter(out)
    for number in range(100):
        writer.write(f"{number}\n")
    writer.close()
    assert out.lines == [f"{number}\n" for number in range(100)]


def test_what_nobody_takes_is_dropped_and_told() -> None:
    """Writing never waits; the number stands behind the first line that is taken again."""
    out = Slow()
    writer = LogWriter(out, most_lines=3)
    for number in range(10):
        writer.write(f"{number}\n")
    out.open.set()
    writer.close()
    told = [line for line in out.lines if "log_lines_dropped" in line]
    kept = [line for line in out.lines if line not in told]
    assert kept[0] == "0\n"
    assert len(told) >= 1
    assert sum(int(line.rpartition('"lines": ')[2].rstrip("}\n")) for line in told) == 10 - len(kept)


def test_what_a_full_disk_costs_is_told_when_it_takes_lines_again() -> None:
    """Those that were written together are lost; the next ones are tried again, and tell how many."""
    out = Slow()
    out.faults = 1
    out.open.set()
    writer = LogWriter(out)
    for line in ("a\n", "b\n"):
        writer.write(line)
    until = time.monotonic() + 5
    while out.faults and time.monotonic() < until:
        time.sleep(0.005)
    writer.write("c\n")
    writer.close()
    kept = [line for line in out.lines if "log_lines_dropped" not in line]
    told = [json.loads(line) for line in out.lines if line not in kept]
    assert kept[-1] == "c\n"
    assert sum(line["lines"] for line in told) == 3 - len(kept) > 0


@pytest.mark.parametrize(
    "value", ["half a pair: \ud800", 1 << 70, ["\udfff", 1]], ids=["surrogate", "number", "within"]
)
def test_a_line_that_is_no_plain_json_is_written_all_the_same(capfd: pytest.CaptureFixture[str], value: Any) -> None:
    """What came from outside costs neither the line nor the request that it tells of."""
    code = "import json, sys; from service.telemetry import configure_logging, get_logger\n"
    code += "configure_logging('info'); get_logger().info('odd', value=json.loads(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, json.dumps(value)], check=True)
    line = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert (line["event"], line["value"]) == ("odd", value)
