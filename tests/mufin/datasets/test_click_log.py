"""Click logs of every kind of file, with columns of any name."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mufin.catalogue import read_catalogue
from mufin.datasets.click_log import main
from mufin.image_source import ImageReader

PYARROW: Any = importlib.import_module("pyarrow")
PARQUET: Any = importlib.import_module("pyarrow.parquet")
NO_SPLIT = ["--quiet", "--valid", "0", "--test", "0"]
LOG = [
    ("p1", "Red  Mug", 3), ("p1", "red mug", 2), ("p2", "RED MUG", 1), ("p2", "bowl", 9), ("p9", "bowl", 4),
    ("p1", " ", 4), ("p1", "bowl", 0), ("p4", "bowl", 5),
]  # fmt: skip
PRODUCTS = [
    ("p1", "A mug", "img/1.png|https://h.example/1.jpg"),
    ("p2", "A bowl", "img/none.png"),
    ("p3", "Unclicked", ""),
    ("p4", "", ""),
]


def _table(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    records = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        PARQUET.write_table(PYARROW.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    return path


def _pairs(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_log_and_a_table_become_a_catalogue(tmp_path: Path, suffix: str) -> None:
    """Counts of one pair add up over spellings; below the minimum it goes; pictures are packed."""
    (tmp_path / "img").mkdir()
    (tmp_path / "img/1.png").write_bytes(b"png")
    log = _table(tmp_path / f"log.{suffix}", ("asin", "text", "clicks"), LOG)
    table = _table(tmp_path / f"shop.{suffix}", ("sku", "name", "pictures"), PRODUCTS)
    command = [
        str(log),
        str(tmp_path / "c"),
        "--products",
        str(table),
        "--product-column",
        "asin",
        "--query-column",
        "text",
    ]
    command += ["--count-column", "clicks", "--minimum", "5", "--id-column", "sku", "--title-column", "name"]
    assert main([*command, "--images-column", "pictures", *NO_SPLIT]) == 0
    catalogue = read_catalogue(tmp_path / "c")
    assert [(i.id, i.title) for i in catalogue.products] == [("p1", "A mug"), ("p2", "A bowl")]
    assert [(i.id, i.title) for i in catalogue.labels] == [("red mug", "red mug"), ("bowl", "bowl")]
    assert _pairs(tmp_path / "c/train.csv") == ["p1,red mug", "p2,bowl"]
    packed, url = catalogue.products[0].images
    assert ImageReader(tmp_path / "c").read(packed) == b"png"
    assert url == "https://h.example/1.jpg"
    account = json.loads((tmp_path / "c/source.json").read_text())
    assert account["left_out"] == [
        {"reason": "images that are missing or empty", "count": 1, "first": f"shop.{suffix}:{3 if suffix == 'csv' else 2}"},
        {"reason": "lines of a product that the table does not have", "count": 1, "first": f"log.{suffix}:{6 if suffix == 'csv' else 5}"},
        {"reason": "lines whose count is 0", "count": 1, "first": f"log.{suffix}:{8 if suffix == 'csv' else 7}"},
        {"reason": "lines without a query", "count": 1, "first": f"log.{suffix}:{7 if suffix == 'csv' else 6}"},
        {"reason": "pairs of a count below 5", "count": 1},
        {"reason": "pairs of a product that was left out", "count": 1},
        {"reason": "products with neither title nor image", "count": 1, "first": f"shop.{suffix}:{5 if suffix == 'csv' else 4}"},
        {"reason": "products without a query that is kept", "count": 1},
    ]  # fmt: skip


def _simple(tmp_path: Path, log: Sequence[Sequence[Any]], products: Sequence[Sequence[Any]]) -> list[str]:
    table = _table(tmp_path / "shop.jsonl", ("id", "title", "price"), products)
    return [
        str(_table(tmp_path / "log.jsonl", ("product_id", "query"), log)),
        str(tmp_path / "c"),
        "--products",
        str(table),
    ]


def test_without_counts_each_line_is_one(tmp_path: Path) -> None:
    """Several lines of one pair reach the minimum; case can be kept; metadata columns stay; whole numbers are ids."""
    log = [(1, "Mug"), (1, "Mug"), (1, "mug"), (2, "Mug"), (2, "Mug")]
    command = _simple(tmp_path, log, [(1, "a", 3.5), (2, "b", None)])
    assert main([*command, *NO_SPLIT, "--minimum", "2", "--keep-case", "--metadata-columns", "price"]) == 0
    catalogue = read_catalogue(tmp_path / "c")
    assert [(i.id, dict(i.metadata)) for i in catalogue.products] == [("1", {"price": 3.5}), ("2", {})]
    assert _pairs(tmp_path / "c/train.csv") == ["1,Mug", "2,Mug"]


def test_a_query_needs_products_enough(tmp_path: Path) -> None:
    """--minimum-products counts different products with a pair that is kept."""
    log = [("1", "mug"), ("1", "mug"), ("2", "mug"), ("2", "bowl"), ("1", "bowl"), ("2", "vase")]
    command = _simple(tmp_path, log, [("1", "a", 1), ("2", "b", 2)])
    assert main([*command, *NO_SPLIT, "--minimum-products", "2"]) == 0
    assert [label.id for label in read_catalogue(tmp_path / "c").labels] == ["mug", "bowl"]


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Most often the id columns do not fit."""
    assert main([*_simple(tmp_path, [("x", "mug")], [("1", "a", 1)]), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "would have no pairs" in error
    assert "'lines of a product that the table does not have': 1" in error


@pytest.mark.parametrize(
    ("log", "products", "message"),
    [
        ([("1", "mug", -1)], [("1", "a", "")], "log.jsonl:1: count is -1, expected a whole number"),
        ([("1", "mug", "x")], [("1", "a", "")], "log.jsonl:1: count is 'x'"),
        ([("1", "mug", 1.5)], [("1", "a", "")], "log.jsonl:1: count is 1.5"),
        ([("1", "mug", None)], [("1", "a", "")], "log.jsonl:1: count is None"),
        ([("1", ["mug"], 1)], [("1", "a", "")], "log.jsonl:1: product_id is '1', query is ['mug']"),
        ([], [("1", "a", ""), ("1", "b", "")], "shop.jsonl:2: product '1' is described twice"),
        ([], [(" 1", "a", "")], "shop.jsonl:1: id ' 1' is empty, has white space"),
        ([], [("1", 7, "")], "shop.jsonl:1: title is 7"),
        ([], [("1", "a", "../x.png")], "shop.jsonl:1: image path '../x.png' leaves"),
        ([], [("1", "a", 5)], "shop.jsonl:1: images is 5"),
    ],
)
def test_faults_name_the_line(
    tmp_path: Path, log: list[Any], products: list[Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the value, and nothing left behind."""
    table = _table(tmp_path / "shop.jsonl", ("id", "title", "images"), products)
    source = _table(tmp_path / "log.jsonl", ("product_id", "query", "count"), log)
    command = [str(source), str(tmp_path / "c"), "--products", str(table), "--quiet"]
    assert main([*command, "--count-column", "count", "--images-column", "images"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["id", "title", "images"])
def test_what_makes_an_item_is_no_metadata(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of that name beside --id-column would give products other products' ids."""
    table = _table(tmp_path / "shop.jsonl", ("sku", "name", name), [("1", "a", "2"), ("2", "b", "1")])
    log = _table(tmp_path / "log.jsonl", ("product_id", "query"), [("1", "mug"), ("2", "bowl")])
    command = [str(log), str(tmp_path / "c"), "--products", str(table), "--id-column", "sku", "--title-column", "name"]
    assert main([*command, *NO_SPLIT, "--metadata-columns", f"name,{name}"]) == 1
    error = capsys.readouterr().err
    assert f"shop.jsonl: --metadata-columns names {name!r}, which is no metadata" in error and error.count("\n") == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("price", "bits"), [(2**64, 65), (-(2**63) - 1, 64), (2**9999, 10_000)], ids=["above", "below", "far"]
)
def test_numbers_that_no_catalogue_takes_are_refused_with_their_place(
    price: int, bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The catalogue would be written, and then refused by whoever reads it."""
    command = _simple(tmp_path, [("1", "mug"), ("2", "mug")], [("1", "a", 2**64 - 1), ("2", "b", price)])
    assert main([*command, *NO_SPLIT, "--metadata-columns", "price"]) == 1
    error = capsys.readouterr().err
    assert f"shop.jsonl:2: price is an integer of {bits} bits, metadata lie in" in error and "write it as text" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_the_largest_numbers_are_read_back(tmp_path: Path) -> None:
    """Both ends of what a catalogue takes."""
    command = _simple(tmp_path, [("1", "mug"), ("2", "mug")], [("1", "a", 2**64 - 1), ("2", "b", -(2**63))])
    assert main([*command, *NO_SPLIT, "--metadata-columns", "price"]) == 0
    assert [item.metadata["price"] for item in read_catalogue(tmp_path / "c").products] == [2**64 - 1, -(2**63)]


def test_the_account_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written and what was left out, with the first place of each."""
    command = _simple(tmp_path, [("1", "mug"), ("7", "mug")], [("1", "a", 1)])
    assert main([*command, *NO_SPLIT]) == 0
    out = capsys.readouterr().out
    assert "1  pairs in train.csv" in out
    assert "1  lines of a product that the table does not have (first: log.jsonl:2)" in out
