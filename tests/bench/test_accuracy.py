"""The accuracy bench: nothing is scored that was trained on, modalities are really gone, seeds and folds are put together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.accuracy
from bench.accuracy import FULL, Bench, catalogues, measure, side_by_side, table, variants
from bench.accuracy_features import keep_features
from bench.accuracy_kept import kept
from bench.accuracy_parts import SCORED, average, concatenated, parts_of, without_images, without_titles
from bench.sentences import MOST_TOKENS, encode_titles
from mufin.catalogue import Catalogue, read_catalogue
from mufin.metrics import RowScores, score_rows
from mufin.relevance import Relevance
from mufin.training import item_arrays
from mufin.training.config_reading import build_config
from mufin.training.descriptor import Descriptor
from mufin.training.model import TextEncoder
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from tests.catalogue_factory import make_tiny_catalogue
from tests.encoder_factory import make_encoders
from tests.training.test_descriptor import FROZEN
from tests.training.tiny_config import tiny_config


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Train and valid, no test."""
    found = read_catalogue(make_tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "tiny", 100))
    return replace(found, splits={name: own for name, own in found.splits.items() if name != "test"})


def test_valid_is_scored_and_validation_comes_from_training(catalogue: Catalogue) -> None:
    """Where there is no test split; the seeds share one split."""
    parts = parts_of(catalogue, seeds=3, folds=0)
    assert [part.seed for part in parts] == [0, 1, 2]
    splits = parts[0].catalogue.splits
    assert splits[SCORED].products.tolist() == catalogue.splits["valid"].products.tolist()
    train, valid = set(splits["train"].products.tolist()), set(splits["valid"].products.tolist())
    assert train | valid == set(catalogue.splits["train"].products.tolist()) and not train & valid


def test_folds_score_every_product_once_and_train_on_none_of_theirs(catalogue: Catalogue) -> None:
    """With the relevance they had."""
    parts = parts_of(catalogue, seeds=3, folds=4)
    everything = np.concatenate([own.products for own in catalogue.splits.values()])
    scored = np.concatenate([part.catalogue.splits[SCORED].products for part in parts])
    assert sorted(scored.tolist()) == sorted(everything.tolist())
    train = catalogue.splits["train"]
    for part in parts:
        splits = part.catalogue.splits
        seen = set(splits["train"].products.tolist()) | set(splits["valid"].products.tolist())
        assert not seen & set(splits[SCORED].products.tolist())
        for place, row in enumerate(splits[SCORED].products):
            known = np.flatnonzero(train.products == row)
            if len(known):
                expected = train.relevance.row(int(known[0]))
                assert splits[SCORED].relevance.row(place).tolist() == expected.tolist()


def test_a_scored_product_is_no_label_of_its_fold(tmp_path: Path) -> None:
    """Pairs of mutual labels would tell what it goes with; all others keep theirs, by their ids."""
    whole = read_catalogue(make_tiny_catalogue(tmp_path / "mutual", 60, with_labels=False))
    pairs = {
        (whole.products[int(split.products[place])].id, whole.labels[int(label)].id)
        for split in whole.splits.values()
        for place, labels in enumerate(map(split.relevance.row, range(split.relevance.row_count)))
        for label in labels
    }
    for part in parts_of(whole, seeds=1, folds=4):
        own = part.catalogue
        scored = {own.products[int(row)].id for row in own.splits[SCORED].products}
        names = [label.id for label in own.labels]
        assert scored and not scored & set(names)
        assert len(names) + len(scored) == len(whole.labels)
        found = {
            (own.products[int(split.products[place])].id, names[int(label)])
            for split in own.splits.values()
            for place, labels in enumerate(map(split.relevance.row, range(split.relevance.row_count)))
            for label in labels
        }
        assert found == {pair for pair in pairs if pair[1] not in scored}
        excluded = own.exclude.to_pairs()
        assert all(own.products[row].id == names[label] for row, label in zip(*excluded, strict=True))


def test_a_modality_is_left_out_where_another_is_there(catalogue: Catalogue) -> None:
    """No item is left with nothing."""
    for changed, gone in ((without_images(catalogue), "images"), (without_titles(catalogue), "title")):
        for before, after in zip(catalogue.products, changed.products, strict=True):
            assert after.title or after.images
            if before.title and before.images:
                assert not getattr(after, gone)


def figures(first: list[int], second: list[int]) -> tuple[np.ndarray, Relevance]:
    """Two products' best labels; label 0 is right for both."""
    relevance = Relevance.from_pairs(np.arange(2), np.zeros(2, np.int64), 2, 4)
    return np.array([first, second]), relevance


def test_seeds_are_averaged_and_folds_put_one_after_the_other() -> None:
    """One seed finds the first product's label, the other both."""
    one = score_rows(*figures([0, 1, 2], [1, 2, 3]))
    two = score_rows(*figures([0, 1, 2], [0, 2, 3]))
    assert average([one, two]).values()["P@1"] == pytest.approx(0.75)
    both = concatenated([one, two])
    assert both.values()["P@1"] == pytest.approx(0.75) and both.row_count == 4 and len(set(both.rows.tolist())) == 4
    with pytest.raises(ValueError, match="different products"):
        average([one, replace(two, rows=two.rows + 1)])


def test_every_variant_is_a_config_and_only_pictures_have_image_rows() -> None:
    """What the table promises."""
    names = {row for variant in variants(True) for _, row in variant.rows}
    assert {FULL, "network without classifiers", "network without cross-attention"} <= names
    assert {"network without self-attention", "full, title only", "network, image only"} <= names
    assert not any("image" in row or "title" in row for variant in variants(False) for _, row in variant.rows)
    recipe, with_options = build_config("frozen", ["text.name=some/encoder"]), variants(False, options=True)
    for variant in [*variants(True), *with_options]:
        build_config("frozen", ["text.name=some/encoder", "combination.folds=3", *variant.changes])
    added = with_options[len(variants(False)) :]
    networks, whole = len(bench.accuracy.OPTIONS), len(bench.accuracy.FULL_OPTIONS)
    assert len(added) == networks + whole
    assert len({row for own in added for _, row in own.rows}) == 2 * networks + whole
    for own in added[:networks]:  # each is something else than the preset, which has no combination by default either
        assert build_config("frozen", ["text.name=some/encoder", *own.changes]) != recipe
    for own in added[networks:]:
        changed = build_config("frozen", ["text.name=some/encoder", "combination.folds=3", *own.changes])
        assert changed != build_config("frozen", ["text.name=some/encoder", "combination.folds=3"])


def test_single_modalities_of_labels_are_a_row_where_there_are_pictures() -> None:
    """Titles alone are what they are found by already."""
    named = [
        [row for own in variants(pictured, options=True) for _, row in own.rows if "title and images alone" in row]
        for pictured in (False, True)
    ]
    assert named[0] == [] and len(named[1]) == 2


def test_early_fusion_is_a_row_where_title_encoders_are_trained_and_there_are_pictures() -> None:
    """Nowhere else: a frozen encoder cannot have it, and titles alone have nothing to fuse."""

    def fused(pictured: bool, fine_tuned: bool) -> list[tuple[str, ...]]:
        found = variants(pictured, options=True, fine_tuned=fine_tuned)
        return [own.changes for own in found if any("early fusion" in row for _, row in own.rows)]

    assert [fused(*own) for own in ((False, False), (False, True), (True, False))] == [[], [], []]
    (changes,) = fused(True, True)
    trained = build_config("frozen", ["text.name=some/encoder", "text.trainable_layers=6", *changes])
    assert trained.network.early_fusion
    rows = [row for own in variants(True, options=True, fine_tuned=True) for _, row in own.rows if "early" in row]
    assert rows[0] == "full, with early fusion" and len(rows) == 3


def own_threads(_: int) -> tuple[int, str | None]:
    """Of the process this runs in."""
    return torch.get_num_threads(), os.environ.get("OPENBLAS_NUM_THREADS")


def test_processes_side_by_side_have_a_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single one is no process of its own."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    with side_by_side(1) as alone:
        assert alone is None and os.environ["OMP_NUM_THREADS"] == "7"
    with side_by_side(2) as pool:
        assert pool is not None
        assert set(pool.map(own_threads, range(8))) == {(1, "1")}


@pytest.mark.parametrize("folds", [0, 3])
def test_side_by_side_the_figures_are_the_same(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    """Of every part and row; and no two processes write one folder of features."""
    monkeypatch.setattr(bench.accuracy, "FULL", "popularity")  # the baselines alone: nothing is trained
    monkeypatch.setattr(bench.accuracy, "variants", lambda pictured, options, fine_tuned: [])
    monkeypatch.setattr(bench.accuracy, "FOLDED", {"tiny": folds})
    how = Bench(tmp_path / "features", None, None, (), tmp_path / "figures")
    with side_by_side(2) as pool:
        beside = measure("tiny", catalogue, how, 2, pool)
    assert len(list((tmp_path / "figures").iterdir())) == (folds or 1)
    alone = measure("tiny", catalogue, replace(how, work=None), 2)
    assert beside == alone and len(alone["rows"]) > 1


def runs(number: int) -> bool:
    """Whether a process is there and no mere entry that nobody has collected yet."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


KILLED = """
import os, time
from bench.accuracy import side_by_side
if __name__ == "__main__":
    with side_by_side(2) as pool:
        print(*{own.result() for own in [pool.submit(os.getpid) for _ in range(4)]}, flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def test_processes_end_with_a_bench_that_is_killed(tmp_path: Path) -> None:
    """Also those in the middle of a training."""
    (tmp_path / "killed.py").write_text(KILLED)
    root = Path(bench.accuracy.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as started:  # fmt: skip
        assert started.stdout is not None
        own = [int(number) for number in started.stdout.readline().split()]
        started.kill()
    assert own
    until = time.monotonic() + 30
    while any(map(runs, own)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [number for number in own if runs(number)]


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_no_process_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what was asked for."""
    with pytest.raises(SystemExit):
        bench.accuracy.main(["--processes", count])
    assert f"{count!r} is not a number of processes, 1 or more" in capsys.readouterr().err


def test_an_absent_catalogue_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the others go on."""
    monkeypatch.setenv("MUFIN_DATA_DIR", str(tmp_path / "nowhere"))
    found = [name for name, _ in catalogues(["products", "ikea"], tmp_path / "shop", smoke=True)]
    assert found == ["shop, products"]
    assert "ikea: left out" in capsys.readouterr().out


def test_the_table_says_how_far_the_full_model_is_ahead() -> None:
    """Value, spread and interval."""
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "sd": 0.01}
    ahead = {"difference": 0.1, "low": 0.05, "high": 0.15, "share_above_zero": 1.0}
    names = ("P@1", "P@3", "P@5", "R@10")
    rows = [
        {"row": row, **dict.fromkeys(names, figure), "full_less_this": dict.fromkeys(names, ahead)}
        for row in (FULL, "popularity")
    ]
    text = table({"catalogue": "tiny", "parts": "3 seeds", "rows": rows})
    assert "0.500 ± 0.010" in text and text.count("+0.100 [+0.050, +0.150]") == 1


def test_figures_are_computed_once(tmp_path: Path) -> None:
    """For one identity; they come back as they were, and another identity has its own."""
    scores = score_rows(*figures([0, 1, 2], [1, 2, 3]))
    turns: list[str] = []

    def compute(name: str) -> list[tuple[str, RowScores]]:
        turns.append(name)
        return [(name, scores), ("other", scores)]

    first = kept(tmp_path, {"seed": 0}, lambda: compute("a"))
    again = kept(tmp_path, {"seed": 0}, lambda: compute("b"))
    other = kept(tmp_path, {"seed": 1}, lambda: compute("c"))
    assert turns == ["a", "c"]
    assert [name for name, _ in again] == ["a", "other"] and [name for name, _ in other] == ["c", "other"]
    for _, own in [*first, *again]:
        assert own.names == scores.names and own.row_count == scores.row_count
        assert np.array_equal(own.numerators, scores.numerators) and np.array_equal(own.rows, scores.rows)
        assert np.array_equal(own.denominators, scores.denominators)
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path, {"seed": 2}, lambda: [("d", scores)] * (1 // len(turns[2:])))
    assert len(list(tmp_path.iterdir())) == 2


def test_features_are_kept_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training after that encodes nothing, nor do the baselines, whose sentences are those that they would compute."""
    catalogue, shared = read_catalogue(make_tiny_catalogue(tmp_path / "catalogue")), tmp_path / "shared"
    encoder, titles = str(make_encoders(tmp_path / "encoders") / "text"), [item.title for item in catalogue.products]
    config = tiny_config(
        *FROZEN, f"text.name={encoder}", "text.options={}", "text.trainable_layers=0", "network.word_vectors=4",
        f"inputs.max_title_tokens={MOST_TOKENS}",
    )  # fmt: skip
    keep_features(catalogue, config, encoder, shared)
    expected = encode_titles(titles, encoder)

    def none(*_: object) -> None:
        raise AssertionError("this was computed before")

    monkeypatch.setattr(Descriptor, "forward", none)
    monkeypatch.setattr(TextEncoder, "sentence", none)
    monkeypatch.setattr("bench.sentences.build_backbone", none)
    monkeypatch.setattr(item_arrays, "decode_image", none)
    train(catalogue, config, tmp_path / "run", Reporter(quiet=True), shared=shared)
    np.testing.assert_allclose(encode_titles(titles, encoder, shared), expected, atol=1e-6)
