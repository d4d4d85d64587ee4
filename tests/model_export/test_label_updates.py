"""Labels added without training and labels taken out: a new bundle that finds, hides and stays whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.__main__ import main
from model_export.label_index import IndexSettings, LabelIndex, build_index
from model_export.label_updates import add_labels, remove_labels
from mufin.bundle import HEAD_FILE, MANIFEST_FILE, open_bundle
from mufin.errors import BundleError, CatalogueError, ConfigError
from mufin.inputs import decode_image
from mufin.label_filters import FilterIndex
from mufin.manifest import ArrayEntry, FileEntry, hash_file, read_manifest
from mufin.predictor import Predictor, open_predictor
from mufin.scoring import Calibration, ScoreSpec
from tests.bundle_factory import SIDE, make_tiny_bundle, picture, tiny_labels

NEW: list[dict[str, Any]] = [
    {"id": "N0", "title": "red shirt cotton", "images": ["red.png"], "category": "new", "price": 3},
    {"id": "N1", "title": "blue bag cotton cotton", "images": [], "category": "bag", "price": 500},
    {"id": "N2", "title": "", "images": ["green.png", "white.png"], "colours": ["green", "white"]},
]
APPROXIMATE = IndexSettings(exact_labels=0, kinds=("hnsw-sq8",), target_recall=0.5)


def quiet(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def write_items(folder: Path, items: Sequence[dict[str, Any]]) -> Path:
    """A labels.jsonl with its pictures beside it."""
    folder.mkdir(exist_ok=True)
    for colour in ("red", "green", "white"):
        (folder / f"{colour}.png").write_bytes(picture(colour))
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def write_ids(path: Path, ids: Sequence[str]) -> Path:
    """One id a line."""
    path.write_text("\n".join(ids) + "\n")
    return path


def ranked(predictor: Predictor, title: str, colours: Sequence[str] = (), k: int = 5) -> list[str]:
    """Ids of the k best labels of a product."""
    pixels = [decode_image(picture(colour), SIDE) for colour in colours]
    stacked = np.stack(pixels) if pixels else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    ranking = predictor.rank(predictor.embed([title], [stacked]), k)[0]
    return [label.id for label in predictor.labels.describe(ranking.labels)]


@pytest.mark.parametrize("record_type", ["float32", "float16", "int8"])
@pytest.mark.parametrize("index", [None, APPROXIMATE], ids=["exact", "hnsw"])
@pytest.mark.parametrize("cross_attention", [True, False])
def test_an_added_label_is_found_by_its_own_title_and_pictures(
    record_type: str, index: IndexSettings | None, cross_attention: bool, tmp_path: Path
) -> None:
    """First of all labels, marked as untrained, answered with its own text; the bundle proves itself."""
    old = make_tiny_bundle(
        tmp_path / "old", record_type=record_type, index=index, cross_attention=cross_attention
    )  # fmt: skip
    done = add_labels(old, write_items(tmp_path / "in", NEW), tmp_path / "new", quiet, "https://cdn.example/p")
    assert done.parity.passed
    assert done.labels == 43
    predictor = open_predictor(tmp_path / "new")
    assert ranked(predictor, "red shirt cotton", ["red"])[0] == "N0"
    assert ranked(predictor, "blue bag cotton cotton")[0] == "N1"
    assert ranked(predictor, "", ["green", "white"])[0] == "N2"
    before, label = predictor.labels.describe(np.asarray([39, 40]))
    assert (label.id, label.title, label.source) == ("N0", "red shirt cotton", "encoder")
    assert label.images == ("https://cdn.example/p/red.png",)
    assert before.source == "trained"
    assert predictor.encoder_id == open_predictor(old).encoder_id
    assert predictor.bundle_id != open_predictor(old).bundle_id


def test_added_labels_do_not_push_trained_ones_down(tmp_path: Path) -> None:
    """A strong untrained score stands behind trained ones of higher probability; its own product still finds it first."""
    spec = ScoreSpec(
        shortlist_size=60, calibration_both=Calibration(10.0, -5.0), calibration_untrained_both=Calibration(2.0, -6.0),
        calibration_title=Calibration(10.0, -5.0), calibration_untrained_title=Calibration(2.0, -6.0),
    )  # fmt: skip
    old = make_tiny_bundle(tmp_path / "old", score_spec=spec)
    done = add_labels(old, write_items(tmp_path / "in", NEW), tmp_path / "new", quiet)
    assert done.parity.passed
    before, after = open_predictor(old), open_predictor(tmp_path / "new")
    best = ranked(before, "red shirt men", ["red"], k=5)
    assert ranked(after, "red shirt men", ["red"], k=5) == best
    assert ranked(after, "red shirt cotton", ["red"])[0] == "N0"
    plain = make_tiny_bundle(tmp_path / "plain", score_spec=ScoreSpec(shortlist_size=60))
    add_labels(plain, tmp_path / "in" / "labels.jsonl", tmp_path / "plain-new", quiet)
    assert ranked(open_predictor(tmp_path / "plain-new"), "red shirt men", ["red"], k=5) != best


def test_what_was_there_stays_as_it_was(tmp_path: Path) -> None:
    """Old labels keep text, record and filters; new ones are filtered by theirs, as if all had been exported at once."""
    old = make_tiny_bundle(tmp_path / "old")
    add_labels(old, write_items(tmp_path / "in", NEW), tmp_path / "new", quiet)
    before, after = open_bundle(old), open_bundle(tmp_path / "new")
    rows = np.arange(40)
    for field in ("keys", "values", "mask", "classifiers"):
        np.testing.assert_array_equal(
            getattr(after.records.gather(rows), field), getattr(before.records.gather(rows), field)
        )
    assert [after.labels.fields(i) for i in range(40)] == [before.labels.fields(i) for i in range(40)]
    filters: FilterIndex = after.filters
    assert np.flatnonzero(filters.allowed_by({"category": "new"})).tolist() == [40]
    bags = [i for i, label in enumerate(tiny_labels(40)) if label.metadata["category"] == "bag"]
    assert np.flatnonzero(filters.allowed_by({"category": ["bag"]})).tolist() == [*bags, 41]
    assert np.flatnonzero(filters.allowed_by({"price": {"lte": 5}})).tolist() == [0, 1, 40]
    assert np.flatnonzero(filters.allowed_by({"colours": "white", "price": {"gte": 0}})).tolist() == [
        4,
        9,
        14,
        19,
        24,
        29,
        34,
        39,
    ]
    assert after.labels.index_of("N2") == 42


def test_more_pictures_than_any_label_had_widen_the_records(tmp_path: Path) -> None:
    """A catalogue of titles gets its first label with two pictures and a title."""
    old = make_tiny_bundle(tmp_path / "old", label_slots=2)
    item = {"id": "N", "title": "green hat", "images": ["green.png", "white.png"]}
    add_labels(old, write_items(tmp_path / "in", [item]), tmp_path / "new", quiet)
    bundle = open_bundle(tmp_path / "new")
    assert (open_bundle(old).manifest.sizes.label_slots, bundle.manifest.sizes.label_slots) == (2, 3)
    assert bundle.records.layout(40) == (2, True)


def test_a_removed_label_is_never_returned(tmp_path: Path) -> None:
    """Not by search, filter or id; the numbers of the others stay; k results come back all the same."""
    old = make_tiny_bundle(tmp_path / "old")
    best = ranked(open_predictor(old), "red shirt men", ["red"], k=40)
    done = remove_labels(old, write_ids(tmp_path / "ids", best[:3]), tmp_path / "new", quiet)
    assert (done.labels, done.compacted) == (37, False)
    predictor = open_predictor(tmp_path / "new")
    assert ranked(predictor, "red shirt men", ["red"], k=40) == best[3:]
    assert predictor.labels.size == 40
    assert all(predictor.labels.index_of(name) is None for name in best[:3])
    everything = np.ones(40, dtype=np.bool_)
    found, _ = predictor.labels.search(np.ones((1, 16), np.float32), 40, everything)
    assert (found >= 0).sum() == 37


@pytest.mark.parametrize("index", [None, APPROXIMATE], ids=["exact", "hnsw"])
def test_many_tombstones_are_cleared_away(index: IndexSettings | None, tmp_path: Path) -> None:
    """Above a tenth the labels are renumbered: text, records, filters, exclude pairs and order of the others stay."""
    excluded = {"P": np.array([0, 20, 39])}
    old = make_tiny_bundle(tmp_path / "old", index=index, excluded=excluded)
    best = ranked(open_predictor(old), "red shirt men", ["red"], k=40)
    gone = ["L0", "L1", "L2", "L3", "L38"]
    done = remove_labels(old, write_ids(tmp_path / "ids", gone), tmp_path / "new", quiet)
    assert (done.labels, done.compacted) == (35, True)
    predictor = open_predictor(tmp_path / "new")
    assert predictor.labels.size == 35
    kept = [name for name in best if name not in gone]
    assert ranked(predictor, "red shirt men", ["red"], k=len(kept))[:10] == kept[:10]
    assert [label.id for label in predictor.labels.describe(predictor.labels.excluded("P"))] == ["L20", "L39"]
    cheap = predictor.labels.allowed_by({"price": {"lte": 25}})
    assert [label.id for label in predictor.labels.describe(np.flatnonzero(cheap))] == ["L4", "L5"]


def test_a_removed_id_may_come_back(tmp_path: Path) -> None:
    """As a new label; removing it again takes out the new one."""
    old = make_tiny_bundle(tmp_path / "old")
    remove_labels(old, write_ids(tmp_path / "ids", ["L7"]), tmp_path / "without", quiet)
    item = {"id": "L7", "title": "white hat cotton", "images": []}
    add_labels(tmp_path / "without", write_items(tmp_path / "in", [item]), tmp_path / "again", quiet)
    predictor = open_predictor(tmp_path / "again")
    assert predictor.labels.index_of("L7") == 40
    assert ranked(predictor, "white hat cotton")[0] == "L7"
    remove_labels(tmp_path / "again", write_ids(tmp_path / "ids", ["L7"]), tmp_path / "gone", quiet)
    assert open_predictor(tmp_path / "gone").labels.index_of("L7") is None
    updates = open_bundle(tmp_path / "gone").manifest.provenance["updates"]
    assert [{k: v for k, v in update.items() if k != "of"} for update in updates] == [
        {"removed": 1}, {"added": 1}, {"removed": 1},
    ]  # fmt: skip


def test_an_exclude_pair_holds_for_a_label_that_comes_back(tmp_path: Path) -> None:
    """However often it was taken out; other pairs stay. Cleared away with its tombstone, the pair is gone for good."""
    folder = make_tiny_bundle(tmp_path / "0", excluded={"P": np.array([3, 20]), "Q": np.array([5])})
    items = write_items(tmp_path / "in", [{"id": "L3", "title": "black shirt women"}, NEW[0]])
    for turn in ("1", "2"):
        gone = ["L3"] if turn == "1" else ["L3", "N0"]
        remove_labels(folder, write_ids(tmp_path / "ids", gone), tmp_path / f"{turn}-", quiet)
        folder = tmp_path / turn
        add_labels(tmp_path / f"{turn}-", items, folder, quiet)
        labels = open_predictor(folder).labels
        back = labels.index_of("L3")
        assert back is not None and back >= 40
        assert {20, back} <= set(labels.excluded("P").tolist())
        assert labels.excluded("Q").tolist() == [5]
    labels = open_predictor(folder).labels
    assert labels.index_of("N0") is not None
    assert len(labels.excluded("P")) == 4  # L20, the L3 that is there and two tombstones
    gone = ["L3", *(f"L{i}" for i in range(30, 36))]
    assert remove_labels(folder, write_ids(tmp_path / "ids", gone), tmp_path / "less", quiet).compacted
    add_labels(tmp_path / "less", write_items(tmp_path / "in", [{"id": "L3", "title": "hat"}]), tmp_path / "end", quiet)
    labels = open_predictor(tmp_path / "end").labels
    assert [label.id for label in labels.describe(labels.excluded("P"))] == ["L20"]


def reseal(folder: Path, head: Sequence[int], target: float) -> None:
    """The bundle as one with head labels that was exported with ``--index-recall``."""
    path, manifest = folder / HEAD_FILE, read_manifest(folder / MANIFEST_FILE)
    np.save(path, np.asarray(head, dtype=np.int64))
    entry = FileEntry(hash_file(path), path.stat().st_size, {"": ArrayEntry("<i8", (len(head),))})
    provenance = {**manifest.provenance, "index": {"target_recall": target}}
    sealed = replace(manifest, files={**manifest.files, HEAD_FILE: entry}, provenance=provenance)
    (folder / MANIFEST_FILE).write_bytes(sealed.to_bytes())


def test_clearing_away_builds_the_index_that_was_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kind with the target of the export, by which its tolerances were chosen; head labels stay head labels."""
    approximate, exact = make_tiny_bundle(tmp_path / "hnsw", index=APPROXIMATE), make_tiny_bundle(tmp_path / "exact")
    reseal(approximate, [5, 39], 0.5)
    asked: list[IndexSettings] = []

    def build(*arguments: Any) -> LabelIndex:
        asked.append(arguments[3])
        return build_index(*arguments)

    monkeypatch.setattr("model_export.label_updates.build_index", build)
    # An export with --exact-labels, where the default is less than there are labels.
    monkeypatch.setattr("model_export.label_updates.IndexSettings", partial(IndexSettings, exact_labels=10))
    ids = write_ids(tmp_path / "ids", ["L1", "L2", "L3", "L4", "L39"])
    assert remove_labels(exact, ids, tmp_path / "exact-less", quiet).compacted
    assert open_bundle(tmp_path / "exact-less").manifest.sizes.index == "exact"
    monkeypatch.setattr("model_export.label_updates.IndexSettings", IndexSettings)
    assert remove_labels(approximate, ids, tmp_path / "hnsw-less", quiet).compacted
    bundle = open_bundle(tmp_path / "hnsw-less")
    assert (bundle.manifest.sizes.index, asked[-1].target_recall) == ("hnsw-sq8", 0.5)
    assert bundle.head_labels.tolist() == [1]
    assert bundle.manifest.tolerances == open_bundle(approximate).manifest.tolerances


def test_an_index_that_cannot_be_built_anew_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the user of an update, who cannot set what an export can."""
    old = make_tiny_bundle(tmp_path / "old", index=APPROXIMATE)

    def fail(*_: Any) -> LabelIndex:
        raise ConfigError("no approximate index finds enough")

    monkeypatch.setattr("model_export.label_updates.build_index", fail)
    ids = write_ids(tmp_path / "ids", ["L1", "L2", "L3", "L4", "L5"])
    with pytest.raises(BundleError, match=r"old: no hnsw-sq8 index .* 35 labels .*mufin-export again on a catalogue"):
        remove_labels(old, ids, tmp_path / "new", quiet)


def test_ids_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    """As editors on Windows write it."""
    old, ids = make_tiny_bundle(tmp_path / "old"), tmp_path / "ids"
    ids.write_bytes(b"\xef\xbb\xbfL1\r\nL2\r\n")
    assert remove_labels(old, ids, tmp_path / "new", quiet).labels == 38


def test_two_updates_of_one_bundle_are_byte_equal(tmp_path: Path) -> None:
    """Everything but the report with its time."""
    old = make_tiny_bundle(tmp_path / "old", index=APPROXIMATE)
    items = write_items(tmp_path / "in", NEW)
    for name in ("a", "b"):
        add_labels(old, items, tmp_path / name, quiet)
    for path in (tmp_path / "a").iterdir():
        if path.name not in ("report.json", "sidecar.json"):
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_bad_input_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Known and unknown ids, a faulty item, every label removed: refused with the names, no new bundle."""
    old, target = make_tiny_bundle(tmp_path / "old"), tmp_path / "new"

    def items(*own: dict[str, Any]) -> Path:
        return write_items(tmp_path / "in", own)

    def ids(*own: str) -> Path:
        return write_ids(tmp_path / "ids", own)

    known = items({"id": "L3", "title": "hat", "images": []}, NEW[1])
    with pytest.raises(BundleError, match=r"'L3' of its 2 ids are labels of .* already"):
        add_labels(old, known, target, quiet)
    faulty = items({"id": "N", "title": "hat", "images": ["gone.png"]})
    with pytest.raises(CatalogueError, match=r"labels.jsonl:1.*'gone.png' is missing"):
        add_labels(old, faulty, target, quiet)
    broken = items({"id": "N9", "title": "hat", "images": ["red.png"]})
    (broken.parent / "red.png").write_bytes(b"no picture")
    with pytest.raises(CatalogueError, match=r"in: image 'red.png' of item 'N9': .* replace or remove the image"):
        add_labels(old, broken, target, quiet)
    unknown = ids("X", "L1", "Y")
    with pytest.raises(BundleError, match=r"'X', 'Y' are no labels of"):
        remove_labels(old, unknown, target, quiet)
    nothing = ids("")
    with pytest.raises(ConfigError, match="names no label"):
        remove_labels(old, nothing, target, quiet)
    every = ids(*(label.id for label in tiny_labels(40)))
    with pytest.raises(BundleError, match="names every label"):
        remove_labels(old, every, target, quiet)
    assert main(["--remove-labels", str(tmp_path / "none"), str(old), str(tmp_path / "new")]) == 1
    assert "one label id a line" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ids", "in", "old"]


def test_an_item_without_anything_the_bundle_looks_at_is_named(tmp_path: Path) -> None:
    """A picture is enough for a catalogue, and nothing for a bundle that uses none."""
    old = make_tiny_bundle(tmp_path / "old")
    manifest = read_manifest(old / MANIFEST_FILE)
    blind = replace(manifest, input_spec=replace(manifest.input_spec, max_images=0))
    (old / MANIFEST_FILE).write_bytes(blind.to_bytes())
    with pytest.raises(CatalogueError, match=r"labels.jsonl: 'N2' of its 3 items have no title, .* uses 0 images"):
        add_labels(old, write_items(tmp_path / "in", NEW), tmp_path / "new", quiet)


def test_the_command_adds_and_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the parity table and the number of labels; options of an export are refused beside it."""
    old, items = make_tiny_bundle(tmp_path / "old"), write_items(tmp_path / "in", NEW)
    assert main(["--add-labels", str(items), str(old), str(tmp_path / "new")]) == 0
    assert "ranking" in capsys.readouterr().out
    ids = write_ids(tmp_path / "ids", ["N0", "N1"])
    assert main(["--remove-labels", str(ids), str(tmp_path / "new"), str(tmp_path / "less"), "--quiet"]) == 0
    assert open_bundle(tmp_path / "less").manifest.sizes.removed == 2
    with pytest.raises(SystemExit):
        main(["--add-labels", str(items), str(old), str(tmp_path / "x"), "--record-type", "int8"])
    assert "leave out --record-type" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--add-labels", str(items), str(old)])
    assert "give --add-labels FILE BUNDLE NEW_BUNDLE" in capsys.readouterr().err
