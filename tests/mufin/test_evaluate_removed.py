"""mufin-evaluate of a bundle from which labels were removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model_export.label_updates import remove_labels
from mufin.catalogue import read_catalogue
from mufin.evaluate import main
from mufin.rankings import BundleSubject
from tests.bundle_factory import make_tiny_bundle
from tests.mufin.test_evaluate import LABELS, fail, make_shop, product_by_product, write_lines


def without(bundle: Path, folder: Path, ids: list[str]) -> Path:
    """The bundle with a few labels removed, which leaves tombstones."""
    (folder / "ids").write_text("\n".join(ids))
    remove_labels(bundle, folder / "ids", folder / "without", lambda *_: None)
    return folder / "without"


def shop_without(shop: Path, folder: Path, ids: list[str]) -> Path:
    """The catalogue without a few labels."""
    shutil.copytree(shop, folder)
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    write_lines(folder / "labels.jsonl", [label for label in labels if label["id"] not in ids])
    for path in folder.glob("*.csv"):
        pairs = path.read_text().splitlines(keepends=True)
        path.write_text("".join(pair for pair in pairs if pair.strip().split(",")[1] not in ids))
    return folder


def test_removed_labels_are_none_of_the_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle with tombstones is evaluated on a catalogue without these labels, and on no other."""
    gone = ["L3", "L38"]
    bundle, shop = (
        make_tiny_bundle(tmp_path / "bundle", labels=LABELS, shortlist_size=12),
        make_shop(tmp_path / "whole"),
    )
    less, own = without(bundle, tmp_path, gone), shop_without(shop, tmp_path / "shop", gone)
    catalogue = read_catalogue(own)
    found = BundleSubject(less, batch_size=5, threads=1).rank(catalogue, "valid", False, lambda *_: None)
    assert found.allowed["fused"].max() < len(catalogue.labels)
    assert {name: rows.tolist() for name, rows in found.allowed.items()} == product_by_product(less, own, True)
    error = fail(capsys, less, shop)
    assert f"bundle has 38 labels beside 2 removed ones, which a catalogue must not have, {shop} has 40" in error
    assert "2 ('L38', 'L3') of the catalogue are not in the bundle, 0 of the bundle not in the catalogue" in error


def test_no_validation_split_is_cut_for_a_bundle_that_lost_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut from other pairs, it would hold products that were trained on."""
    less = without(make_tiny_bundle(tmp_path / "bundle", labels=LABELS), tmp_path, ["L3"])
    shop = shop_without(make_shop(tmp_path / "whole", valid=False), tmp_path / "shop", ["L3"])
    assert "labels were removed since training" in fail(capsys, less, shop)
    assert main([str(less), str(shop), "--split", "test", "--quiet", "--replicates", "5"]) == 0
