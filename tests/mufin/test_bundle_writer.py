"""Writing a bundle: whole or not at all, killed or not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mufin.bundle import BundleWriter
from mufin.errors import BundleError, TrainingError
from mufin.label_files import LABELS_FILE
from tests.bundle_factory import make_tiny_bundle

ROOT = Path(__file__).parents[2]


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """An error inside the writer's block removes every file, hidden ones, too."""

    def fail() -> None:
        with BundleWriter(tmp_path / "bundle") as writer:
            (writer.folder / LABELS_FILE).write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_scratch_serves_the_next_export_of_the_same_identity(tmp_path: Path) -> None:
    """Kept when someone or the system stopped the export, cleared when another one begins or it was refused."""

    def stop(identity: str, error: BaseException) -> list[str]:
        with contextlib.suppress(type(error)), BundleWriter(tmp_path / "bundle") as writer:
            scratch = writer.scratch_for(identity)
            found = sorted(path.name for path in scratch.iterdir() if path.name != "identity")
            (scratch / f"block-{len(found)}").write_bytes(b"done")
            raise error
        return found

    assert stop("a", KeyboardInterrupt()) == []
    assert stop("a", OSError("no space left")) == ["block-0"]
    assert stop("a", MemoryError()) == ["block-0", "block-1"]
    assert stop("a", TrainingError("the disk is full")) == ["block-0", "block-1", "block-2"]
    assert stop("b", KeyboardInterrupt()) == []
    assert stop("b", BundleError("refused")) == ["block-0"]
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_export_cannot_be_finished(tmp_path: Path) -> None:
    """What lacks files is refused before it gets its name."""
    with pytest.raises(BundleError), BundleWriter(tmp_path / "bundle") as writer:
        writer.finish()
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_never_overwritten(tmp_path: Path) -> None:
    """The remedy is named."""
    bundle = make_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(BundleError, match="exists: name another folder, or remove it first"):
        make_tiny_bundle(bundle)


def test_a_link_to_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The last rename would fail on it, after hours."""
    (tmp_path / "bundle").symlink_to(tmp_path / "gone")
    with pytest.raises(BundleError, match="bundle exists, as a link: name another folder, or remove it first"):
        BundleWriter(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_killed_export_leaves_no_bundle_and_the_next_one_succeeds(tmp_path: Path) -> None:
    """SIGKILL after the files are written, before they are renamed."""
    program = (
        "import os, signal, mufin.bundle\n"
        "from pathlib import Path\n"
        "mufin.bundle._fsync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from tests.bundle_factory import make_tiny_bundle\n"
        f"make_tiny_bundle(Path({str(tmp_path / 'bundle')!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    assert list(tmp_path.iterdir()), "the kill came too early to prove anything"
    make_tiny_bundle(tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
