"""A bundle folder is written whole or not at all, and opened only when every part agrees."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mufin.bundle import (
    GOLDEN_FILE,
    HEAD_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    PAGE_FILE,
    REPORT_FILE,
    SIDECAR_FILE,
    TEXT_GRAPH_FILE,
    open_bundle,
    write_report,
)
from mufin.errors import BundleError, ConfigError
from mufin.label_files import LABELS_FILE, OFFSETS_FILE, LabelFile, write_labels
from mufin.label_records_file import RECORDS_FILE
from mufin.manifest import EncoderPrecision, Encoders, FileEntry, hash_file, read_manifest
from mufin.predictor import open_predictor
from mufin.scoring import ScoreSpec
from tests.bundle_factory import make_tiny_bundle, tiny_labels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle, never changed."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def reseal(folder: Path, *names: str) -> None:
    """Make the manifest agree with changed files, so that only their content is at fault."""
    manifest = read_manifest(folder / MANIFEST_FILE)
    files = dict(manifest.files)
    for name in names:
        path = folder / name
        files[name] = FileEntry(hash_file(path), path.stat().st_size, files[name].arrays)
    (folder / MANIFEST_FILE).write_bytes(replace(manifest, files=files).to_bytes())


def test_what_was_written_is_read_back(original: Path) -> None:
    """Every label's fields, source and bag layout come back as they were given."""
    bundle = open_bundle(original)
    labels = tiny_labels(40)
    assert [bundle.labels.fields(i) for i in range(40)] == [(o.id, o.title, o.images, o.metadata) for o in labels]
    order = np.random.default_rng(0).permutation(40)
    assert bundle.labels.read(order) == [bundle.labels.fields(int(i)) for i in order]
    assert [bundle.labels.index_of(o.id) for o in labels] == list(range(40))
    assert bundle.labels.index_of("absent") is None
    assert bundle.records.sources(np.arange(40)) == ["trained"] * 40
    assert [bundle.records.layout(i) for i in range(40)] == [(len(o.images), bool(o.title)) for o in labels]


def test_two_writings_are_byte_equal(original: Path, tmp_path: Path) -> None:
    """No time and no order of chance enters a file."""
    again = make_tiny_bundle(tmp_path / "again")
    assert {p.name: p.read_bytes() for p in original.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


def test_records_keep_their_values_and_embeddings(original: Path) -> None:
    """Gathering follows the asked order, empty slots are masked, an embedding is the unit mean of the bag."""
    records = open_bundle(original).records
    wanted = np.array([5, 0, 39, 5])
    gathered = records.gather(wanted)
    assert gathered.mask.sum(axis=1).tolist() == [sum(records.layout(int(i))) for i in wanted]
    mean = (gathered.keys * gathered.mask[..., None]).sum(1) / gathered.mask.sum(1, keepdims=True)
    np.testing.assert_allclose(
        records.embeddings(wanted), mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6
    )
    np.testing.assert_array_equal(gathered.keys[0], gathered.keys[3])


def test_half_precision_records_are_half_as_large(original: Path, tmp_path: Path) -> None:
    """fp16 records are read back as float32, within half precision."""
    half = make_tiny_bundle(tmp_path / "half", record_type="float16")
    full_bytes, half_bytes = ((b / RECORDS_FILE).stat().st_size for b in (original, half))
    assert half_bytes < 0.6 * full_bytes
    labels = np.arange(40)
    stored = open_bundle(half).records.gather(labels)
    assert stored.keys.dtype == np.float32
    np.testing.assert_allclose(stored.keys, open_bundle(original).records.gather(labels).keys, atol=2e-3)


@pytest.mark.parametrize("name", [RECORDS_FILE, TEXT_GRAPH_FILE, GOLDEN_FILE, MANIFEST_FILE, SIDECAR_FILE, REPORT_FILE])
@pytest.mark.parametrize("verify", ["full", "structure"])
def test_a_missing_file_is_refused(copy: Path, name: str, verify: str) -> None:
    """Named, with the remedy, by either kind of verification."""
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}.*(again|export)"):
        open_bundle(copy, verify)  # type: ignore[arg-type]


@pytest.mark.parametrize("verify", ["full", "structure"])
def test_a_truncated_file_is_refused(copy: Path, verify: str) -> None:
    """Both lengths are named."""
    path = copy / RECORDS_FILE
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(BundleError, match=f"has {size - 1} bytes, the manifest says {size}"):
        open_bundle(copy, verify)  # type: ignore[arg-type]


def test_an_altered_file_is_refused_by_full_verification_only(copy: Path) -> None:
    """Structure verification does not hash: it is for folders that were verified before."""
    content = bytearray((copy / LABELS_FILE).read_bytes())
    content[10] ^= 1
    (copy / LABELS_FILE).write_bytes(content)
    assert open_bundle(copy, "structure").manifest.sizes.labels == 40
    with pytest.raises(BundleError, match=f"{LABELS_FILE}: SHA-256 is .* the manifest says"):
        open_bundle(copy)


def test_a_surplus_file_is_refused(copy: Path) -> None:
    """What no manifest names does not belong there."""
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.bin.*remove it"):
        open_bundle(copy)


def test_a_newer_format_is_refused(copy: Path) -> None:
    """Both versions and the remedy are named."""
    values = json.loads((copy / MANIFEST_FILE).read_text())
    values["format_version"] = 99
    (copy / MANIFEST_FILE).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"format_version is 99, this mufin reads 0.*install"):
        open_bundle(copy)


def test_an_altered_manifest_is_refused(copy: Path) -> None:
    """A changed field does not fit the bundle_id; another spelling of the same fields is no manifest of ours."""
    path = copy / MANIFEST_FILE
    content = path.read_text()
    path.write_text(content.replace('"fusion_weight": 0.5', '"fusion_weight": 0.6'))
    with pytest.raises(BundleError, match=r"bundle_id is sha256:.*its content gives sha256:"):
        open_bundle(copy)
    path.write_text(content + " ")
    with pytest.raises(BundleError, match="altered"):
        open_bundle(copy)
    path.write_text("[]")
    with pytest.raises(BundleError, match="needs an object"):
        open_bundle(copy)


def test_every_flipped_bit_is_found(original: Path, tmp_path: Path) -> None:
    """Sampled over all files, manifest and report among them: full verification misses none."""
    random = np.random.default_rng(3)
    folder = Path(shutil.copytree(original, tmp_path / "flipped"))
    found = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for position in {0, len(content) - 1, *random.integers(0, len(content), 6).tolist()}:
            flipped = bytearray(content)
            flipped[position] ^= 1 << int(random.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(BundleError):
                open_bundle(folder)
            found += 1
        path.write_bytes(content)
    assert found > 100
    assert open_bundle(folder).manifest.bundle_id == open_bundle(original).manifest.bundle_id


def test_files_of_another_bundle_are_refused(copy: Path, tmp_path: Path) -> None:
    """Files that are whole by themselves but disagree are named with both counts."""
    other = make_tiny_bundle(tmp_path / "other", labels=41)
    for name in (RECORDS_FILE,):
        shutil.copy(other / name, copy / name)
    reseal(copy, RECORDS_FILE)
    with pytest.raises(BundleError, match=r"records.bin: has 41 labels, the manifest says 40: run mufin-export again"):
        open_bundle(copy)


def test_an_index_of_other_labels_is_refused(copy: Path, tmp_path: Path) -> None:
    """The predictor compares the index with the manifest before it answers."""
    other = make_tiny_bundle(tmp_path / "other", labels=41)
    shutil.copy(other / INDEX_FILE, copy / INDEX_FILE)
    reseal(copy, INDEX_FILE)
    with pytest.raises(BundleError, match="index has 41 labels of 16 numbers, bundle has 40 of 16"):
        open_predictor(copy)


def test_a_graph_that_is_none_is_refused(copy: Path) -> None:
    """ONNX Runtime's own error is passed on with the file and the remedy."""
    (copy / TEXT_GRAPH_FILE).write_bytes(b"no graph")
    reseal(copy, TEXT_GRAPH_FILE)
    with pytest.raises(BundleError, match=r"text_encoder.onnx: ONNX Runtime cannot load it .*run mufin-export again"):
        open_predictor(copy)


def test_a_pickle_is_refused(copy: Path) -> None:
    """An array file of pickled objects is not even looked into, whatever the manifest says."""
    np.save(copy / HEAD_FILE, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    reseal(copy, HEAD_FILE)
    with pytest.raises(BundleError, match=r"head_labels\.npy: is no readable array file"):
        open_bundle(copy)


@pytest.mark.parametrize("name", [RECORDS_FILE, LABELS_FILE, TEXT_GRAPH_FILE, INDEX_FILE, GOLDEN_FILE, HEAD_FILE])
def test_a_pickle_under_any_name_is_refused(copy: Path, name: str) -> None:
    """Even where length and hash are the manifest's, by either kind of verification."""
    (copy / name).write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    reseal(copy, name)
    for verify in ("full", "structure"):
        with pytest.raises(BundleError, match=f"{name}: is a pickle, and opening one may run code: delete it"):
            open_bundle(copy, verify)


@pytest.mark.parametrize("name", ["model.pkl", "weights.pt", ".hidden", "sub"])
def test_what_does_not_belong_is_refused_unopened(copy: Path, name: str) -> None:
    """Files of any kind and nested folders; only their names are looked at."""
    if name == "sub":
        (copy / name).mkdir()
    else:
        (copy / name).write_bytes(pickle.dumps([1]))
    with pytest.raises(BundleError, match=f"holds {name}, which no manifest names: remove it"):
        open_bundle(copy, "structure")


def test_an_npz_of_objects_is_refused(copy: Path) -> None:
    """Its headers say so before anything is unpacked."""
    np.savez(copy / GOLDEN_FILE, titles=np.array([{"a": 1}], dtype=object))
    reseal(copy, GOLDEN_FILE)
    with pytest.raises(BundleError, match=r"golden\.npz: is no readable array file .*pickled objects"):
        open_bundle(copy)


@pytest.mark.parametrize("name", [RECORDS_FILE, MANIFEST_FILE, REPORT_FILE])
def test_links_and_folders_in_a_files_place_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    """A link may point elsewhere tomorrow; the bundle's own folder may be one."""
    elsewhere = tmp_path / "elsewhere"
    (copy / name).rename(elsewhere)
    (copy / name).symlink_to(elsewhere)
    with pytest.raises(BundleError, match=f"{name}: is a link, a bundle holds plain files only"):
        open_bundle(copy)
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(BundleError, match=name):
        open_bundle(copy)
    (copy / name).rmdir()
    elsewhere.rename(copy / name)
    (tmp_path / "link").symlink_to(copy)
    assert open_bundle(tmp_path / "link").manifest.sizes.labels == 40


def test_offsets_that_do_not_fit_are_refused(copy: Path) -> None:
    """labels.bin must end where its offsets do."""
    offsets = np.load(copy / OFFSETS_FILE)
    offsets[-1] -= 1
    np.save(copy / OFFSETS_FILE, offsets)
    reseal(copy, OFFSETS_FILE)
    with pytest.raises(BundleError, match="its offsets end at"):
        open_bundle(copy)


def test_identities_say_what_they_are_of(original: Path, tmp_path: Path) -> None:
    """Another score changes bundle_id only, another encoder both."""
    first = read_manifest(original / MANIFEST_FILE)
    scored = read_manifest(make_tiny_bundle(tmp_path / "a", score_spec=ScoreSpec(20, 0.7)) / MANIFEST_FILE)
    other = read_manifest(make_tiny_bundle(tmp_path / "b", seed=9) / MANIFEST_FILE)
    assert first.encoder_id == scored.encoder_id != other.encoder_id
    assert len({first.bundle_id, scored.bundle_id, other.bundle_id}) == 3
    reshaped = replace(first, input_spec=replace(first.input_spec, max_images=1))
    assert reshaped.encoder_id != first.encoder_id


def test_the_report_is_outside_the_identity(copy: Path) -> None:
    """A new report keeps the bundle_id and is covered by the sidecar."""
    before = open_bundle(copy).manifest.bundle_id
    write_report(copy, {"parity": "new"})
    assert open_bundle(copy).manifest.bundle_id == before
    (copy / REPORT_FILE).write_bytes(b"{}\n")
    with pytest.raises(BundleError, match="the report was altered"):
        open_bundle(copy, "structure")


def test_the_page_is_outside_the_identity_but_not_unguarded(copy: Path) -> None:
    """A bundle with report.html keeps its bundle_id; the page altered, gone, or one that was not there is refused."""
    before = open_bundle(copy).manifest.bundle_id
    (copy / PAGE_FILE).write_text("from elsewhere")
    with pytest.raises(BundleError, match="the report was altered"):
        open_bundle(copy, "structure")
    write_report(copy, {}, "<!doctype html>")
    assert open_bundle(copy).manifest.bundle_id == before
    (copy / PAGE_FILE).write_text("<!doctype HTML>")
    with pytest.raises(BundleError, match="the report was altered"):
        open_bundle(copy, "structure")
    (copy / PAGE_FILE).unlink()
    with pytest.raises(BundleError, match="the report was altered"):
        open_bundle(copy, "structure")
    write_report(copy, {}, "<!doctype html>")
    write_report(copy, {})
    assert open_bundle(copy).manifest.bundle_id == before and not (copy / PAGE_FILE).exists()


def test_labels_with_equal_hashes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookup compares ids, not only hashes; ids of any script are kept."""
    monkeypatch.setattr("mufin.label_files.hash_id", lambda identifier: 7)
    write_labels(tmp_path, [("é", "a", [], {}), ("靴", "b", ["x"], {"n": 1}), ("", "c", [], {})])
    labels = LabelFile(tmp_path)
    assert [labels.index_of(i) for i in ("é", "靴", "", "absent")] == [0, 1, 2, None]
    assert labels.fields(1) == ("靴", "b", ("x",), {"n": 1})


def test_offsets_that_span_two_labels_are_refused(tmp_path: Path) -> None:
    """When the label is read: opening a bundle's structure does not read labels."""
    write_labels(tmp_path, [("a", "A", [], {}), ("b", "B", [], {})])
    offsets = np.load(tmp_path / "label_offsets.npy")
    np.save(tmp_path / "label_offsets.npy", np.asarray([0, offsets[2], offsets[2]], dtype=np.uint64))
    with pytest.raises(BundleError, match=r"labels\.bin: what stands at 0 to \d+ is more than one label"):
        LabelFile(tmp_path).fields(0)
    with pytest.raises(BundleError, match=r"labels\.bin: what stands at 0 to \d+ is more than one label"):
        LabelFile(tmp_path).read(np.asarray([0, 0]))


def test_a_label_with_something_behind_it_is_refused(tmp_path: Path) -> None:
    """Alone and last among others, where what follows could be taken for the end of them all."""
    write_labels(tmp_path, [("a", "A", [], {}), ("b", "B", [], {})])
    content = (tmp_path / LABELS_FILE).read_bytes().rstrip(b"\n") + b"]x"
    (tmp_path / LABELS_FILE).write_bytes(content)
    offsets = np.load(tmp_path / OFFSETS_FILE)
    offsets[-1] = len(content)
    np.save(tmp_path / OFFSETS_FILE, offsets)
    assert LabelFile(tmp_path).read(np.asarray([0])) == [("a", "A", (), {})]
    for wanted in ([1], [0, 1]):
        with pytest.raises(BundleError, match=r"labels\.bin: what stands at \d+ to \d+ is more than one label"):
            LabelFile(tmp_path).read(np.asarray(wanted))


def test_labels_are_read_together_as_one_by_one(tmp_path: Path) -> None:
    """In any order, the same one twice, none at all; whatever characters they have."""
    write_labels(
        tmp_path, [("é", "a, [b]", [], {}), ("靴", 'b"],["', ["x", "y"], {"n": [1, None]}), ("", "c\n", [], {})]
    )
    labels = LabelFile(tmp_path)
    for wanted in ([2, 0, 1], [1, 1], [0], []):
        assert labels.read(np.asarray(wanted, dtype=np.int64)) == [labels.fields(index) for index in wanted]


def test_int8_graphs_must_be_there_where_an_encoder_is_int8(tmp_path: Path) -> None:
    """Missing, surplus or altered: refused like every other file; so is a precision nobody knows."""
    folder = make_tiny_bundle(tmp_path / "int8", encoders=Encoders(image=EncoderPrecision("int8")))
    assert open_bundle(folder).manifest.sizes.encoders.image == EncoderPrecision("int8", False)
    graph = folder / "image_encoder.int8.onnx"
    content = graph.read_bytes()
    (folder / "text_encoder.int8.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"holds text_encoder\.int8\.onnx, which no manifest names"):
        open_bundle(folder)
    (folder / "text_encoder.int8.onnx").unlink()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"image_encoder\.int8\.onnx: SHA-256"):
        open_bundle(folder)
    graph.unlink()
    with pytest.raises(BundleError, match=r"lacks image_encoder\.int8\.onnx"):
        open_bundle(folder)
    with pytest.raises(ConfigError, match="must be fp32 or int8"):
        EncoderPrecision("int4")  # type: ignore[arg-type]
