"""The repository's layouts, MM-AmazonTitles-300K with its packed base64 images among them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from mufin.catalogue import read_catalogue
from mufin.datasets.extreme_classification import main
from mufin.image_source import ImageReader


def _pair_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def _source(catalogue: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((catalogue / "source.json").read_text())
    return values


def _left_out(catalogue: Path) -> dict[str, int]:
    return {entry["reason"]: entry["count"] for entry in _source(catalogue)["left_out"]}


@pytest.fixture
def multimodal(tmp_path: Path) -> Path:
    """MM-AmazonTitles-300K in small: 3 train, 2 test, 3 labels, 4 images in img.bin."""
    folder = tmp_path / "MM"
    (folder / "raw_data").mkdir(parents=True)
    (folder / "images").mkdir()
    texts = {
        "train": "A1,A2->Caf\xe9 mug -> red\nA3->Bowl\x85blue\nA4->",
        "test": "A5->Vase\nA3->Bowl again\n",
        "label": "L1->Saucer\nA3->Bowl\nL3->\n",
    }
    for name, text in texts.items():
        (folder / f"raw_data/{name}.raw.txt").write_bytes(text.encode("latin-1"))
    (folder / "trn_X_Y.txt").write_text("3 3\n0:1 1:1.0 0:1\n1:1 0:1 2:0\n0:1\n")
    (folder / "tst_X_Y.txt").write_text("2 3\n2:1\n0:1\n")
    (folder / "filter_labels_train.txt").write_text("0 0\n0 0\n2 1\n")
    (folder / "filter_labels_test.txt").write_text("1 1\n")
    keys, offsets, content = ["A1", "A2", "A5", "L3"], [], b""
    for key in keys:
        offsets.append(len(content))
        content += key.encode() + b"\t" + base64.b64encode(f"picture of {key}".encode()) + b"\n"
    (folder / "images/img.bin").write_bytes(content)
    rows = {"train": [[1, 0], [], []], "test": [[2], []], "label": [[0], [], [3]]}
    for part, images in rows.items():
        slots = scipy.sparse.lil_matrix((len(images), 2), dtype=np.int64)
        for row, own in enumerate(images):
            for slot, image in enumerate(own):
                slots[row, slot] = offsets[image] + 1
        scipy.sparse.save_npz(folder / f"images/{part}.img.bin.npz", slots.tocsr())
    return folder


def test_the_official_multimodal_folder_becomes_a_catalogue(multimodal: Path, tmp_path: Path) -> None:
    """Titles in latin-1, several ASINs, images by slot decoded once, filters to exclude pairs - and its account."""
    target = tmp_path / "c"
    assert main([str(multimodal), str(target), "--quiet"]) == 0
    catalogue = read_catalogue(target)
    by_id = {item.id: item for item in catalogue.products}
    assert [item.id for item in catalogue.products] == ["A1", "A3", "A5", "A3~2"]
    assert by_id["A1"].title == "Café mug -> red"
    assert by_id["A1"].metadata == {"ids": ["A1", "A2"]}
    assert by_id["A3"].title == "Bowl\x85blue"
    reader = ImageReader(target)
    assert [reader.read(i) for i in by_id["A1"].images] == [b"picture of A2", b"picture of A1"]
    assert [reader.read(i) for i in catalogue.labels[2].images] == [b"picture of L3"]
    assert catalogue.labels[2].title == ""
    assert _pair_lines(target / "train.csv") == ["A1,L1", "A1,A3", "A3,L1"]
    assert _pair_lines(target / "test.csv") == ["A5,L3", "A3~2,L1"]
    assert _pair_lines(target / "exclude.csv") == ["A1,L1", "A3~2,A3"]
    assert _left_out(target) == {
        "exclude pairs given more than once": 1,
        "exclude pairs of a product that was left out": 1,
        "ids of products met before, numbered as id~2": 1,
        "images filed under an id that is not their item's (kept)": 1,
        "pairs given more than once": 1,
        "pairs of a product that was left out": 1,
        "pairs of a product with itself": 1,
        "pairs whose value is not above 0": 1,
        "products with neither title nor image": 1,
    }
    assert _source(target)["written"] == {
        "images": 4, "labels": 3, "products": 4, "pairs in train.csv": 3, "pairs in test.csv": 2, "pairs in exclude.csv": 2,
    }  # fmt: skip


def test_images_may_be_fewer_or_left_out(multimodal: Path, tmp_path: Path) -> None:
    """--max-images 1 keeps the first slot; 0 needs no img.bin, and items without a title go."""
    assert main([str(multimodal), str(tmp_path / "one"), "--quiet", "--max-images", "1"]) == 0
    one = read_catalogue(tmp_path / "one")
    assert ImageReader(tmp_path / "one").read(*one.products[0].images) == b"picture of A2"
    assert _left_out(tmp_path / "one")["images beyond the first 1 of an item"] == 1
    (multimodal / "images/img.bin").unlink()
    assert main([str(multimodal), str(tmp_path / "none"), "--quiet", "--max-images", "0"]) == 0
    assert not (tmp_path / "none/images").exists()
    assert [label.id for label in read_catalogue(tmp_path / "none").labels] == ["L1", "A3"]
    assert _left_out(tmp_path / "none")["pairs of a label that was left out"] == 1


def _json_folder(folder: Path, suffix: str = ".gz") -> Path:
    """LF-AmazonTitles-131K in small, as the raw download has it."""
    folder.mkdir()
    content: dict[str, list[dict[str, Any]]] = {
        "trn": [
            {"uid": "0001", "title": "Mog's Kittens", "content": "Judith Kerr", "target_ind": [0, 1], "target_rel": [1.0, 1.0]},
            {"uid": "0002", "title": "Tutu \u2028 pink", "content": "", "target_ind": [2, 1], "target_rel": [1.0, 0.0]},
            {"uid": "0003", "title": "Alone", "content": "x", "target_ind": [], "target_rel": []},
        ],
        "tst": [{"uid": "0004", "title": "Goodnight", "content": "Moon", "target_ind": [0], "target_rel": [1.0]}],
        "lbl": [{"uid": f"000{n}", "title": t, "content": "c"} for n, t in enumerate(["Zero", "One", "Two", "Three"])],
    }  # fmt: skip
    for name, records in content.items():
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        (folder / f"{name}.json{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    (folder / "filter_labels_test.txt").write_text("0 3\n")
    (folder / "filter_labels_train.txt").write_text("")
    return folder


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_raw_json_becomes_a_catalogue(tmp_path: Path, suffix: str) -> None:
    """uid is the id, target_ind the pairs; the label with a product's own id is no pair of it."""
    source, target = _json_folder(tmp_path / "LF", suffix), tmp_path / "c"
    assert main([str(source), str(target), "--quiet"]) == 0
    catalogue = read_catalogue(target)
    assert [item.title for item in catalogue.products] == ["Mog's Kittens", "Tutu \u2028 pink", "Alone", "Goodnight"]
    assert _pair_lines(target / "train.csv") == ["0001,0000"]
    assert _pair_lines(target / "test.csv") == ["0004,0000"]
    assert _pair_lines(target / "exclude.csv") == ["0004,0003"]
    assert _left_out(target) == {"pairs of a product with itself": 2}
    notes = " ".join(_source(target)["notes"])
    assert "3 labels are never relevant" in notes
    assert "2 products have no relevant label" in notes


def test_content_is_joined_to_the_title_where_asked(tmp_path: Path) -> None:
    """As the LF-Amazon sets are used without "Titles" in their name."""
    assert main([str(_json_folder(tmp_path / "LF")), str(tmp_path / "c"), "--quiet", "--with-content"]) == 0
    assert read_catalogue(tmp_path / "c").products[0].title == "Mog's Kittens Judith Kerr"


def test_plain_texts_and_matrices_become_a_catalogue(tmp_path: Path) -> None:
    """trn_X.txt, Y.txt and trn_filter_labels.txt, as several programs pass the sets on; ids are made."""
    source, target = tmp_path / "LF", tmp_path / "c"
    source.mkdir()
    for name, text in {
        "trn_X.txt": "mug\nbowl -> blue\n", "tst_X.txt": "vase\n", "Y.txt": "saucer\nplate\n",
        "trn_X_Y.txt": "2 2\n0:1\n\n", "tst_X_Y.txt": "1 2\n1:1\n", "tst_filter_labels.txt": "0 0\n",
    }.items():  # fmt: skip
        (source / name).write_text(text)
    assert main([str(source), str(target), "--quiet"]) == 0
    catalogue = read_catalogue(target)
    assert [(i.id, i.title) for i in catalogue.products] == [
        ("trn0", "mug"),
        ("trn1", "bowl -> blue"),
        ("tst0", "vase"),
    ]
    assert _pair_lines(target / "test.csv") == ["tst0,l1"]
    assert _pair_lines(target / "exclude.csv") == ["tst0,l0"]


def test_the_same_source_gives_the_same_bytes(multimodal: Path, tmp_path: Path) -> None:
    """Every file of it."""
    for name in ("a", "b"):
        assert main([str(multimodal), str(tmp_path / name), "--quiet"]) == 0
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 7
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def _write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def _compressed(folder: Path) -> object:
    np.savez(folder / "images/label.img.bin.npz", format=b"csc", data=[], indices=[], indptr=[])
    return None


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no titles": (lambda f: (f / "raw_data/label.raw.txt").unlink(), "has no texts of label: none of lbl.json.gz"),
    "another form": (_write("raw_data/test.raw.txt", "A5->Vase\nno arrow\n"), "test.raw.txt:2: 'no arrow' is not ASIN"),
    "header": (_write("trn_X_Y.txt", "x\n"), "trn_X_Y.txt:1: 'x' is no header"),
    "shape": (_write("trn_X_Y.txt", "4 3\n"), "trn_X_Y.txt:1: says 4 rows x 3 labels, the text files have 3 x 3"),
    "few rows": (_write("trn_X_Y.txt", "3 3\n0:1\n"), "trn_X_Y.txt:2: is the last line, the header says 3 rows"),
    "many rows": (_write("trn_X_Y.txt", "3 3\n0:1\n\n\n1:1\n"), "trn_X_Y.txt:5: is one row more than the 3"),
    "entry": (_write("trn_X_Y.txt", "3 3\nx:1\n\n\n"), "trn_X_Y.txt:2: 'x:1' is no label:value"),
    "label": (_write("trn_X_Y.txt", "3 3\n3:1\n\n\n"), "trn_X_Y.txt:2: label 3 does not lie in 0..2"),
    "filter": (_write("filter_labels_test.txt", "0 0\n2 0\n"), "filter_labels_test.txt:2: row 2, label 0 do not lie"),
    "filter form": (_write("filter_labels_test.txt", "0\n"), "filter_labels_test.txt:1: '0' is no pair"),
    "no images": (lambda f: (f / "images/img.bin").unlink(), "img.bin: is missing, 4 images lie in it"),
    "base64": (_write("images/img.bin", "A1\t*\n" * 30), "byte 0: b'A1' has broken base64"),
    "offset": (_write("images/img.bin", "x" * 400), "byte 0: found .* expected the start of a line"),
    "kind": (_compressed, "label.img.bin.npz: is stored as b'csc', expected csr"),
    "no npz": (_write("images/test.img.bin.npz", "x"), "test.img.bin.npz: is no sparse matrix"),
    "fewer texts": (_write("raw_data/test.raw.txt", "A5->Vase\n"), "has 1 lines, test.img.bin.npz 2 rows"),
    "more texts": (_write("raw_data/test.raw.txt", "A5->V\nA6->V\nA7->V\n"), "test.raw.txt:3: is one item more than the 2"),
    "no pair": (lambda f: [_write(f"{n}_X_Y.txt", h + "\n" * r)(f) for n, h, r in (("trn", "3 3\n", 3), ("tst", "2 3\n", 2))], "would have no pairs"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_place_and_leave_nothing(
    multimodal: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the message with both values, no folder and no temporary one."""
    change, message = FAULTS[fault]
    change(multimodal)
    assert main([str(multimodal), str(tmp_path / "c"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert [p.name for p in tmp_path.iterdir()] == ["MM"]


def test_json_faults_name_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong types, lists of two lengths, labels beyond the label file, no relevance at all."""
    source = _json_folder(tmp_path / "LF", "")
    for record, message in (
        ({"uid": 5, "title": "x", "target_ind": []}, '"uid" is 5'),
        ({"uid": "a", "title": "x", "target_ind": [1], "target_rel": []}, "lists of one length"),
        ({"uid": "a", "title": "x", "target_ind": ["1"]}, "expected whole numbers"),
        ({"uid": "a", "title": "x", "target_ind": [9]}, "label 9 does not lie in 0..3"),
        ({"uid": "a", "title": "x"}, 'has no "target_ind"'),
    ):
        (source / "tst.json").write_text(json.dumps(record) + "\n")
        assert main([str(source), str(tmp_path / "c"), "--quiet"]) == 1
        error = capsys.readouterr().err
        assert "tst.json:1: " in error
        assert message in error
