"""mufin-evaluate and the export of a run whose validation split has to be cut again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model_export.trained import trained_run
from mufin.errors import CheckpointError
from mufin.evaluate import main
from tests.mufin.test_evaluate import fail, small_run, write_lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One for the whole file."""
    return small_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def grown(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """The run's catalogue with one training product more, which makes another cut of it."""
    folder = tmp_path / "grown"
    shutil.copytree(trained[0], folder)
    extra = {"id": "new", "title": "something new"}
    labels = [json.loads(line) for line in (folder / "products.jsonl").read_text().splitlines()]
    write_lines(folder / "labels.jsonl", labels)  # those the run was trained on, though there is a product more
    write_lines(folder / "products.jsonl", [*labels, extra])
    first = (folder / "train.csv").read_text().splitlines()[1].split(",")[1]
    with (folder / "train.csv").open("a") as file:
        file.write(f"new,{first}\n")
    return folder


@pytest.mark.parametrize("split", ["valid", "train"])
def test_a_cut_of_another_train_csv_is_refused(
    split: str, trained: tuple[Path, Path], grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Products that the run was trained on would be scored; whoever compares is asked, too."""
    error = fail(capsys, trained[1], grown, "--split", split)
    assert "train.csv, or what its validation split is cut from, changed since" in error
    assert "restore it, add the valid.csv that training had, or score --split test" in error
    assert "changed since" in fail(capsys, trained[1], grown, "--split", split, "--compare", trained[1])


def test_what_needs_no_cut_is_scored_though_train_csv_changed(trained: tuple[Path, Path], grown: Path) -> None:
    """The test split, and a validation split that the catalogue has."""
    command = [str(trained[1]), str(grown), "--quiet", "--replicates", "5"]
    assert main([*command, "--split", "test"]) == 0
    (grown / "test.csv").rename(grown / "valid.csv")
    assert main(command) == 0


def test_no_bundle_is_made_with_another_cut(trained: tuple[Path, Path], grown: Path) -> None:
    """Its int8 and its report would be judged by training products."""
    with pytest.raises(CheckpointError, match=r"changed since .* was trained .* restore it"):
        trained_run(trained[1], grown)
    assert "valid" in trained_run(trained[1])[1].splits
