"""Both reports of an exported bundle."""

from __future__ import annotations

import json
from pathlib import Path

from model_export.__main__ import main
from mufin.bundle import PAGE_FILE, REPORT_FILE, open_bundle


def test_an_export_writes_page_and_figures(products_run: Path, tmp_path: Path) -> None:
    """Latency in report.json, calibration and examples on the page; neither in the identity."""
    assert main([str(products_run), str(tmp_path / "with"), "--quiet"]) == 0
    values = json.loads((tmp_path / "with" / REPORT_FILE).read_text())
    assert {"title", "image", "rerank"} <= {stage["stage"] for stage in values["latency"]["stages"]}
    page = (tmp_path / "with" / PAGE_FILE).read_text(encoding="utf-8")
    assert page.count('class="example"') > 0 and "data:image/jpeg;base64," in page
    assert "2-fold cross-fitted" in page and "title only" in page
    assert len(page) < 2_000_000 and str(tmp_path) not in page and str(products_run.parent) not in page
    assert main([str(products_run), str(tmp_path / "without"), "--quiet", "--no-report"]) == 0
    assert not (tmp_path / "without" / PAGE_FILE).exists()
    assert "latency" not in json.loads((tmp_path / "without" / REPORT_FILE).read_text())
    first, second = (open_bundle(tmp_path / name).manifest.bundle_id for name in ("with", "without"))
    assert first == second
