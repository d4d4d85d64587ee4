"""Run folders: nobody else's, one training at a time, and whole in the end."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mufin.catalogue import Catalogue, read_catalogue
from mufin.errors import CatalogueError, CheckpointError, TrainingError
from mufin.image_source import ImageReader
from mufin.training import curves
from mufin.training.__main__ import main
from mufin.training.checkpoint import STATE_FILE
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.run_folder import CLAIM_FILE, claimed
from mufin.training.workers import Workers
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.test_recipe import command
from tests.training.tiny_config import tiny_config

QUIET = Reporter(quiet=True)
ONE_EPOCH = ("siamese.epochs=1", "frozen_ranker.epochs=1", "ranker.epochs=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny catalogue for the whole file."""
    return make_tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "tiny", 60)


@pytest.fixture
def catalogue(folder: Path) -> Catalogue:
    """The same, read."""
    return read_catalogue(folder)


class Two(Workers):
    """One of two processes, of which one may have given up."""

    def __init__(self, rank: int, agreed: bool) -> None:
        super().__init__()
        self.rank, self.agreed = rank, agreed

    def all_agree(self, flag: bool) -> bool:
        return flag and self.agreed


def test_a_folder_that_is_no_run_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run would clear away belongs to somebody else: refused in one line, nothing is touched."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("precious")
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    assert main(command(folder, tmp_path, *ONE_EPOCH)) == 1
    assert capsys.readouterr().err == (
        f"mufin-train: {tmp_path} is no run folder, and holds 'cache', which a run would write over; name a new or "
        "empty one\n"
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cache", "metrics.jsonl", "thesis.txt"]


@pytest.mark.parametrize(
    "begun", ["", CLAIM_FILE, STATE_FILE, "model/run.json", "folds/0/state.pt", "refit/model/run.json"]
)
def test_empty_folders_and_runs_are_gone_on_with(begun: str, tmp_path: Path) -> None:
    """Those of versions that left no mark, too."""
    if begun:
        (tmp_path / begun).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / begun).touch()
        (tmp_path / "cache").mkdir()
    with claimed(tmp_path, Workers()):
        assert (tmp_path / CLAIM_FILE).exists()


@pytest.mark.parametrize("name", ["cache", "folds", "refit", "metrics.jsonl", "curves.png", "model"])
def test_nothing_of_somebody_else_s_is_written_over(name: str, tmp_path: Path) -> None:
    """Of what a run writes."""
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"holds '{name}'"), claimed(tmp_path, Workers()):
        pass


def test_what_a_run_does_not_touch_may_lie_there(tmp_path: Path) -> None:
    """A log that is being written, and what a volume brings with it."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "log").write_text("begun\n")
    with claimed(tmp_path, Workers()):
        assert (tmp_path / CLAIM_FILE).exists()


def test_a_file_system_without_locks_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before there were any."""

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path, Workers()):
        assert (tmp_path / CLAIM_FILE).exists()


@pytest.mark.parametrize("inner", ["refit", "folds/1"])
def test_runs_within_a_run_need_no_mark(inner: str, tmp_path: Path) -> None:
    """An older version may have been killed while it prepared one."""
    (tmp_path / inner / "cache").mkdir(parents=True)
    (tmp_path / "state.pt").touch()
    with claimed(tmp_path, Workers()), claimed(tmp_path / inner, Workers()):
        assert (tmp_path / inner / CLAIM_FILE).exists()


def test_the_mark_is_there_before_anything_else(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed before its first checkpoint is begun again."""

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("mufin.training.recipe.tokenizer_json_of", killed)
    with pytest.raises(KeyboardInterrupt):
        train(catalogue, tiny_config(*ONE_EPOCH), tmp_path / "run", QUIET)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [CLAIM_FILE]
    monkeypatch.undo()
    assert train(catalogue, tiny_config(*ONE_EPOCH), tmp_path / "run", QUIET)["full"]


def test_of_two_trainings_in_one_folder_the_second_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    """As long as the first is at work, and no longer."""
    with (
        claimed(tmp_path, Workers()),
        pytest.raises(CheckpointError, match=f"another mufin-train is at work in {tmp_path}"),
    ):
        train(catalogue, tiny_config(*ONE_EPOCH), tmp_path, QUIET)
    assert [path.name for path in tmp_path.iterdir()] == [CLAIM_FILE]
    with claimed(tmp_path, Workers()), claimed(tmp_path, Two(1, agreed=True)):
        pass  # the processes of one training do not shut each other out


def test_no_process_waits_for_a_main_one_that_gave_up(tmp_path: Path) -> None:
    """The others end, too, and point to its error."""
    with pytest.raises(CheckpointError, match="the main process could not take it"), claimed(tmp_path, Two(1, False)):
        pytest.fail("went on")


@pytest.mark.parametrize("run", ["file", "file/below"])
def test_a_run_that_cannot_be_a_folder_is_refused_in_one_line(
    run: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of that name, or above it."""
    (tmp_path / "file").write_text("x")
    assert main(command(folder, tmp_path / run, *ONE_EPOCH)) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / run}: cannot be written" in error and "name another run folder" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--features", "FILE"], "--features FILE: cannot be a folder (File exists); name another"),
        (["--device", "gpu"], "--device gpu: is no device; name cpu, cuda or cuda:NUMBER"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds"),
    ],
)
def test_options_that_name_nothing_are_refused_in_one_line(
    options: Sequence[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    file = tmp_path / "file"
    file.write_text("x")
    own = [option.replace("FILE", str(file)) for option in options]
    assert main([*command(folder, tmp_path / "run", *ONE_EPOCH), *own]) == 1
    error = capsys.readouterr().err
    assert says.replace("FILE", str(file)) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_picture_that_fails_is_drawn_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, the finished run stays, nothing half-drawn; the same command draws it without training."""

    def full(metrics: Path, target: Path) -> None:
        target.write_bytes(b"\x89P")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(curves, "_draw", full)
    arguments = command(folder, tmp_path, *ONE_EPOCH)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "curves.png: cannot be drawn" in error and "the run is finished" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [CLAIM_FILE, "metrics.jsonl", "model"]
    monkeypatch.undo()
    before = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("how", ["excluded", "itself"])
def test_a_validation_split_without_anything_to_score_is_refused_before_training(how: str, tmp_path: Path) -> None:
    """All pairs exclude pairs, or products with themselves: the figures would be NaN."""
    folder = make_tiny_catalogue(tmp_path / "catalogue", 60, with_labels=how == "excluded")
    if how == "excluded":
        (folder / "exclude.csv").write_text((folder / "valid.csv").read_text())
    else:
        products = [json.loads(line)["id"] for line in (folder / "products.jsonl").read_text().splitlines()]
        (folder / "valid.csv").write_text(f"product_id,label_id\n{products[0]},{products[0]}\n")
        trained = (folder / "train.csv").read_text().replace(f"{products[0]},{products[0]}\n", "")
        (folder / "train.csv").write_text(trained)
    with pytest.raises(
        CatalogueError, match=r"valid\.csv: all \d+ pairs of the validation split .* correct exclude\.csv"
    ):
        train(read_catalogue(folder), tiny_config(), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_of_shared_features_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a file ends the training with its name; deleted, its rows are computed again."""
    features = tmp_path / "features"
    frozen = ("image.trainable_layers=0", 'image.options={"model_type": "mufin-descriptor"}')
    arguments = [*command(folder, tmp_path / "one", *ONE_EPOCH, *frozen), "--features", str(features)]
    assert main(arguments) == 0
    damaged = next(path for path in features.glob("images-*.npy") if "keys" not in path.name)
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    arguments[1] = str(tmp_path / "two")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{damaged}: cannot be read" in error and "delete it" in error and error.count("\n") == 1
    damaged.unlink()
    assert main(arguments) == 0


def test_curves_of_broken_metrics_are_one_error(tmp_path: Path) -> None:
    """Whatever stands in the file."""
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(TrainingError, match="the run is finished all the same"):
        curves.draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_a_picture_from_the_web_that_is_none_is_named_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the product that has it; a path would have lost a slash."""
    folder = make_tiny_catalogue(tmp_path / "catalogue", 60)
    lines = (folder / "products.jsonl").read_text().splitlines()
    record = json.loads(lines[3]) | {"images": ["https://h.example/a.png"]}
    lines[3] = json.dumps(record)
    (folder / "products.jsonl").write_text("\n".join(lines) + "\n")
    plain = ImageReader.read
    monkeypatch.setattr(ImageReader, "read", lambda self, name: b"none" if "://" in name else plain(self, name))
    catalogue = read_catalogue(folder)
    says = rf"{folder}: image https://h\.example/a\.png of '{record['id']}': .*; replace or remove the image"
    with pytest.raises(CatalogueError, match=says):
        train(catalogue, tiny_config(*ONE_EPOCH), tmp_path / "run", QUIET)
