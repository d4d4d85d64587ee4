"""Files of a bundle that name labels by number: none outside the bundle's labels is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mufin.bundle import HEAD_FILE, MANIFEST_FILE, REMOVED_FILE, open_bundle
from mufin.errors import BundleError
from mufin.label_filters import EXCLUDED_FILE, write_excluded
from mufin.manifest import ArrayEntry, FileEntry, hash_file, read_manifest
from tests.bundle_factory import make_tiny_bundle


def reseal(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed array file, so that only its content is at fault."""
    loaded = np.load(folder / name)
    arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    headers = {key: ArrayEntry(array.dtype.str, array.shape) for key, array in arrays.items()}
    entry = FileEntry(hash_file(folder / name), (folder / name).stat().st_size, headers)
    manifest = read_manifest(folder / MANIFEST_FILE)
    sealed = replace(manifest, files={**manifest.files, name: entry})
    (folder / MANIFEST_FILE).write_bytes(sealed.to_bytes())


@pytest.mark.parametrize("name", [HEAD_FILE, REMOVED_FILE])
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([-1, 3]), "names labels -1 to 3, the manifest says 40"),
        (np.array([3, 40]), "names labels 0 to 40, the manifest says 40"),
        (np.array([5, 3]), "is not ascending"),
        (np.array([3, 3]), "is not ascending"),
        (np.array([3.0, 5.0]), "holds float64 of shape"),
        (np.array([[3, 5]]), r"of shape \(1, 2\), needs a row of int64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(name: str, labels: npt.NDArray[Any], says: str, tmp_path: Path) -> None:
    """Without hashing, too: compiled code reads wherever they point."""
    folder = make_tiny_bundle(tmp_path / "bundle")
    np.save(folder / name, labels)
    reseal(folder, name)
    with pytest.raises(BundleError, match=rf"{name}: .*{says}.*: run mufin-export again"):
        open_bundle(folder, "structure")


@pytest.mark.parametrize(("label", "says"), [(-1, "-1 to -1"), (40, "0 to 40")])
def test_excluded_labels_that_do_not_fit_are_refused(label: int, says: str, tmp_path: Path) -> None:
    """Below the first label as beyond the last."""
    folder = make_tiny_bundle(tmp_path / "bundle")
    write_excluded(folder / EXCLUDED_FILE, {"P": np.array([label])})
    reseal(folder, EXCLUDED_FILE)
    with pytest.raises(BundleError, match=rf"excluded\.npz: names labels {says}, the manifest says 40"):
        open_bundle(folder, "structure")
