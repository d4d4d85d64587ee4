"""A catalogue in the making: pairs merged on disk, packed images, and nothing half written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mufin.catalogue import read_catalogue
from mufin.datasets import pair_spool
from mufin.datasets.catalogue_folder import TEST, TRAIN, VALID, CatalogueFolder, check_id, split_of
from mufin.datasets.image_pack import ImagePack
from mufin.datasets.pair_spool import PairSpool
from mufin.errors import CatalogueError
from mufin.image_source import ImageReader


@pytest.mark.parametrize(
    ("compact_bytes", "part_bytes"), [(1 << 25, 1 << 23), (256, 1 << 23), (256, 100), (1 << 25, 1)]
)
def test_pairs_are_merged_whatever_is_written_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compact_bytes: int, part_bytes: int
) -> None:
    """Counts add up and splits join as a Counter has it, with many flushes, many buckets, compacted or not."""
    monkeypatch.setattr(pair_spool, "_WAITING_PAIRS", 64)
    monkeypatch.setattr(pair_spool, "_COMPACT_BYTES", compact_bytes)
    monkeypatch.setattr(pair_spool, "_PART_BYTES", part_bytes)
    random = np.random.default_rng(0)
    spool, counts, splits = (
        PairSpool(tmp_path / "s", bucket_shift=3),
        Counter[tuple[int, int]](),
        Counter[tuple[int, int]](),
    )
    for product, label, split, count in random.integers(0, [40, 9, 3, 5], (3000, 4)).tolist():
        spool.add(product, label, split, count)
        counts[product, label] += count
        splits[product, label] |= 1 << split
    for _ in range(2):
        merged = [
            row
            for m in spool.merged()
            for row in zip(m.products.tolist(), m.labels.tolist(), m.counts.tolist(), m.splits.tolist(), strict=True)
        ]
        assert merged == [(*pair, counts[pair], splits[pair]) for pair in sorted(counts)]
    assert spool.added == 3000


def test_a_pair_of_several_splits_stays_in_the_first(tmp_path: Path) -> None:
    """Catalogues refuse a pair that is trained on and scored."""
    with CatalogueFolder(tmp_path / "c", "x", {}, []) as folder:
        spool = PairSpool(folder.scratch / "p")
        for split in (TEST, VALID, TRAIN):
            spool.add(0, 1, split)
        spool.add(0, 2, TEST)
        with folder.items("products") as file:
            for name in "abc":
                file.write(name, name)
        folder.write_pairs(spool.merged(), ["a", "b", "c"], ["a", "b", "c"])
    assert (tmp_path / "c/train.csv").read_text() == "product_id,label_id\na,b\n"
    assert (tmp_path / "c/test.csv").read_text() == "product_id,label_id\na,c\n"
    assert not (tmp_path / "c/valid.csv").exists()
    read_catalogue(tmp_path / "c")
    source = json.loads((tmp_path / "c/source.json").read_text())
    assert source["left_out"] == [
        {"reason": "pairs of two splits, kept in the first of train, valid, test", "count": 1}
    ]
    assert source["notes"] == ["1 labels are in valid or test and in no training pair"]


def _fail_half_way(folder: Path) -> None:
    (folder / "file").write_text("x")
    (folder / "file/inside").write_text("y")


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    """Neither the folder nor the one it was written in."""
    folder = CatalogueFolder(tmp_path / "deep/c", "x", {}, [])
    with pytest.raises(NotADirectoryError), folder:
        _fail_half_way(folder.folder)
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    """Also one that came while writing, also a dangling link."""
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(CatalogueError, match="is there already"), CatalogueFolder(tmp_path / "link", "x", {}, []):
        pass
    with pytest.raises(CatalogueError, match="is there already"), CatalogueFolder(tmp_path / "c", "x", {}, []):
        (tmp_path / "c").mkdir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "link"]


def test_packed_images_are_read_back(tmp_path: Path) -> None:
    """Each name gives the bytes that were added; no image, no file."""
    with ImagePack(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
    contents = [b"abc", b"\0" * 10, b"z"]
    with ImagePack(tmp_path) as pack:
        names = [pack.add(content) for content in contents]
        with pytest.raises(ValueError, match="without bytes"):
            pack.add(b"")
    assert names[1] == "images/images.bin#3+10"
    assert [ImageReader(tmp_path).read(name) for name in names] == contents


def test_lone_surrogates_are_written_as_question_marks(tmp_path: Path) -> None:
    """A JSON escape can smuggle in half a character, which no UTF-8 file can hold."""
    with CatalogueFolder(tmp_path / "c", "x", {}, []) as folder, folder.items("products") as file:
        file.write("a", "mug \ud800")
    assert json.loads((tmp_path / "c/products.jsonl").read_text()) == {"id": "a", "title": "mug ?"}
    assert folder.account.left_out() == {"characters of products that are none (lone surrogates), written as ?": 1}


@pytest.mark.parametrize("item_id", [None, 5, "", " a", "a\n", "\ud800"])
def test_ids_that_a_catalogue_refuses_are_refused(item_id: object) -> None:
    """With the place in the source."""
    with pytest.raises(CatalogueError, match=r"meta:7: asin .*"):
        check_id(item_id, Path("meta"), 7, "asin")


def test_equal_titles_stay_on_one_side_and_shares_are_kept() -> None:
    """By a hash: the same in every run; case and white space aside."""
    splits = Counter(split_of(f"title {n}", "", 0.1, 0.2) for n in range(5000))
    assert splits[VALID] == pytest.approx(500, abs=70)
    assert splits[TEST] == pytest.approx(1000, abs=90)
    assert split_of("Red  Mug", "a", 0.3, 0.3) == split_of("red mug", "b", 0.3, 0.3)
    assert len({split_of("", f"id{n}", 0.3, 0.3) for n in range(50)}) == 3
    assert [split_of(f"title {n}", "", 0.3, 0.3) for n in range(6)] == [1, 1, 0, 1, 2, 2]
