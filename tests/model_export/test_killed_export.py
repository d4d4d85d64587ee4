"""Killed at any moment, an export leaves no bundle or a whole one, and the next one takes over what was encoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mufin.bundle import REPORT_FILE, SIDECAR_FILE, open_bundle
from tests.model_export.killed_exports import LABELS_IN_BLOCK, POINTS

ROOT = Path(__file__).parents[2]
RESUMED = {"graphs": 0, "first-block": 0, "third-block": 2, "block-not-renamed": 1}
"""Blocks that the second export finds; the others find all."""


@pytest.fixture(scope="module")
def exports(products_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Folder of all exports, and what happened at each point."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.model_export.killed_exports", str(products_run), str(folder)],
        check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return folder, {line["point"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_no_bundle_or_a_whole_one(point: str, exports: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    """The name is given by one rename; beside it lie hidden folders only, gone after the next export."""
    folder, lines = exports
    line = lines[point]
    assert line["killed"], "the point was not reached"
    assert line["whole"] == (point == "after-rename")
    assert [name for name in line["left"] if not name.startswith(".")] == (["bundle"] if line["whole"] else [])
    if not line["whole"]:
        assert (line["exit_code"], line["after"]) == (0, ["bundle"])
    assert open_bundle(folder / point / "bundle").manifest.name == "shop"


@pytest.mark.parametrize("point", POINTS)
def test_the_export_after_a_kill_is_byte_equal_to_an_undisturbed_one(
    point: str, exports: tuple[Path, dict[str, dict[str, Any]]]
) -> None:
    """Every file but the report, which tells how many labels were found encoded."""
    folder, _ = exports
    whole, again = folder / "undisturbed", folder / point / "bundle"
    names = {path.name for path in whole.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    for name in names - {REPORT_FILE, SIDECAR_FILE}:
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name
    if point != "after-rename":
        resumed = json.loads((again / REPORT_FILE).read_text())["encoding"]["resumed_labels"]
        labels = open_bundle(again).manifest.sizes.labels
        assert resumed == min(labels, RESUMED.get(point, 99) * LABELS_IN_BLOCK)
