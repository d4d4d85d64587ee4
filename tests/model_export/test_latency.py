"""Timing of stages over a real bundle; no assertion on how long anything takes."""

from __future__ import annotations

from pathlib import Path

from model_export.latency import measure_stages
from mufin.predictor import open_predictor
from tests.bundle_factory import make_tiny_bundle


def test_every_stage_is_measured(tmp_path: Path) -> None:
    """Title to fuse in the order of an answer, with what one call does and the machine's facts."""
    folder = make_tiny_bundle(tmp_path / "b")
    found = measure_stages(open_predictor(folder), folder, calls=5)
    assert [stage["stage"] for stage in found["stages"]] == ["title", "image", "bag", "shortlist", "rerank", "fuse"]
    assert all(0 < stage["median_ms"] <= stage["p90_ms"] and stage["calls"] == 5 for stage in found["stages"])
    assert found["stages"][3]["work"] == "20 of 40 labels"
    assert found["threads"] == 1 and found["machine"]["cores"] >= 1 and found["machine"]["processor"]
