"""mufin-recommend: every product answered once, in order, through kills and broken pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mufin.errors import CatalogueError, ConfigError
from mufin.predictor import Predictor, open_predictor
from mufin.recommend import main, recommend_file
from tests.bundle_factory import make_tiny_bundle, picture

COUNT = 23


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labels; product L3 is a label itself."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    """Over the same."""
    return open_predictor(bundle)


def products(folder: Path, count: int = COUNT) -> Path:
    """A file of products, every second with a picture beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "red.png").write_bytes(picture("red"))
    lines = [
        {"id": f"L{i}", "title": "blue hat", "images": ["red.png"] if i % 2 else [], "brand": "kept out of it"}
        for i in range(count)
    ]
    path = folder / "products.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    """The output, parsed."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def one(folder: Path, predictor: Predictor, product: dict[str, Any]) -> dict[str, Any]:
    """The answer to a single product."""
    path = products(folder)
    path.write_text(json.dumps(product) + "\n")
    recommend_file(predictor, path, folder / "one.jsonl", k=3)
    return answers(folder / "one.jsonl")[0]


def test_every_product_is_answered_in_order(predictor: Predictor, tmp_path: Path) -> None:
    """With the service's answer shape; a product is never recommended to itself."""
    output = tmp_path / "out.jsonl"
    assert recommend_file(predictor, products(tmp_path), output, k=5, batch_size=4) == COUNT
    found = answers(output)
    assert [a["product_id"] for a in found] == [f"L{i}" for i in range(COUNT)]
    for number, answer in enumerate(found):
        assert set(answer) == {"product_id", "results", "stage", "modalities_used", "warnings"}
        assert answer["stage"] == "reranked"
        assert answer["modalities_used"] == (["title", "image"] if number % 2 else ["title"])
        assert len(answer["results"]) == 5
        assert answer["product_id"] not in [result["id"] for result in answer["results"]]
        scores = [result["score"] for result in answer["results"]]
        assert scores == sorted(scores, reverse=True)
    assert set(found[0]["results"][0]) == {
        "id", "title", "images", "score", "probability", "shortlist_score", "classifier_score", "label_source", "metadata",
    }  # fmt: skip


@pytest.mark.parametrize("kept_bytes", [0, 1, 900, -1, -2])
def test_a_killed_run_goes_on_behind_the_last_whole_line(predictor: Predictor, tmp_path: Path, kept_bytes: int) -> None:
    """Cut anywhere, the finished file equals the one of an undisturbed run."""
    path, whole, output = products(tmp_path), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    recommend_file(predictor, path, whole)
    recommend_file(predictor, path, output)
    output.write_bytes(whole.read_bytes()[:kept_bytes])
    kept = output.read_bytes().count(b"\n")
    assert recommend_file(predictor, path, output, batch_size=5) == COUNT - kept
    assert output.read_bytes() == whole.read_bytes()


def test_a_finished_output_is_left_alone(predictor: Predictor, tmp_path: Path) -> None:
    """The same command again answers nothing and changes nothing."""
    path, output = products(tmp_path), tmp_path / "out.jsonl"
    recommend_file(predictor, path, output)
    before = output.read_bytes()
    assert recommend_file(predictor, path, output) == 0
    assert output.read_bytes() == before


def test_a_foreign_output_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    """Another k, another input, another bundle, a file of somebody else's, lines of other products: none is touched."""
    path, output = products(tmp_path), tmp_path / "out.jsonl"
    recommend_file(predictor, path, output, k=4)
    before = output.read_bytes()
    with pytest.raises(ConfigError, match="was begun with k 4, this run has 5"):
        recommend_file(predictor, path, output, k=5)
    other = open_predictor(make_tiny_bundle(tmp_path / "other", seed=4))
    with pytest.raises(ConfigError, match="was begun with bundle_id sha256:"):
        recommend_file(other, path, output, k=4)
    with pytest.raises(ConfigError, match="input_sha256"):
        recommend_file(predictor, products(tmp_path, COUNT - 1), output, k=4)
    assert output.read_bytes() == before
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(ConfigError, match="does not say what of"):
        recommend_file(predictor, path, notes)
    assert notes.read_text() == "mine"


def test_lines_of_other_products_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    """An output edited by hand is not continued; one with too many answers neither."""
    path, output = products(tmp_path), tmp_path / "out.jsonl"
    recommend_file(predictor, path, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(lines[1] + lines[0])
    with pytest.raises(ConfigError, match=r"out\.jsonl:1: answers product 'L1', the input's line 1 is 'L0'"):
        recommend_file(predictor, path, output)
    output.write_bytes(b"".join([*lines, lines[0]]))
    with pytest.raises(ConfigError, match="more answers than"):
        recommend_file(predictor, path, output)
    output.write_bytes(b"no json\n")
    with pytest.raises(ConfigError, match="is no answer"):
        recommend_file(predictor, path, output)


def test_broken_pictures_are_warnings(predictor: Predictor, tmp_path: Path) -> None:
    """A missing file, one that is no image, one too many: the answer comes from what is left."""
    tmp_path.joinpath("text.png").write_text("no picture")
    answer = one(tmp_path, predictor, {"id": "x", "title": "", "images": ["gone.png", "red.png", "red.png"]})
    assert [(w["code"], w["image"]) for w in answer["warnings"]] == [("image_unreachable", 0), ("too_many_images", 2)]
    assert answer["modalities_used"] == ["image"]
    assert len(answer["results"]) == 3
    (tmp_path / "one.jsonl").unlink()
    answer = one(tmp_path, predictor, {"id": "x", "title": "red shirt", "images": ["text.png", "../../etc/passwd"]})
    assert [w["code"] for w in answer["warnings"]] == ["not_an_image", "image_unreachable"]
    assert answer["modalities_used"] == ["title"]


def test_a_product_of_which_nothing_is_left_is_said_so(predictor: Predictor, tmp_path: Path) -> None:
    """It has a line, no results, and a warning; its neighbours are answered."""
    answer = one(tmp_path, predictor, {"id": "x", "title": " ", "images": ["gone.png"]})
    assert answer["results"] == []
    assert answer["stage"] is None
    assert [w["code"] for w in answer["warnings"]] == ["image_unreachable", "nothing_to_encode"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "needs an object"),
        ('{"title": "a"}', "id is None"),
        ('{"id": "a", "title": 3}', "title is 3"),
        ('{"id": "a", "images": "x.png"}', "needs a list"),
        ("\xff", "is no JSON"),
        (r'{"id": "\ud800", "title": "a"}', "stands alone and is no character; correct"),
        (r'{"id": "a", "images": ["\ud800.png"]}', "stands alone and is no character; correct"),
        ('{"id": "\xed\xa0\x80", "title": "a"}', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"id": "a", "title": 0}', "title is 0, needs a string"),
        ('{"id": "a", "title": []}', r"title is \[\], needs a string"),
        ('{"id": "a", "title": false}', "title is False, needs a string"),
        ('{"id": "a", "title": "a", "images": ""}', "images is '', needs a list"),
        ('{"id": "a", "title": "a", "images": {}}', "images is {}, needs a list"),
    ],
)
def test_a_faulty_line_is_named(predictor: Predictor, tmp_path: Path, line: str, reason: str) -> None:
    """File and line number; what came before is written."""
    path = products(tmp_path, 2)
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(CatalogueError, match=rf"products\.jsonl:3: .*{reason}"):
        recommend_file(predictor, path, tmp_path / "out.jsonl", batch_size=2)
    assert len(answers(tmp_path / "out.jsonl")) == 2


def test_null_means_none(predictor: Predictor, tmp_path: Path) -> None:
    """For title and images, as in a catalogue."""
    assert one(tmp_path, predictor, {"id": "x", "title": None, "images": ["red.png"]})["modalities_used"] == ["image"]
    (tmp_path / "one.jsonl").unlink()
    assert one(tmp_path, predictor, {"id": "x", "title": "hat", "images": None})["modalities_used"] == ["title"]


def test_the_command_writes_answers_and_exits_with_a_code(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 for a finished file, 1 with the reason on stderr for a bundle that is none, 2 for wrong options."""
    path, output = products(tmp_path), tmp_path / "out.jsonl"
    assert main([str(bundle), str(path), str(output), "--k", "2", "--threads", "1"]) == 0
    assert len(answers(output)) == COUNT
    assert f"{COUNT} answers written" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), str(path), str(output)]) == 1
    assert "mufin-recommend: " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(bundle), str(path), str(output), "--k", "0"])
