"""Sizing: the arithmetic, and that docs/capacity.md shows what the committed figures give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.capacity import OUT, SERVING, core_hours, cores, label_bytes, mix_line, tables
from mufin.label_records_file import RecordWriter

ROOT = Path(__file__).resolve().parents[2]


def test_core_hours_and_cores() -> None:
    """100 a second at 65 %: 65 a second, 234,000 an hour."""
    assert core_hours(100.0) == pytest.approx(1e6 / 234_000)
    assert cores(130.0, 100.0) == pytest.approx(2.0)


@pytest.mark.parametrize(("dimension", "number"), [(192, "float16"), (192, "int8"), (768, "float32")])
def test_label_bytes_are_those_of_the_file(tmp_path: Path, dimension: int, number: str) -> None:
    """As docs/bundle.md lists them, header aside."""
    own = label_bytes(dimension, number)
    with RecordWriter(tmp_path, dimension, 6, number) as writer:  # type: ignore[arg-type]
        assert writer._type.itemsize == own.records
    assert own.whole == own.records + 2 * dimension + own.index + own.other


def test_a_mix_is_the_sum_of_its_kinds() -> None:
    """Unknown kinds are named."""
    serving = {"service": {"title": {"per_second": 200.0}, "1 image": {"per_second": 50.0}, "resident_mib": 5}}
    assert "3.1 cores" in mix_line(serving, ["title=200", "1 image=50"])
    with pytest.raises(SystemExit, match="there are title, 1 image"):
        mix_line(serving, ["titles=200"])


def test_the_document_shows_the_committed_figures() -> None:
    """If this fails: python -m bench.capacity --out bench/results/NAME, and its tables into docs/capacity.md."""
    serving = json.loads((ROOT / SERVING).read_text(encoding="utf-8"))
    entries = json.loads((ROOT / OUT).read_text(encoding="utf-8"))["redis_entry_bytes"]
    text = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    assert [line for line in tables(serving, entries).splitlines() if line not in text.splitlines()] == []
    mix = ["5 images, cached=240", "title=120", "1 image=40"]
    assert mix_line(serving, mix) in text
