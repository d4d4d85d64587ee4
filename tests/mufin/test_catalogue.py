"""Catalogue folders: what is read, every fault with its own message, and the cut of a validation split."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mufin.catalogue import (
    Catalogue,
    Item,
    Relevance,
    Split,
    ensure_validation,
    read_catalogue,
    read_items,
    without_labels,
)
from mufin.errors import CatalogueError

DATA = Path(os.environ.get("MUFIN_DATA_DIR", Path(__file__).parents[2] / "../shared/data"))
HEADER = "product_id,label_id\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three products, two labels, one picture; every file in order."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"picture")
    (tmp_path / "images/p.bin").write_bytes(b"pictures")
    _write_items(
        tmp_path / "products.jsonl",
        {"id": "a", "title": "Mug", "images": ["images/a.png", "https://shop.example/a.jpg"], "price": 3},
        {"id": "b", "title": "Böwl\u2028two"},
        {"id": "c", "title": "", "images": ["images/a.png"]},
    )
    _write_items(tmp_path / "labels.jsonl", {"id": "q", "title": "red mug"}, {"id": "r", "title": "bowl"})
    (tmp_path / "train.csv").write_text(HEADER + "b,r\na,q\nb,q\n")
    (tmp_path / "test.csv").write_text(HEADER + "c,q\n")
    return tmp_path


def _write_items(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def test_a_folder_becomes_items_splits_and_exclusions(folder: Path) -> None:
    """Ids become rows in order of first appearance; other keys stay as metadata; files that may be absent may be."""
    (folder / "exclude.csv").write_text(HEADER + "c,r\n")
    catalogue = read_catalogue(folder)
    assert catalogue.products[0] == Item("a", "Mug", ("images/a.png", "https://shop.example/a.jpg"), {"price": 3})
    assert [label.title for label in catalogue.labels] == ["red mug", "bowl"]
    assert not catalogue.products_are_labels
    assert list(catalogue.splits) == ["train", "test"]
    assert catalogue.splits["train"].products.tolist() == [1, 0]
    assert catalogue.splits["train"].relevance.row(0).tolist() == [0, 1]
    assert catalogue.exclude.to_pairs()[0].tolist() == [2]


def test_images_may_be_parts_of_a_packed_file(folder: Path) -> None:
    """Only the size of the pack is looked at."""
    _product(2, id="b", title="", images=["images/p.bin#0+7", "images/p.bin#7+1"])(folder)
    assert read_catalogue(folder).products[1].images == ("images/p.bin#0+7", "images/p.bin#7+1")


def test_without_a_labels_file_the_products_are_the_labels(folder: Path) -> None:
    """Product-to-product: pairs name products on both sides."""
    (folder / "labels.jsonl").unlink()
    (folder / "train.csv").write_text(HEADER + "a,b\n")
    (folder / "test.csv").unlink()
    catalogue = read_catalogue(folder)
    assert catalogue.products_are_labels
    assert catalogue.labels is catalogue.products


def test_bom_quotes_carriage_returns_and_column_order_are_understood(folder: Path) -> None:
    """What spreadsheet programs write is read."""
    (folder / "train.csv").write_bytes('\ufefflabel_id,product_id\r\n"r","b"\r\n'.encode())
    assert read_catalogue(folder).splits["train"].products.tolist() == [1]


def _line(name: str, line: int, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        lines = path.read_bytes().split(b"\n")
        lines[line - 1] = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(b"\n".join(lines))

    return change


def _file(name: str, content: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content)

    return change


def _product(line: int, **values: Any) -> Callable[[Path], None]:
    return _line("products.jsonl", line, json.dumps(values))


FAULTS = {
    "empty title without image": (_product(2, id="b", title=" \u200b"), "products.jsonl:2", "empty title and no image"),
    "no title": (_product(2, id="b"), "products.jsonl:2", 'has no "title"'),
    "title of a wrong type": (_product(2, id="b", title=7), "products.jsonl:2", "is 7; write it as a string"),
    "no id": (_product(2, title="x"), "products.jsonl:2", 'has no "id"'),
    "id of a wrong type": (_product(2, id=5, title="x"), "products.jsonl:2", "in quotes"),
    "id with white space": (_product(2, id="b ", title="x"), "products.jsonl:2", "white space"),
    "duplicate id": (_product(2, id="a", title="x"), "products.jsonl:2", "is also on line 1"),
    "images of a wrong type": (_product(2, id="b", title="x", images="i.png"), "products.jsonl:2", "write a list"),
    "image of a wrong type": (_product(2, id="b", title="x", images=[1]), "products.jsonl:2", "is no string"),
    "missing pack": (_product(2, id="b", title="x", images=["z.bin#0+1"]), "products.jsonl:2", "'z.bin' of packed"),
    "short pack": (
        _product(2, id="b", title="x", images=["images/p.bin#2+9"]),
        "products.jsonl:2",
        "ends at byte 11, 'images/p.bin' has 8",
    ),
    "empty packed image": (_product(2, id="b", title="x", images=["images/p.bin#2+0"]), "products.jsonl:2", "no bytes"),
    "missing image": (_product(2, id="b", title="x", images=["images/z.png"]), "products.jsonl:2", "is missing"),
    "image above the folder": (_product(2, id="b", title="x", images=["../z.png"]), "products.jsonl:2", "leaves the"),
    "absolute image": (_product(2, id="b", title="x", images=["/etc/z.png"]), "products.jsonl:2", "leaves the"),
    "image of another scheme": (
        _product(2, id="b", title="x", images=["s3://z/y"]),
        "products.jsonl:2",
        "neither http",
    ),
    "URL without host": (_product(2, id="b", title="x", images=["http:///y"]), "products.jsonl:2", "has no host"),
    "empty image name": (_product(2, id="b", title="x", images=[""]), "products.jsonl:2", "empty name"),
    "backslash": (_product(2, id="b", title="x", images=["images\\a.png"]), "products.jsonl:2", "forward slashes"),
    "broken UTF-8": (_line("products.jsonl", 2, b'{"id": "b\xff"}'), "products.jsonl:2", "byte 10 (0xff) is no UTF-8"),
    "bad JSON": (_line("products.jsonl", 2, '{"id": "b",'), "products.jsonl:2", "no JSON: "),
    "NaN": (_line("products.jsonl", 2, '{"id": "b", "title": "x", "p": NaN}'), "products.jsonl:2", "NaN is no JSON"),
    "infinite number": (
        _line("products.jsonl", 2, '{"id": "b", "title": "x", "size": {"cm": [1, 1e400]}}'),
        "products.jsonl:2",
        "size.cm[1] is inf, not finite; write a number below",
    ),
    "integer beyond 64 bits": (
        _product(2, id="b", title="x", ean=2**64),
        "products.jsonl:2",
        "ean is 18446744073709551616, an integer lies in -9223372036854775808..18446744073709551615; write it as text",
    ),
    "integer below 64 bits": (_product(2, id="b", title="x", n=-(2**63) - 1), "products.jsonl:2", "n is -92233720368"),
    "integer beyond a float": (_product(2, id="b", title="x", n=10**400), "products.jsonl:2", "(of 401 characters)"),
    "half a character": (_line("products.jsonl", 2, r'{"id": "b", "title": "\ud800"}'), "products.jsonl:2", "alone"),
    "no object": (_line("products.jsonl", 2, "[1]"), "products.jsonl:2", "is a JSON list"),
    "empty line": (_line("products.jsonl", 2, ""), "products.jsonl:2", "the line is empty"),
    "no products": (_file("products.jsonl", ""), "products.jsonl", "holds no products"),
    "no products file": (_file("products.jsonl", None), "products.jsonl", "is missing"),
    "fault in a label": (_line("labels.jsonl", 2, '{"id": "q", "title": "x"}'), "labels.jsonl:2", "is also on line 1"),
    "unknown product": (_line("train.csv", 3, "z,q"), "train.csv:3", "unknown product_id 'z'; add it to products"),
    "unknown label": (_line("train.csv", 3, "a,z"), "train.csv:3", "unknown label_id 'z'; add it to labels"),
    "product where a label is due": (_line("train.csv", 3, "a,b"), "train.csv:3", "it is a product"),
    "label where a product is due": (_line("train.csv", 3, "q,a"), "train.csv:3", "it is a label"),
    "white space in a pair": (_line("train.csv", 3, "a, q"), "train.csv:3", "without the white space"),
    "missing column": (_line("train.csv", 1, "product_id,label"), "train.csv:1", "column label_id is missing"),
    "unknown column": (_line("train.csv", 1, "product_id,label_id,n"), "train.csv:1", "remove what is not read"),
    "too many fields": (_line("train.csv", 3, "a,q,1"), "train.csv:3", "3 fields instead of 2"),
    "empty field": (_line("train.csv", 3, "a,"), "train.csv:3", "label_id is empty"),
    "open quote": (_line("train.csv", 3, '"a,q'), "train.csv:4", "no CSV"),
    "broken UTF-8 in a pair": (_line("train.csv", 3, b"a,q\xc3"), "train.csv:3", "no UTF-8"),
    "duplicate pair": (_line("train.csv", 4, "b,r"), "train.csv:4", "the pair is also on line 2"),
    "pair in two splits": (_line("test.csv", 2, "a,q"), "test.csv:2", "the pair a,q is also in train.csv:3"),
    "empty split": (_file("train.csv", HEADER), "train.csv", "the train split is empty"),
    "empty file": (_file("train.csv", ""), "train.csv:1", "begin with the header"),
    "two forms of one table": (_file("train.parquet", "x"), "train.csv", "train.parquet is there, too"),
    "broken Parquet": (_file("exclude.parquet", "x"), "exclude.parquet", "no Parquet file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_its_file_line_and_remedy(folder: Path, name: str) -> None:
    """Each kind of fault alone in a good folder is found at its place, with its own message."""
    change, place, message = FAULTS[name]
    change(folder)
    with pytest.raises(CatalogueError) as caught:
        read_catalogue(folder)
    assert str(caught.value).startswith(f"{folder}/{place}: ")
    assert message in str(caught.value)


def test_no_split_at_all_and_no_folder_are_faults(folder: Path) -> None:
    """The message says what to write or give."""
    (folder / "train.csv").unlink()
    (folder / "test.csv").unlink()
    with pytest.raises(CatalogueError, match="write the relevant pairs"):
        read_catalogue(folder)
    with pytest.raises(CatalogueError, match="is no folder"):
        read_catalogue(folder / "absent")


def test_many_faults_are_listed_in_one_error_up_to_twenty(folder: Path) -> None:
    """One run shows what is wrong on many lines; the error's place is that of the first."""
    (folder / "train.csv").write_text(HEADER + "".join(f"z{n},q\n" for n in range(30)))
    with pytest.raises(CatalogueError) as caught:
        read_catalogue(folder)
    assert caught.value.line == 2
    assert "train.csv:21:" in str(caught.value)
    assert "train.csv:22:" not in str(caught.value)
    assert str(caught.value).endswith("and 10 more")


def test_parquet_is_read_like_the_text_form(folder: Path) -> None:
    """The same tables as Parquet give the same catalogue; a value JSON cannot say is a fault with its row."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    expected = read_catalogue(folder)
    records = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "labels.parquet")
    parquet.write_table(
        pyarrow.table({"product_id": ["b", "a", "b"], "label_id": ["r", "q", "q"]}), folder / "train.parquet"
    )
    (folder / "labels.jsonl").unlink()
    (folder / "train.csv").unlink()
    catalogue = read_catalogue(folder)
    assert catalogue.labels == expected.labels
    assert catalogue.splits["train"].relevance.indices.tolist() == [0, 1, 0]
    bad = pyarrow.table({"id": ["q"], "title": ["x"], "photo": [b"\0"]})
    parquet.write_table(bad, folder / "labels.parquet")
    with pytest.raises(CatalogueError, match=r"labels\.parquet:1: column photo holds a bytes"):
        read_catalogue(folder)


def test_numbers_that_an_answer_can_hold_are_kept(folder: Path) -> None:
    """To the last: 64 bits, signed or not, and the largest float."""
    values = {"low": -(2**63), "high": 2**64 - 1, "large": 1.7e308, "yes": True, "none": None}
    _write_items(folder / "products.jsonl", {"id": "a", "title": "x", **values})
    assert read_items(folder / "products.jsonl")[0].metadata == values


def test_a_number_that_is_not_finite_is_refused_in_parquet_too(folder: Path) -> None:
    """With its row, wherever it stands in the value."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "labels.jsonl").unlink()
    rows = [{"id": "q", "title": "x", "s": [{"w": 1.0}]}, {"id": "r", "title": "y", "s": [{"w": float("inf")}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "labels.parquet")
    with pytest.raises(CatalogueError, match=r"labels\.parquet:2: s\[0\]\.w is inf, not finite; write a number below"):
        read_catalogue(folder)


def test_parquet_without_pyarrow_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow belongs to the extra `train`; without it text tables still work."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert read_catalogue(folder).products
    (folder / "exclude.parquet").write_bytes(b"x")
    with pytest.raises(CatalogueError, match=r"install mufin\[train\]"):
        read_catalogue(folder)


def _product_catalogue(folder: Path, titles: list[str], pairs: list[tuple[int, int]], labels: int) -> Catalogue:
    products = [Item(f"p{n}", title) for n, title in enumerate(titles)]
    rows, columns = (np.array([p[i] for p in pairs], dtype=np.int64) for i in range(2))
    relevance = Relevance.from_pairs(rows, columns, len(titles), labels)
    train = Split(np.arange(len(titles), dtype=np.int64), relevance)
    names = [Item(f"l{n}", f"label {n}") for n in range(labels)]
    none = Relevance.from_pairs(rows[:0], rows[:0], len(titles), labels)
    return Catalogue(folder, products, names, False, {"train": train}, none)


def test_validation_keeps_equal_titles_on_one_side_and_labels_fed(tmp_path: Path) -> None:
    """About a tenth leaves train; variants of a title stay together; every label keeps at least half of its pairs."""
    titles = [f"{'Mug' if n % 2 else 'MUG '} no {n // 3}" for n in range(300)]
    catalogue = _product_catalogue(tmp_path, titles, [(n, (n + s) % 17) for n in range(300) for s in (0, 3)], 17)
    cut = ensure_validation(catalogue, 0.1, seed=1)
    train, valid = cut.splits["train"], cut.splits["valid"]
    assert 24 <= len(valid.products) <= 30
    assert sorted([*train.products, *valid.products]) == list(range(300))

    def groups(split: Split) -> set[str]:
        return {" ".join(titles[row].casefold().split()) for row in split.products}

    assert not groups(train) & groups(valid)
    before = catalogue.splits["train"].relevance.label_frequency()
    assert np.all(train.relevance.label_frequency() * 2 >= before)
    again = ensure_validation(catalogue, 0.1, seed=1).splits["valid"].products
    assert (
        valid.products.tolist()
        == again.tolist()
        != ensure_validation(catalogue, 0.1, 2).splits["valid"].products.tolist()
    )


def test_a_label_with_one_pair_keeps_it(tmp_path: Path) -> None:
    """Half of the products own a label nobody else has: none of them is taken."""
    pairs = [(n, n if n < 50 else 50) for n in range(100)]
    cut = ensure_validation(_product_catalogue(tmp_path, [f"t{n}" for n in range(100)], pairs, 51), 0.2)
    assert len(cut.splits["valid"].products) == 20
    assert min(cut.splits["valid"].products) >= 50


def test_products_that_are_no_labels_are_validated_on_first(tmp_path: Path) -> None:
    """Labels themselves only where the others do not suffice; equal titles still stay together."""
    pairs = [(n, (n + step) % 60) for n in range(100) for step in (1, 2, 3, 4)]
    whole = _product_catalogue(tmp_path, [f"t{n % 97}" for n in range(100)], pairs, 60)
    whole = replace(whole, labels=whole.products[:60])
    few = set(ensure_validation(whole, 0.2).splits["valid"].products.tolist())
    assert len(few) == 20 and min(few) >= 60 and not few & {97, 98, 99}  # they share a title with a label
    many = set(ensure_validation(whole, 0.45).splits["valid"].products.tolist())
    assert set(range(60, 97)) <= many and min(many) < 60


def test_labels_taken_away_take_their_pairs_along(folder: Path) -> None:
    """Exclusions, too; the other labels keep theirs under new numbers, and products without a pair leave their split."""
    whole = read_catalogue(folder)
    assert without_labels(whole, {"no such label"}) is whole
    gone = whole.labels[0].id
    part = without_labels(whole, {gone})
    assert [label.id for label in part.labels] == [label.id for label in whole.labels[1:]]
    assert part.products == whole.products and not part.products_are_labels

    def named(catalogue: Catalogue, rows: np.ndarray, relevance: Relevance) -> set[tuple[str, str]]:
        pairs = zip(*relevance.to_pairs(), strict=True)
        return {(catalogue.products[int(rows[row])].id, catalogue.labels[int(label)].id) for row, label in pairs}

    for name, split in whole.splits.items():
        own = part.splits[name]
        left = {pair for pair in named(whole, split.products, split.relevance) if pair[1] != gone}
        assert named(part, own.products, own.relevance) == left
        assert own.relevance.row_sizes().min(initial=1) > 0 and own.relevance.label_count == len(part.labels)
    everything = np.arange(len(whole.products))
    left = {pair for pair in named(whole, everything, whole.exclude) if pair[1] != gone}
    assert named(part, everything, part.exclude) == left


def test_a_catalogue_with_validation_is_left_alone_and_an_uncuttable_one_refused(tmp_path: Path) -> None:
    """A given valid split wins; one title cannot be cut in two; without train there is nothing to cut."""
    single = _product_catalogue(tmp_path, ["a", "A"], [(0, 0), (1, 0)], 1)
    with pytest.raises(CatalogueError, match=r"add valid\.csv"):
        ensure_validation(single)
    train = single.splits["train"]
    given = Catalogue(tmp_path, single.products, single.labels, False, {"valid": train}, single.exclude)
    assert ensure_validation(given) is given
    with pytest.raises(CatalogueError, match="no validation split"):
        ensure_validation(Catalogue(tmp_path, single.products, single.labels, False, {"test": train}, single.exclude))


@pytest.mark.parametrize("name", ["ikea", "myntra_queries", "amazon_intents", "amazon_sessions", "magento"])
def test_real_catalogues_are_read_without_a_fault(name: str) -> None:
    """The development catalogues pass every check, and a validation split can be cut from each."""
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent; set MUFIN_DATA_DIR")
    catalogue = read_catalogue(DATA / name)
    assert {"train", "valid"} <= set(catalogue.splits)
    own = Catalogue(
        catalogue.folder, catalogue.products, catalogue.labels, False, {"train": catalogue.splits["train"]},
        catalogue.exclude,
    )  # fmt: skip
    wanted = 0.1 * len(catalogue.splits["train"].products)
    assert 0.9 * wanted <= len(ensure_validation(own).splits["valid"].products) <= wanted + 1
