"""ESCI's two Parquet files in small."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from mufin.catalogue import read_catalogue
from mufin.datasets.esci import EXAMPLES_FILE, PRODUCTS_FILE, main

PYARROW: Any = importlib.import_module("pyarrow")
PARQUET: Any = importlib.import_module("pyarrow.parquet")
EXAMPLES = [
    # query, query_id, product, locale, grade, small, split
    ("red mug", 7, "B1", "us", "E", 1, "train"),
    ("red mug", 7, "B2", "us", "S", 1, "train"),
    ("red mug", 7, "B3", "us", "I", 0, "train"),
    ("red mug", 7, "B1", "us", "E", 1, "train"),
    ("vase", 3, "B1", "us", "E", 0, "test"),
    ("vase", 3, "B9", "us", "E", 1, "test"),
    ("vase", 3, "B4", "us", "E", 1, "test"),
    (" ", 5, "B1", "us", "E", 1, "test"),
    ("taza", 4, "B1", "es", "E", 1, "train"),
    ("lamp", 8, "B2", "us", "C", 1, "train"),
    ("bowl", 9, "B4", "us", "E", 1, "train"),
]
PRODUCTS = [
    ("B1", "Mug", "us", "Acme", None),
    ("B1", "Taza", "es", None, None),
    ("B1", "Mug again", "us", None, None),
    ("B2", "Cup", "us", None, "red"),
    ("B3", "Plate", "us", None, None),
    ("B4", "", "us", None, None),
]


def _write(folder: Path, examples: list[Any] = EXAMPLES, products: list[Any] = PRODUCTS) -> Path:
    folder.mkdir()
    names = ("query", "query_id", "product_id", "product_locale", "esci_label", "small_version", "split")
    rows = [{"example_id": n, **dict(zip(names, e, strict=True)), "large_version": 1} for n, e in enumerate(examples)]
    PARQUET.write_table(PYARROW.Table.from_pylist(rows), folder / EXAMPLES_FILE)
    columns = ("product_id", "product_title", "product_locale", "product_brand", "product_color")
    rows = [
        {**dict(zip(columns, p, strict=True)), "product_description": "long", "product_bullet_point": None}
        for p in products
    ]
    PARQUET.write_table(PYARROW.Table.from_pylist(rows), folder / PRODUCTS_FILE)
    return folder


def _pairs(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def test_exact_judgements_become_pairs_of_their_split(tmp_path: Path) -> None:
    """One locale, queries as labels, the first description of a product; what goes is counted."""
    target = tmp_path / "c"
    assert main([str(_write(tmp_path / "esci")), str(target), "--quiet"]) == 0
    catalogue = read_catalogue(target)
    assert [(i.id, i.title, dict(i.metadata)) for i in catalogue.products] == [("B1", "Mug", {"brand": "Acme"})]
    assert [(i.id, i.title) for i in catalogue.labels] == [("7", "red mug"), ("3", "vase")]
    assert _pairs(target / "train.csv") == ["B1,7"]
    assert _pairs(target / "test.csv") == ["B1,3"]
    account = json.loads((target / "source.json").read_text())
    assert {e["reason"]: e["count"] for e in account["left_out"]} == {
        "judged products that shopping_queries_dataset_products.parquet does not have": 1,
        "judgements given more than once": 1,
        "judgements of a locale that is not us": 1,
        "judgements of grade C": 1,
        "judgements of grade I": 1,
        "judgements of grade S": 1,
        "pairs of a label that was left out": 1,
        "pairs of a product that was left out": 3,
        "products described before (the first is kept)": 1,
        "products of another locale, or without a relevant query": 3,
        "products with an empty title": 1,
        "queries with an empty text": 1,
        "queries without a relevant product": 1,
    }
    assert "1 products are in train and test" in account["notes"][-1]


def test_grades_locale_and_version_can_be_chosen(tmp_path: Path) -> None:
    """E,S adds substitutes; small leaves out what only the large version has."""
    source = _write(tmp_path / "esci")
    assert main([str(source), str(tmp_path / "es"), "--quiet", "--locale", "es"]) == 0
    assert [i.title for i in read_catalogue(tmp_path / "es").products] == ["Taza"]
    assert main([str(source), str(tmp_path / "s"), "--quiet", "--grades", "E,S", "--version", "small"]) == 0
    assert _pairs(tmp_path / "s/train.csv") == ["B1,7", "B2,7"]
    assert not (tmp_path / "s/test.csv").exists()


def test_splits_can_be_cut_by_products(tmp_path: Path) -> None:
    """All pairs of a product are then in one split, and queries are seen in training."""
    examples = [(f"q{n % 5}", n % 5, f"B{n}", "us", "E", 1, ("train", "test")[n % 2]) for n in range(200)]
    products = [(f"B{n}", f"title {n}", "us", None, None) for n in range(200)]
    source = _write(tmp_path / "esci", examples, products)
    assert main([str(source), str(tmp_path / "c"), "--quiet", "--split-by-product", "--test", "0.3"]) == 0
    splits = {s: {line.split(",")[0] for line in _pairs(tmp_path / f"c/{s}.csv")} for s in ("train", "valid", "test")}
    assert 35 < len(splits["test"]) < 85
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 200
    assert len(read_catalogue(tmp_path / "c").labels) == 5


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (("mug", 7, "B1", "us", "X", 1, "train"), ":2: esci_label is 'X'"),
        (("mug", 7, "B1", "us", "E", 1, "dev"), ":2: split is 'dev'"),
        (("mug", 7, "B1", "us", "E", 1, "train"), ":2: query 7 is 'mug', before it was 'red mug'"),
        (("mug", 6, " B1", "us", "E", 1, "train"), ":2: product_id ' B1'"),
        ((None, 6, "B1", "us", "E", 1, "train"), ":2: query_id 6, query None"),
    ],
)
def test_faults_name_the_row(
    tmp_path: Path, example: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the value, and nothing left behind."""
    assert main([str(_write(tmp_path / "esci", [EXAMPLES[0], example])), str(tmp_path / "c"), "--quiet"]) == 1
    assert EXAMPLES_FILE + message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["esci"]


def test_a_locale_that_is_not_there_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In place of an empty catalogue; a grade that does not exist is refused at once."""
    source = _write(tmp_path / "esci")
    assert main([str(source), str(tmp_path / "c"), "--quiet", "--locale", "fr"]) == 1
    assert "'judgements of a locale that is not fr': 11" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(source), str(tmp_path / "c"), "--grades", "E,X"])
    assert "--grades E,X" in capsys.readouterr().err
