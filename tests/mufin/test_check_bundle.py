"""Checking bundles before a rollout: good ones are named, bad ones end with exit code 1 and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from mufin.check_bundle import main
from mufin.manifest import EncoderPrecision, Encoders
from mufin.predictor import open_predictor
from tests.bundle_factory import make_tiny_bundle


def test_a_bundle_and_a_folder_of_bundles_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, with the id that /bundles shows."""
    for name in ("one", "two"):
        make_tiny_bundle(tmp_path / name)
    assert main([str(tmp_path), str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and all(line.endswith(" ok") for line in said)
    assert open_predictor(tmp_path / "one").bundle_id in said[0]


def test_one_bad_bundle_fails_and_the_others_are_still_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed byte, and a folder that holds none."""
    good, bad = make_tiny_bundle(tmp_path / "good"), make_tiny_bundle(tmp_path / "bad")
    records = bad / "records.bin"
    content = bytearray(records.read_bytes())
    content[-1] ^= 1
    records.write_bytes(bytes(content))
    (tmp_path / "empty").mkdir()
    assert main([str(bad), str(tmp_path / "empty"), str(good)]) == 1
    said = capsys.readouterr()
    assert "records.bin" in said.err and "holds no bundle" in said.err and str(good) in said.out


def test_a_bundle_that_a_processor_may_compute_otherwise_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 8 bits where sums overflow, though its golden products come out right; nothing is said of fp32."""
    make_tiny_bundle(tmp_path / "int8", encoders=Encoders(image=EncoderPrecision("int8")))
    make_tiny_bundle(tmp_path / "fp32")
    for overflows in (True, False):
        monkeypatch.setattr("mufin.golden.int8_sums_overflow", lambda found=overflows: found)
        assert main([str(tmp_path)]) == 0
        said = capsys.readouterr().err
        assert (f"{tmp_path / 'int8'}: warning: " in said and "VNNI" in said) is overflows
        assert "fp32" not in said
