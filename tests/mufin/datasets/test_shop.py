"""The built-in shop: a good catalogue, the same bytes each time, and as hard as it says."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mufin.catalogue import read_catalogue
from mufin.datasets.shop import CEILINGS_FILE, build_shop, main
from mufin.datasets.shop_pictures import PAINTS, SIDE_PIXELS, draw_picture
from mufin.datasets.shop_products import (
    COLOUR,
    COLOURS,
    KIND,
    PATTERNS,
    SHAPES,
    SIZE,
    VALUES,
    ShopProducts,
    make_products,
)
from mufin.datasets.shop_rules import (
    Rules,
    add_noise,
    ceilings,
    companion_rules,
    query_rules,
    relevant_pairs,
)

SMALL = 400
"""Products of the shops that tests write."""


@pytest.fixture(scope="module")
def stock() -> ShopProducts:
    """The default number of products, not drawn."""
    return make_products(3000, np.random.default_rng(5))


@pytest.fixture(scope="module", params=["products", "queries"])
def rules(request: pytest.FixtureRequest, stock: ShopProducts) -> Rules:
    """The rules of either catalogue."""
    random = np.random.default_rng(6)
    return companion_rules(stock, random) if request.param == "products" else query_rules(random)[1]


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_both_folders_pass_every_check_and_come_out_byte_equal(tmp_path: Path) -> None:
    """What is written is a catalogue; the seed decides every byte; another seed gives another shop."""
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        build_shop(tmp_path / name, SMALL, seed)
    for name in ("products", "queries"):
        catalogue = read_catalogue(tmp_path / "one" / name)
        assert len(catalogue.products) == SMALL
        assert list(catalogue.splits) == ["train", "valid", "test"]
        assert "Synthetic" in (tmp_path / "one" / name / "README.md").read_text()
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two") != _digests(tmp_path / "three")


def test_a_shop_is_replaced_but_no_other_folder(tmp_path: Path) -> None:
    """Building twice works; a folder of the user's in the way is left alone."""
    build_shop(tmp_path, SMALL, 1)
    (tmp_path / "queries" / CEILINGS_FILE).unlink()
    with pytest.raises(FileExistsError, match="move it away"):
        build_shop(tmp_path, SMALL, 2)
    assert read_catalogue(tmp_path / "queries").products
    assert not list(tmp_path.glob(".*.part"))


def test_the_command_prints_the_ceilings_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three oracles for each catalogue, on the terminal and in ceilings.json."""
    assert main([str(tmp_path), "--products", str(SMALL), "--seed", "2"]) == 0
    printed = capsys.readouterr().out
    for name in ("products", "queries"):
        written = json.loads((tmp_path / name / CEILINGS_FILE).read_text())
        assert list(written) == ["all attributes", "title only", "picture only"]
        for figures in written.values():
            assert f"P@1 {figures['P@1']:.3f}  P@5 {figures['P@5']:.3f}" in printed
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--products", "50"])
    assert "too few" in capsys.readouterr().err


def test_neither_title_nor_picture_is_enough(stock: ShopProducts, rules: Rules) -> None:
    """The oracle of all attributes nears 1; those of one modality stay below .45."""
    reached = ceilings(stock, rules)
    assert 0.9 <= reached["all attributes"]["P@1"] <= 1.0
    assert reached["title only"]["P@1"] <= 0.45
    assert reached["picture only"]["P@1"] <= 0.45


def test_labels_have_enough_training_products_and_products_enough_labels(stock: ShopProducts, rules: Rules) -> None:
    """A taste can only be learnt from some ten pairs and more; a test product without labels could not be judged."""
    truth = relevant_pairs(stock, rules)
    frequency = truth.select(np.flatnonzero(stock.split == 0)).label_frequency()
    assert np.quantile(frequency, 0.05) >= 10
    assert np.mean(truth.select(np.flatnonzero(stock.split == 2)).row_sizes() > 0) > 0.98


def test_labels_that_look_alike_have_different_tastes(stock: ShopProducts) -> None:
    """The listings of one article equal each other in every attribute, yet often not in their buyers."""
    rules = companion_rules(stock, np.random.default_rng(6))
    own = stock.attributes[stock.is_label].reshape(-1, 3, 6)
    assert np.all(own == own[:, :1])
    taste = rules.accepts[COLOUR].reshape(-1, 3, len(COLOURS))
    assert np.mean(np.any(taste != taste[:, :1], axis=(1, 2))) > 0.6
    assert len({w.tobytes() for w in rules.accepts[SIZE]}) == VALUES[SIZE]


def test_noise_replaces_a_tenth_of_the_training_pairs_by_wrong_ones(stock: ShopProducts, rules: Rules) -> None:
    """As many pairs as before, a tenth of them untrue."""
    truth = relevant_pairs(stock, rules)
    noisy = add_noise(truth, np.random.default_rng(7))
    true, written = ({(int(r), int(w)) for r, w in zip(*m.to_pairs(), strict=True)} for m in (truth, noisy))
    assert len(written) == len(true)
    assert len(written - true) / len(true) == pytest.approx(0.1, abs=0.01)


def test_held_out_combinations_are_in_test_only(stock: ShopProducts) -> None:
    """Every kind has a colour that training never shows; 40 % of the test products have it."""

    def combinations(split: int) -> set[tuple[int, ...]]:
        return {tuple(row) for row in stock.attributes[stock.split == split][:, [KIND, COLOUR]].tolist()}

    held_out = combinations(2) - combinations(0)
    assert len(held_out) == VALUES[KIND]
    assert not held_out & combinations(1)
    test = stock.attributes[stock.split == 2][:, [KIND, COLOUR]].tolist()
    assert np.mean([tuple(row) in held_out for row in test]) == pytest.approx(0.4, abs=0.01)


def test_some_products_have_several_pictures_and_some_none(stock: ShopProducts) -> None:
    """About 8 % have none, more than a fifth several."""
    assert np.mean(stock.picture_counts == 0) == pytest.approx(0.08, abs=0.02)
    assert np.mean(stock.picture_counts > 1) > 0.15


def test_titles_do_not_tell_what_pictures_show(stock: ShopProducts) -> None:
    """No word of colour, pattern or shape stands in a title."""
    words = {word for title in stock.titles for word in title.lower().replace(",", "").split()}
    assert not words & {*COLOURS, *PATTERNS, *SHAPES}


def test_equal_attributes_give_other_pictures_each_time() -> None:
    """Place, size and tint vary; views are PNG and JPEG of one size."""
    random = np.random.default_rng(0)
    drawn = [draw_picture(0, 1, 2, view, random) for view in (0, 0, 1, 2)]
    assert len(set(drawn)) == 4
    pictures = [Image.open(io.BytesIO(content)) for content in drawn]
    assert [picture.format for picture in pictures] == ["PNG", "PNG", "JPEG", "JPEG"]
    assert {picture.size for picture in pictures} == {(SIDE_PIXELS, SIDE_PIXELS)}


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("pattern", range(len(PATTERNS)))
def test_the_colour_of_a_picture_can_be_told(pattern: int, shape: int) -> None:
    """The most saturated tenth of the pixels is nearest to the picture's own paint, for every pattern and shape."""
    paints = np.array([PAINTS[name] for name in COLOURS])
    for colour in range(len(COLOURS)):
        content = draw_picture(colour, pattern, shape, 0, np.random.default_rng(colour))
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int64).reshape(-1, 3)
        vivid = pixels[np.argsort(pixels.min(axis=1))[: len(pixels) // 20]]
        distance = np.linalg.norm(vivid.mean(axis=0) - paints, axis=1)
        assert int(distance.argmin()) == colour


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_place_that_cannot_be_a_folder_is_refused_in_one_line(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before pictures are drawn for it."""
    monkeypatch.setattr("mufin.datasets.shop.make_products", lambda *_: pytest.fail("began"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / out), "--products", "50"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / out}: cannot be written" in last and "name another folder" in last
    assert (tmp_path / "file").read_text() == "mine"
