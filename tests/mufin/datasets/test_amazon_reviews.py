"""Amazon Reviews 2023: metadata with and without bought_together, reviews, and the metadata of 2018."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mufin.catalogue import read_catalogue
from mufin.datasets import amazon_reviews
from mufin.datasets.amazon_reviews import main

URL = "https://m.media.example/I/"


def _meta(asin: str, title: str | None, together: list[str] | None = None, images: Any = ()) -> dict[str, Any]:
    """A line as the data set has it."""
    return {
        "main_category": "All Beauty", "title": title, "average_rating": 4.3, "rating_number": 384, "features": [],
        "description": [], "price": None, "images": list(images), "videos": [], "store": None, "categories": [],
        "details": {"UPC": "1"}, "parent_asin": asin, "bought_together": together,
    }  # fmt: skip


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _image(name: str, variant: str, hi_res: str | None = None) -> dict[str, Any]:
    return {"thumb": f"{URL}{name}_SS40_.jpg", "large": f"{URL}{name}.jpg", "variant": variant, "hi_res": hi_res}


def _pairs(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:] if path.exists() else []


def _left_out(folder: Path) -> dict[str, int]:
    return {e["reason"]: e["count"] for e in json.loads((folder / "source.json").read_text())["left_out"]}


NO_SPLIT = ["--quiet", "--valid", "0", "--test", "0"]


def test_bought_together_becomes_pairs(tmp_path: Path) -> None:
    """Across categories and forward references; unknown, repeated and own ids go and are counted."""
    images = [_image("b", "PT01"), _image("a", "MAIN", f"{URL}a_big.jpg"), {"large": None, "thumb": "ftp://x/y.jpg"}]
    one = _write(tmp_path / "meta_A.jsonl.gz", [
        _meta("A", "Mug", ["B", "C", "B", "A", "Z"], images), _meta("D", "Alone"), _meta("E", " ", ["A"]),
    ])  # fmt: skip
    two = _write(tmp_path / "meta_B.jsonl", [
        _meta("B", None, ["A"], [_image("x", "MAIN")]), _meta("C", "Bowl"), _meta("A", "Mug twice", ["C"]),
    ])  # fmt: skip
    assert main([str(one), str(two), str(tmp_path / "c"), *NO_SPLIT]) == 0
    catalogue = read_catalogue(tmp_path / "c")
    assert [i.id for i in catalogue.products] == ["A", "B"]
    assert [i.id for i in catalogue.labels] == ["A", "B", "C"]
    assert catalogue.products[0].images == (f"{URL}a.jpg", f"{URL}b.jpg")
    assert catalogue.products[0].metadata == {"main_category": "All Beauty"}
    assert _pairs(tmp_path / "c/train.csv") == ["A,B", "A,C", "B,A"]
    assert _left_out(tmp_path / "c") == {
        "images that are no http(s) URL": 1,
        "pairs of a label that was left out": 1,
        "pairs of a product with itself": 1,
        "products described before (the first is kept)": 1,
        'products whose "bought_together" is null': 2,
        "products of no pair": 1,
        "products with neither title nor image": 1,
    }


def test_image_size_and_number_can_be_chosen(tmp_path: Path) -> None:
    """hi_res where there is one, else another size."""
    images = [_image("a", "MAIN", f"{URL}big.jpg"), _image("b", "PT01")]
    meta = _write(tmp_path / "meta.jsonl", [_meta("A", "Mug", ["B"], images), _meta("B", "Bowl")])
    assert main([str(meta), str(tmp_path / "c"), *NO_SPLIT, "--image-size", "hi_res"]) == 0
    assert read_catalogue(tmp_path / "c").products[0].images == (f"{URL}big.jpg", f"{URL}b.jpg")
    assert main([str(meta), str(tmp_path / "d"), *NO_SPLIT, "--max-images", "1"]) == 0
    assert read_catalogue(tmp_path / "d").products[0].images == (f"{URL}a.jpg",)


def test_without_any_bought_together_the_message_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The usual state of the release of 2023."""
    meta = _write(tmp_path / "meta.jsonl", [_meta("A", "Mug"), _meta("B", "Bowl", [])])
    assert main([str(meta), str(tmp_path / "c"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert '"bought_together" is null or empty for all 2 products' in error
    assert "--reviews FILE" in error
    assert [p.name for p in tmp_path.iterdir()] == ["meta.jsonl"]


def test_products_that_the_same_people_reviewed_become_pairs(tmp_path: Path) -> None:
    """Two people at least, each counted once a product; large baskets tell nothing."""
    meta = _write(tmp_path / "meta.jsonl", [_meta(a, f"title {a}") for a in "ABCDEF"])
    baskets = {"u1": "ABA", "u2": "BAC", "u3": "CA", "u4": "DE", "u5": "ABCDEF", "u6": "F", "u7": "AZ"}
    reviews = [
        {
            "rating": 5.0,
            "title": "t",
            "text": "t",
            "asin": item * 2,
            "parent_asin": item,
            "user_id": user,
            "timestamp": 1,
        }
        for user, basket in baskets.items()
        for item in basket
    ]
    first, second = _write(tmp_path / "a.jsonl", reviews[::2]), _write(tmp_path / "b.jsonl.gz", reviews[1::2])
    options = ["--reviews", str(first), "--reviews", str(second), "--largest-basket", "5"]
    assert main([str(meta), str(tmp_path / "c"), *NO_SPLIT, *options]) == 0
    assert _pairs(tmp_path / "c/train.csv") == ["A,B", "A,C", "B,A", "C,A"]
    left_out = _left_out(tmp_path / "c")
    assert left_out["people who reviewed more than 5 products"] == 1
    assert left_out["further reviews of a product by one person"] == 1
    assert left_out["reviews of a product without metadata"] == 1
    assert left_out["pairs of less than 2 people"] == 4
    read_catalogue(tmp_path / "c")


def test_metadata_of_2018_is_read_by_its_relation(tmp_path: Path) -> None:
    """asin, also_buy and imageURLHighRes."""
    records = [
        {
            "asin": "A",
            "title": "Mug",
            "also_buy": ["B"],
            "imageURL": [f"{URL}s.jpg"],
            "imageURLHighRes": [f"{URL}l.jpg"],
        },
        {"asin": "B", "title": "Bowl", "also_buy": []},
    ]
    meta = _write(tmp_path / "meta.json.gz", records)
    assert main([str(meta), str(tmp_path / "c"), *NO_SPLIT, "--relation", "also_buy"]) == 0
    assert read_catalogue(tmp_path / "c").products[0].images == (f"{URL}l.jpg",)


def test_splits_are_by_title_and_the_same_every_time(tmp_path: Path) -> None:
    """Every product in one split; colour variants with one title together."""
    records = [_meta(f"P{n}", f"title {n // 2}", [f"P{(n + 7) % 200}"]) for n in range(200)]
    meta = _write(tmp_path / "meta.jsonl", records)
    for name in ("c", "d"):
        assert main([str(meta), str(tmp_path / name), "--quiet", "--test", "0.3"]) == 0
    splits = {s: {line.split(",")[0] for line in _pairs(tmp_path / f"c/{s}.csv")} for s in ("train", "valid", "test")}
    assert all(splits.values())
    assert sum(map(len, splits.values())) == 200
    assert all((f"P{n}" in own) == (f"P{n + 1}" in own) for own in splits.values() for n in range(0, 200, 2))
    files = [p.name for p in (tmp_path / "c").iterdir()]
    assert all((tmp_path / "c" / f).read_bytes() == (tmp_path / "d" / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent_asin": None}, 'meta.jsonl:2: "parent_asin" is None'), ({"title": 5}, 'meta.jsonl:2: "title" is 5'),
        ({"bought_together": "B"}, "meta.jsonl:2: \"bought_together\" is 'B', expected a list"),
        ({"bought_together": [7]}, 'meta.jsonl:2: an id of "bought_together" is 7'),
        ({"images": {"hi_res": []}}, 'meta.jsonl:2: "images" is'),
    ],
)  # fmt: skip
def test_faults_name_the_line(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the value."""
    meta = _write(tmp_path / "meta.jsonl", [_meta("A", "Mug", ["B"]), {**_meta("B", "Bowl", ["A"]), **changes}])
    assert main([str(meta), str(tmp_path / "c"), "--quiet"]) == 1
    assert message in capsys.readouterr().err


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C: exit code 130, no half catalogue."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(amazon_reviews, "_write", interrupted)
    meta = _write(tmp_path / "meta.jsonl", [_meta("A", "Mug", ["B"]), _meta("B", "Bowl")])
    assert main([str(meta), str(tmp_path / "c"), "--quiet"]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["meta.jsonl"]
