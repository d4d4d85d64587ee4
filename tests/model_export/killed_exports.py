"""A program that kills exports at given points and lets the next one finish; torch is imported once for all of them.

    python -m tests.model_export.killed_exports RUN FOLDER

Exports RUN to FOLDER/undisturbed, then for each point to FOLDER/POINT: killed there, what is left told, exported again.
Prints a line of JSON a point.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_export.encode_labels as encode_labels
import model_export.encoded_labels as encoded_labels
import model_export.export as export
import model_export.label_blocks as label_blocks
import mufin.bundle as bundle
from model_export.__main__ import main

LABELS_IN_BLOCK = 16
POINTS: dict[str, tuple[Any, str, int]] = {
    "graphs": (export, "export_graphs", 1),
    "first-block": (label_blocks, "write_block", 1),
    "third-block": (label_blocks, "write_block", 3),
    "block-not-renamed": (Path, "rename", 2),
    "records": (encoded_labels, "read_block", 2),
    "titles": (export, "write_labels", 1),
    "golden": (export, "write_golden", 1),
    "index": (export, "write_index", 1),
    "seal": (bundle.BundleWriter, "seal", 1),
    "verify": (export, "verify_bundle", 1),
    "fsync": (bundle, "_fsync", 3),
    "rename": (Path, "rename", 5),
    "after-rename": (shutil, "rmtree", -1),
}
"""Name -> what is replaced, and at which call it kills, before doing anything; -1: when the bundle is there."""


def killing(own: Callable[..., Any], call: int, target: Path) -> Callable[..., Any]:
    """``own``, which kills this process at its ``call``-th call."""
    calls = 0

    def function(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call or (call < 0 and target.exists()):
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*arguments, **named)

    return function


def child(run: Path, target: Path, point: str | None) -> int:
    """Export in a process of its own; its wait status."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    if point is not None:
        place, name, call = POINTS[point]
        setattr(place, name, killing(getattr(place, name), call, target))
    os._exit(main([str(run), str(target), "--quiet", "--no-report", "--encoders", "fp32", "--name", "shop"]))


def kill_and_finish(run: Path, folder: Path, point: str) -> dict[str, Any]:
    """Killed at ``point``, then exported again unless the bundle is there."""
    folder.mkdir()
    target = folder / "bundle"
    status = child(run, target, point)
    found: dict[str, Any] = {"point": point, "killed": os.WTERMSIG(status) == signal.SIGKILL, "whole": target.exists()}
    found["left"] = sorted(path.name for path in folder.iterdir())
    if not target.exists():
        found["exit_code"] = os.waitstatus_to_exitcode(child(run, target, None))
        found["after"] = sorted(path.name for path in folder.iterdir())
    return found


def die(*_: Any) -> None:
    """End this process as the system does when memory is short: without a word."""
    os._exit(137)


if __name__ == "__main__":
    encode_labels.LABELS_IN_BLOCK = LABELS_IN_BLOCK
    run, folder = Path(sys.argv[1]), Path(sys.argv[2])
    assert child(run, folder / "undisturbed", None) == 0
    for point in POINTS:
        print(json.dumps(kill_and_finish(run, folder / point, point)), flush=True)
