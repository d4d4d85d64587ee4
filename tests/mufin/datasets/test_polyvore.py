"""Polyvore Outfits in small: pairs of outfits, images packed, and the two tasks evaluated from the catalogue."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mufin.catalogue import read_catalogue
from mufin.datasets.outfit_tasks import (
    Outfit,
    Question,
    outfits_file,
    questions_file,
    read_outfits,
    read_questions,
    score_outfits,
    score_questions,
)
from mufin.datasets.polyvore import main
from mufin.errors import CatalogueError
from mufin.image_source import ImageReader
from mufin.metrics import Float64Array

OUTFITS = {
    "train": {"10": ["1", "2", "3"], "11": ["1", "2"]},
    "valid": {"12": ["4", "1"]},
    "test": {"13": ["5", "6", "7"], "14": ["1", "2"], "15": ["8", "9"]},
}


def _outfits(split: str) -> list[dict[str, Any]]:
    return [
        {"items": [{"item_id": item, "index": place} for place, item in enumerate(items, 1)], "set_id": set_id}
        for set_id, items in OUTFITS[split].items()
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The official folder in small, only its nondisjoint half; item 8 has nothing, item 9 no metadata."""
    folder = tmp_path / "polyvore_outfits"
    (folder / "nondisjoint").mkdir(parents=True)
    (folder / "images").mkdir()
    for split in OUTFITS:
        (folder / f"nondisjoint/{split}.json").write_text(json.dumps(_outfits(split)))
    metadata = {
        item: {"url_name": f"name {item}", "description": "", "catgeories": [], "title": f"Title {item}" if item != "2" else "",
               "related": [], "category_id": "28", "semantic_category": "bottoms"}
        for item in ("1", "2", "3", "4", "5", "6", "7", "77")
    }  # fmt: skip
    metadata["8"] = {"url_name": "", "title": " "}
    metadata["4"] |= {"url_name": "", "title": ""}
    (folder / "polyvore_item_metadata.json").write_text(json.dumps(metadata))
    for item in ("1", "4"):
        (folder / f"images/{item}.jpg").write_bytes(b"jpeg of " + item.encode())
    (folder / "images/5.jpg").write_bytes(b"")
    questions = [
        {"question": ["13_1", "13_2"], "blank_position": 3, "answers": ["14_1", "13_3", "10_1", "10_3"]},
        {"question": ["13_1"], "blank_position": 2, "answers": ["13_2", "15_1"]},
    ]
    (folder / "nondisjoint/fill_in_blank_test.json").write_text(json.dumps(questions))
    (folder / "nondisjoint/compatibility_test.txt").write_text("1  13_1 13_2 13_3 \n0 14_1 13_2\n0 15_1 13_1\n1 13_1\n")
    return folder


def test_outfits_become_pairs_and_both_tasks(source: Path, tmp_path: Path) -> None:
    """A pair of several outfits once, in its first split; items without anything go, with all that names them."""
    target = tmp_path / "c"
    assert main([str(source), str(target), "--quiet", "--variant", "nondisjoint"]) == 0
    catalogue = read_catalogue(target)
    assert catalogue.products_are_labels
    by_id = {item.id: item for item in catalogue.products}
    assert {i: item.title for i, item in by_id.items()} == {
        "1": "Title 1", "2": "name 2", "3": "Title 3", "4": "", "5": "Title 5", "6": "Title 6", "7": "Title 7",
    }  # fmt: skip
    assert by_id["1"].metadata == {"semantic_category": "bottoms", "category_id": "28"}
    assert ImageReader(target).read(*by_id["4"].images) == b"jpeg of 4"
    train = (target / "train.csv").read_text().splitlines()[1:]
    assert train == ["1,2", "1,3", "2,1", "2,3", "3,1", "3,2"]
    assert (target / "valid.csv").read_text().splitlines()[1:] == ["1,4", "4,1"]
    assert len((target / "test.csv").read_text().splitlines()[1:]) == 6
    questions, outfits = (
        list(read_questions(questions_file(target, "test"))),
        list(read_outfits(outfits_file(target, "test"))),
    )
    assert questions == [Question(("5", "6"), ("1", "7", "1", "3"), 1)]
    assert outfits == [Outfit(("5", "6", "7"), True), Outfit(("1", "6"), False)]
    account = json.loads((target / "source.json").read_text())
    assert {e["reason"]: e["count"] for e in account["left_out"]} == {
        "empty titles, url_name taken instead": 1,
        "images that are missing": 5,
        "images without bytes": 1,
        "items of no outfit of this variant": 1,
        "items of outfits that polyvore_item_metadata.json does not describe": 1,
        "items with neither title nor image": 1,
        "outfits of compatibility_test of less than two items": 1,
        "outfits of compatibility_test with an item left out": 1,
        "pairs of a product that was left out": 2,
        "pairs of several outfits, written once": 4,
        "pairs of two splits, kept in the first of train, valid, test": 2,
        "questions of fill_in_blank_test with an item left out": 1,
    }
    assert len([note for note in account["notes"] if "no such task" in note]) == 4


def test_the_tasks_are_evaluated_with_any_scorer_of_pairs(source: Path, tmp_path: Path) -> None:
    """A scorer that knows which items share an outfit is perfect, its negative is wrong, a constant is at chance."""
    target = tmp_path / "c"
    assert main([str(source), str(target), "--quiet", "--variant", "nondisjoint", "--no-images"]) == 0
    questions, outfits = (
        list(read_questions(questions_file(target, "test"))),
        list(read_outfits(outfits_file(target, "test"))),
    )
    together = {frozenset((a, b)) for split in OUTFITS.values() for own in split.values() for a in own for b in own}

    def oracle(pairs: Sequence[tuple[str, str]]) -> Float64Array:
        return np.array([float(frozenset(pair) in together) for pair in pairs])

    assert score_questions(questions, oracle) == score_outfits(outfits, oracle) == 1
    assert score_questions(questions, lambda pairs: -oracle(pairs)) == score_outfits(outfits, lambda p: -oracle(p)) == 0
    assert score_questions(questions, lambda pairs: np.zeros(len(pairs))) == 0.25
    assert score_outfits(outfits, lambda pairs: np.zeros(len(pairs))) == 0.5


def test_scores_are_means_over_the_pairs_of_an_outfit() -> None:
    """Each group by itself, with questions of different numbers of candidates; no question is NaN."""
    values = {("a", "x"): 1.0, ("b", "x"): 3.0, ("a", "y"): 2.5, ("b", "y"): 1.0, ("c", "z"): 0.0}

    def score(pairs: Sequence[tuple[str, str]]) -> Float64Array:
        return np.array([values[pair] for pair in pairs])

    assert score_questions([Question(("a", "b"), ("x", "y"), 0), Question(("c",), ("z",), 0)], score) == 1
    assert np.isnan(score_questions([], score))
    assert np.isnan(score_outfits([], score))


@pytest.mark.parametrize("line", ["[]", '{"outfit": ["a"], "candidates": ["b"], "answer": 1}', "{"])
def test_broken_task_files_are_refused(tmp_path: Path, line: str) -> None:
    """With the file."""
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(CatalogueError, match=r"q\.jsonl"):
        list(read_questions(tmp_path / "q.jsonl"))
    with pytest.raises(CatalogueError, match=r"q\.jsonl"):
        list(read_outfits(tmp_path / "q.jsonl"))


def _write(name: str, content: Any) -> Callable[[Path], object]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / name).write_text(text)


TWICE = '{"1": {"title": "a"}, "1": {"title": "b"}}'
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no split": (lambda f: (f / "nondisjoint/valid.json").unlink(), "valid.json: is no file"),
    "object": (_write("nondisjoint/train.json", {"a": 1}), "has the key 'a', expected an array of outfits"),
    "outfit": (_write("nondisjoint/train.json", [{"items": 1}]), "is no outfit"),
    "item": (_write("nondisjoint/train.json", [{"set_id": "1", "items": ["2"]}]), """has no "item_id" and "index"""),
    "place": (_write("nondisjoint/valid.json", [{"set_id": "10", "items": [{"item_id": "9", "index": 1}]}]), "place 10_1 holds item 9"),
    "metadata": (_write("polyvore_item_metadata.json", ["x"]), "is no item"),
    "title": (_write("polyvore_item_metadata.json", {"1": {"title": 3}}), '"title" of item \'1\' is 3'),
    "twice": (_write("polyvore_item_metadata.json", TWICE), "item '1' is described twice"),
    "question": (_write("nondisjoint/fill_in_blank_test.json", [{"question": []}]), "is no question"),
    "answers": (_write("nondisjoint/fill_in_blank_test.json", [{"question": ["13_1"], "answers": ["14_1"]}]), "0 of the answers"),
    "reference": (_write("nondisjoint/compatibility_test.txt", "1 13_1 99_1\n"), "compatibility_test.txt:1: '99_1' is no SET_INDEX"),
    "flag": (_write("nondisjoint/compatibility_test.txt", "\n"), "compatibility_test.txt:1: begins with ''"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_place_and_leave_nothing(
    source: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, no folder and no temporary one."""
    change, message = FAULTS[fault]
    change(source)
    assert main([str(source), str(tmp_path / "c"), "--quiet", "--variant", "nondisjoint"]) == 1
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["polyvore_outfits"]
