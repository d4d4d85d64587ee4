"""From a finished run to a bundle that answers as the run does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.__main__ import main
from model_export.answer_images import answer_images
from model_export.export import ExportSettings, export
from model_export.label_index import IndexSettings, LabelIndex, build_index
from model_export.verify import golden_items, require_parity, tolerances_for
from mufin.bundle import GOLDEN_FILE, MANIFEST_FILE, REPORT_FILE, open_bundle
from mufin.catalogue import Catalogue, ImageReader, Item, read_catalogue
from mufin.errors import BundleError, CheckpointError, ConfigError
from mufin.golden import Parity, StageParity, read_golden, write_golden
from mufin.inputs import decode_image
from mufin.manifest import FileEntry, hash_file, read_manifest
from mufin.predictor import Predictor, open_predictor
from mufin.scoring import LabelFold
from mufin.training.progress import Reporter
from mufin.training.split_ranking import rank_split

QUIET = Reporter(quiet=True)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(products_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product-to-product run, exported."""
    target = tmp_path_factory.mktemp("bundles") / "products"
    export(products_run, target, ExportSettings(image_base_url="https://shop.example/media"), QUIET)
    return target


def rank(predictor: Predictor, catalogue: Catalogue, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores (N, k) of a catalogue's products through the bundle, from picture files on."""
    side, most = predictor.input_spec.image_side_pixels, predictor.input_spec.max_images
    products = [catalogue.products[row] for row in rows]
    with ImageReader(catalogue.folder) as reader:
        pixels = [
            np.stack(
                [np.zeros((side, side, 3), np.uint8), *(decode_image(reader.read(i), side) for i in p.images[:most])]
            )
            for p in products
        ]
    bags = predictor.embed([p.title for p in products], [own[1:] for own in pixels])
    rankings = predictor.rank(bags, k, excluded=[predictor.labels.excluded(p.id) for p in products])
    return np.stack([r.labels for r in rankings]), np.stack([r.scores for r in rankings])


@pytest.mark.parametrize("run_name", ["products_run", "queries_run"])
@pytest.mark.parametrize("record_type", ["float32", "float16", "int8"])
def test_a_bundle_ranks_as_its_run_does(
    run_name: str, record_type: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The whole validation split, files to fused scores: torch's scores to 1e-4 (float16: 3e-3, int8: 2e-2), ties allowed."""
    run: Path = request.getfixturevalue(run_name)
    catalogue = read_catalogue(run.parent / "shop")
    parity = export(run, tmp_path / "bundle", ExportSettings(record_type=record_type), QUIET)  # type: ignore[arg-type]
    assert parity.passed, parity.table()
    rows = catalogue.splits["valid"].products
    labels, scores = rank(open_predictor(tmp_path / "bundle"), catalogue, rows, 5)
    torch_side = rank_split(run, catalogue, "valid")
    expected_labels, expected = torch_side.rows["full"][:, :5], torch_side.scores["full"][:, :5]
    tolerance = {"float32": 1e-4, "float16": 3e-3, "int8": 2e-2}[record_type]
    np.testing.assert_allclose(scores, expected, atol=tolerance)
    differing = labels != expected_labels
    assert differing.mean() < 0.2
    # Where the order differs, the score is that of a tie: it stands elsewhere in torch's list, equally high.
    for row, place in zip(*np.nonzero(differing), strict=True):
        where = np.flatnonzero(torch_side.rows["full"][row] == labels[row, place])
        assert abs(torch_side.scores["full"][row, where[0]] - expected[row, place]) <= 2 * tolerance


def test_a_bundle_carries_what_answers_need(bundle: Path, products_run: Path) -> None:
    """Titles, metadata to filter by, images behind the base URL, exclude pairs, provenance, the catalogue's name."""
    predictor, catalogue = open_predictor(bundle), read_catalogue(products_run.parent / "shop")
    assert predictor.name == "shop"
    described = predictor.labels.describe(np.arange(len(catalogue.labels)))
    for index, (label, item) in enumerate(zip(described, catalogue.labels, strict=True)):
        assert label.index == index
        assert (label.id, label.title, dict(label.metadata)) == (item.id, item.title, dict(item.metadata))
        assert label.images == tuple(f"https://shop.example/media/{image}" for image in item.images)
        assert predictor.labels.excluded(item.id).tolist() == [index]
    assert predictor.labels.filter_keys == ("kind",)
    provenance = open_bundle(bundle).manifest.provenance
    assert provenance["catalogue"]["products"] == len(catalogue.products)
    assert provenance["config"]["network"]["dimension"] == 8
    assert set(provenance["versions"]) > {"torch", "onnxruntime"}
    assert str(products_run.parent) not in json.dumps(provenance)


def test_golden_products_have_every_shape(bundle: Path) -> None:
    """Title and images, title only, images only; the report holds the parity of each stage."""
    report = json.loads((bundle / REPORT_FILE).read_text())
    assert report["parity"]["passed"] is True
    assert [stage["stage"] for stage in report["parity"]["stages"]] == [
        "tokens", "title", "image", "bag", "embedding", "shortlist", "classifier", "ranking",
    ]  # fmt: skip
    items = golden_items(
        [Item("a", "only a title"), Item("b", "", ("x.png",)), Item("c", "both", ("x.png", "y.png"))], 5
    )
    shapes = {(bool(item.title), len(item.images)) for item in items}
    assert {(True, 0), (False, 1), (True, 2)} <= shapes


def test_two_exports_of_one_run_are_byte_equal(bundle: Path, products_run: Path, tmp_path: Path) -> None:
    """Every file but the reports, which say when they were made, and their hashes."""
    export(products_run, tmp_path / "again", ExportSettings(image_base_url="https://shop.example/media"), QUIET)
    for path in bundle.iterdir():
        if path.name not in ("report.json", "report.html", "sidecar.json"):
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_graph_index_is_exported_when_labels_are_many(products_run: Path, tmp_path: Path) -> None:
    """The threshold is a setting; the bundle says so and stays within its tolerances."""
    parity = export(
        products_run, tmp_path / "b", ExportSettings(index=IndexSettings(exact_labels=10, kinds=("hnsw-sq8",))), QUIET
    )
    assert parity.passed, parity.table()
    assert open_bundle(tmp_path / "b").manifest.sizes.index == "hnsw-sq8"
    assert open_bundle(tmp_path / "b").manifest.provenance["index"] == {"target_recall": 0.95}


def test_recall_is_measured_with_validation_products(
    products_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their embeddings by the network, where the index is approximate; nobody asks for them where it is exact."""
    seen: list[np.ndarray | None] = []

    def build(*arguments: Any) -> LabelIndex:
        seen.append(arguments[4])
        return build_index(*arguments)

    monkeypatch.setattr("model_export.export.build_index", build)
    for name, most in (("near", 10), ("exact", 1000)):
        settings = ExportSettings(index=IndexSettings(exact_labels=most), report=False)
        export(products_run, tmp_path / name, settings, QUIET)
    catalogue = read_catalogue(products_run.parent / "shop")
    rows = catalogue.splits["valid"].products
    predictor = open_predictor(tmp_path / "exact")
    assert seen[1] is None and seen[0] is not None
    with ImageReader(catalogue.folder) as reader:
        size = predictor.input_spec.image_side_pixels
        pixels = [
            np.stack([np.zeros((size, size, 3), np.uint8), *(decode_image(reader.read(i), size) for i in p.images)])[1:]
            for p in (catalogue.products[row] for row in rows)
        ]
    bags = predictor.embed([catalogue.products[row].title for row in rows], pixels)
    np.testing.assert_allclose(seen[0], np.stack([bag.embedding for bag in bags]), atol=1e-4)


def test_the_catalogue_may_have_moved_but_not_changed(products_run: Path, queries_run: Path, tmp_path: Path) -> None:
    """--catalogue names the new place; one with other labels is refused before anything is written."""
    moved = Path(shutil.copytree(products_run.parent / "shop", tmp_path / "moved"))
    assert main([str(products_run), str(tmp_path / "ok"), "--catalogue", str(moved), "--name", "shop", "--quiet"]) == 0
    with pytest.raises(CheckpointError, match="use the catalogue of the run"):
        export(products_run, tmp_path / "other", ExportSettings(), QUIET, queries_run.parent / "shop")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moved", "ok"]


def test_a_killed_export_leaves_no_bundle(products_run: Path, tmp_path: Path) -> None:
    """SIGKILL while labels are encoded; the same command then succeeds and clears what was left."""
    program = (
        "import os, signal, sys, model_export.__main__ as command, model_export.export as m\n"
        "m.write_labels = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "command.main(sys.argv[1:])\n"
    )
    arguments = [str(products_run), str(tmp_path / "bundle"), "--quiet"]
    killed = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    assert list(tmp_path.iterdir())
    assert main(arguments) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_verify_passes_a_whole_bundle_and_fails_an_altered_one(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 with the table; 1 with the reason."""
    assert main(["--verify", str(bundle)]) == 0
    assert "ranking" in capsys.readouterr().out
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    content = bytearray((copy / "records.bin").read_bytes())
    content[-100] ^= 1
    (copy / "records.bin").write_bytes(content)
    assert main(["--verify", str(copy)]) == 1
    assert "records.bin: SHA-256 is" in capsys.readouterr().err


def test_verify_fails_a_bundle_that_computes_something_else(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every hash is right, the golden products come out differently: exit code 1, and the table says where."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    golden = read_golden(copy)
    write_golden(copy, replace(golden, classifier=golden.classifier + np.float32(0.01)))
    manifest = read_manifest(copy / MANIFEST_FILE)
    path = copy / GOLDEN_FILE
    entry = FileEntry(hash_file(path), path.stat().st_size, manifest.files[GOLDEN_FILE].arrays)
    (copy / MANIFEST_FILE).write_bytes(replace(manifest, files={**manifest.files, GOLDEN_FILE: entry}).to_bytes())
    assert main(["--verify", str(copy)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("FAILED")] == ["classifier"]


def test_the_report_tells_how_fast_labels_were_encoded(bundle: Path) -> None:
    """Beside what the encoder alone would reach on the same batches."""
    encoding = json.loads((bundle / REPORT_FILE).read_text())["encoding"]
    assert (encoding["labels"], encoding["resumed_labels"], encoding["processes"]) == (60, 0, 1)
    assert 0 < encoding["labels_a_second"] <= encoding["encoder_alone_labels_a_second"]


def test_a_bundle_outside_its_tolerance_is_not_written(
    products_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that differ from the network's labels fail the export with the table, and nothing is left."""
    fold = LabelFold.values
    monkeypatch.setattr(LabelFold, "values", lambda self, bag: fold(self, bag) + 0.5 * bag[..., ::-1])
    with pytest.raises(BundleError, match=r"(?s)does not compute what torch computed.*classifier.*FAILED"):
        export(products_run, tmp_path / "bundle", ExportSettings(), QUIET)
    assert list(tmp_path.iterdir()) == []


def test_parity_is_required_stage_by_stage(tmp_path: Path) -> None:
    """One stage outside its tolerance is enough."""
    good = StageParity("title", 1e-6, 1e-4, None, None)
    require_parity(Parity(1, (good,)), tmp_path)
    with pytest.raises(BundleError, match="FAILED"):
        require_parity(Parity(1, (good, StageParity("ranking", 0.0, 1e-4, 0.5, 1.0))), tmp_path)


def test_tolerances_follow_index_and_precision() -> None:
    """Only what is approximate may differ."""
    assert tolerances_for("exact", "float32").top_k_agreement == 1.0
    assert tolerances_for("hnsw-sq8", "float32").classifier_difference == 1e-4
    assert tolerances_for("hnsw-sq8", "float32").top_k_agreement < 1.0
    assert tolerances_for("exact", "float16").classifier_difference > 1e-4


def test_folder_relative_images_need_a_base_url() -> None:
    """URLs stay, paths are quoted behind the base or left out."""
    item = Item("a", "t", ("https://x.example/1.jpg", "img/a b.jpg"))
    assert answer_images(item, None) == ["https://x.example/1.jpg"]
    packed = replace(item, images=("https://x.example/1.jpg", "images/images.bin#7+20"))
    assert answer_images(packed, "http://y.example/m/") == ["https://x.example/1.jpg"]
    assert answer_images(item, "http://y.example/m/") == ["https://x.example/1.jpg", "http://y.example/m/img/a%20b.jpg"]


def test_settings_and_arguments_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong values name themselves; a folder that is no run, or a missing argument, is said so."""
    with pytest.raises(ConfigError, match="image_base_url is 'media'"):
        ExportSettings(image_base_url="media")
    with pytest.raises(ConfigError, match="record_type is 'int4'"):
        ExportSettings(record_type="int4")  # type: ignore[arg-type]
    assert main([str(tmp_path), str(tmp_path / "b")]) == 1
    assert "no finished run here" in capsys.readouterr().err
    for arguments in ([], [str(tmp_path)], [str(tmp_path), str(tmp_path / "b"), "--verify", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
