"""The combination: folds that share nothing with what they are scored on, lessons learned, kept only where it pays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mufin.catalogue import Catalogue, read_catalogue
from mufin.combination import FEATURES, Combination
from mufin.errors import ConfigError
from mufin.evidence import Evidence
from mufin.training import folds as folds_module
from mufin.training.checkpoint import load_run
from mufin.training.combining import (
    Kind,
    Lists,
    _network,
    _set_gradients,
    gather_evidence,
    kinds,
    learn_combination,
    learn_perceptron,
)
from mufin.training.config import CombinationConfig
from mufin.training.folds import FOLDS_FOLDER, Titles, fold_catalogue, fold_numbers, taught_by
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.split_ranking import rank_split
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config

FOLDED = "combination.folds=2"


@pytest.fixture(scope="module")
def catalogue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough products for two folds."""
    return make_tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "tiny", 140)


@pytest.fixture(scope="module")
def finished(catalogue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a combination."""
    folder = tmp_path_factory.mktemp("runs") / "combined"
    train(read_catalogue(catalogue_folder), tiny_config(FOLDED), folder, Reporter(quiet=True))
    return folder


def test_equal_titles_share_a_fold() -> None:
    """However they are spelled; products without a title are on their own, and every fold has its share."""
    titles = [f"thing {i % 40}" for i in range(200)] + ["Thing  7", ""] + [""] * 30
    numbers = fold_numbers(titles, 4, seed=1)
    for i in range(40):
        assert len(set(numbers[[j for j in range(200) if j % 40 == i]])) == 1
    assert numbers[200] == numbers[7]
    assert len(set(numbers[-30:])) > 1
    assert np.bincount(numbers, minlength=4).min() > 20


def test_folds_part_the_training_products(catalogue_folder: Path) -> None:
    """Every training product is held out once, and never trained on where it is held out."""
    catalogue = read_catalogue(catalogue_folder)
    titles = Titles.of(catalogue, tiny_config(FOLDED))
    held_out = []
    for fold in range(2):
        part = fold_catalogue(catalogue, titles.folds, fold)
        inside, outside = (set(part.splits[name].products.tolist()) for name in ("train", "valid"))
        assert not inside & outside
        assert inside | outside == set(catalogue.splits["train"].products.tolist())
        held_out += sorted(outside)
        row = int(np.flatnonzero(catalogue.splits["train"].products == part.splits["valid"].products[0])[0])
        np.testing.assert_array_equal(
            part.splits["valid"].relevance.row(0), catalogue.splits["train"].relevance.row(row)
        )
    assert sorted(held_out) == sorted(catalogue.splits["train"].products.tolist())


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Products that are the labels of one another."""
    return read_catalogue(make_tiny_catalogue(tmp_path_factory.mktemp("mutual") / "tiny", 140, with_labels=False))


def test_a_product_that_is_held_out_is_no_label_of_its_fold(mutual: Catalogue) -> None:
    """Its pairs as a label would tell what it goes with; everybody else's are all there, by their ids."""
    train_split = mutual.splits["train"]
    every = {
        (mutual.products[int(train_split.products[row])].id, mutual.labels[int(label)].id)
        for row, label in zip(*train_split.relevance.to_pairs(), strict=True)
    }
    titles = Titles.of(mutual, tiny_config(FOLDED))
    for fold in range(2):
        part = fold_catalogue(mutual, titles.folds, fold)
        held_out = {mutual.products[int(row)].id for row in train_split.products[titles.folds == fold]}
        names = [label.id for label in part.labels]
        assert held_out and not held_out & set(names) and len(names) == len(mutual.labels) - len(held_out)
        found = {
            (part.products[int(split.products[row])].id, names[int(label)])
            for split in part.splits.values()
            for row, label in zip(*split.relevance.to_pairs(), strict=True)
        }
        assert found == {pair for pair in every if pair[1] not in held_out}
        assert all(split.relevance.row_sizes().min() > 0 for split in part.splits.values())


def test_folds_that_leave_no_pair_are_refused(mutual: Catalogue) -> None:
    """With what to set."""
    train_split = mutual.splits["train"]
    numbers = np.zeros(len(train_split.products), np.int64)
    numbers[0] = 1  # it alone would be trained on, and its labels are all held out
    with pytest.raises(ConfigError, match=r"fold 1, .* no pair of 140 labels is left .* set combination\.folds=0"):
        fold_catalogue(mutual, numbers, 0)


@pytest.mark.parametrize("hidden", [0, 8])
def test_it_learns_which_score_tells(hidden: int) -> None:
    """Of noise and one telling feature: the relevant candidate comes first for lists never seen."""
    random = np.random.default_rng(3)

    def lists(count: int) -> Lists:
        features = random.normal(size=(count * 10, len(FEATURES))).astype(np.float32)
        best = features[:, 5].reshape(count, 10).argmax(axis=1)
        relevant = np.zeros((count, 10), np.float32)
        relevant[np.arange(count), best] = 1
        return Lists(features, relevant.reshape(-1), np.arange(count + 1) * 10)

    combination, unseen = learn_combination(lists(600), 0, Kind("", 2, hidden, 0)), lists(200)
    scores = combination(unseen.features).reshape(200, 10)
    right = (scores.argmax(axis=1) == unseen.relevant.reshape(200, 10).argmax(axis=1)).mean()
    assert right > 0.8  # by chance: .1


def test_a_prior_weighs_less_the_more_lists_there_are() -> None:
    """It keeps few lists from being learned by heart; many are learned without asking twice."""
    few, many = kinds(1_000), kinds(10_000)
    assert {kind.name for kind in many} < {kind.name for kind in few}
    firm, free = Kind("firm", 2, 16, 2_000), Kind("free", 2, 16, 0)
    assert firm.decay(1_000) == 2.0 and firm.decay(10_000) == 0.2 and firm.decay(10) == 5.0
    assert free.decay(10) == free.decay(10**6) == firm.decay(10**6) == 0.01
    random = np.random.default_rng(4)
    noise = random.normal(size=(2_000, len(FEATURES))).astype(np.float32)
    relevant = np.eye(10, dtype=np.float32)[random.integers(10, size=200)].reshape(-1)
    lists = Lists(noise, relevant, np.arange(201) * 10)
    by_heart = {kind.name: lists.precision(learn_combination(lists, 0, kind)(noise))["P@1"] for kind in (firm, free)}
    assert by_heart["firm"] < by_heart["free"] > 0.9, "there is nothing to learn but the lists"


def test_learning_is_repeatable() -> None:
    """The same lists and seed give the same numbers."""
    random = np.random.default_rng(0)
    features = random.normal(size=(400, len(FEATURES))).astype(np.float32)
    lists = Lists(features, (random.random(400) < 0.3).astype(np.float32) * 1, np.arange(41) * 10)
    lists = replace(lists, relevant=np.maximum(lists.relevant, np.tile(np.eye(10)[0], 40)).astype(np.float32))
    first, second = (learn_combination(lists, 7, Kind("", 2, 4, 0)) for _ in range(2))
    np.testing.assert_array_equal(first(features), second(features))


def test_held_out_products_are_drawn_where_there_are_more_than_may_teach(catalogue_folder: Path) -> None:
    """With what is relevant to each, nothing else changed; another seed draws others, and few are all taken."""
    catalogue = read_catalogue(catalogue_folder)
    part = fold_catalogue(catalogue, Titles.of(catalogue, tiny_config(FOLDED)).folds, 0)
    every = part.splits["valid"]
    rights = {int(row): every.relevance.row(place).tolist() for place, row in enumerate(every.products)}
    fewer = taught_by(part, 9, 3)
    drawn = fewer.splits["valid"]
    assert len(set(drawn.products.tolist())) == 9 < len(every.products)
    assert {int(row): drawn.relevance.row(i).tolist() for i, row in enumerate(drawn.products)} == {
        int(row): rights[int(row)] for row in drawn.products
    }
    assert fewer.splits["train"] is part.splits["train"] and fewer.labels is part.labels
    assert taught_by(part, 9, 4).splits["valid"].products.tolist() != drawn.products.tolist()
    assert taught_by(part, len(every.products), 3) is part


def test_no_more_products_teach_than_are_allowed(catalogue_folder: Path, tmp_path: Path) -> None:
    """The same share of each fold."""
    config = tiny_config(FOLDED)
    config = replace(config, combination=replace(config.combination, most_lists=30))
    metrics = train(read_catalogue(catalogue_folder), config, tmp_path / "run", Reporter(quiet=True))
    assert 10 < metrics["combination"]["lists"] <= 30
    with pytest.raises(ConfigError, match="most_lists is 1 with 2 folds"):
        replace(config.combination, most_lists=1)


def test_a_kind_is_judged_by_folds_that_it_did_not_learn_from(
    catalogue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold's lists are scored by what was learned from all others, and what is kept is learned from all."""
    lessons = folds_module.lessons
    taught: list[Lists] = []
    learned_from: list[int] = []

    def looking(*arguments: object) -> list[Lists]:
        taught.extend(lessons(*arguments))  # type: ignore[arg-type]
        return taught

    def noting(lists: Lists, seed: int, kind: Kind) -> Combination:
        learned_from.append(len(lists.relevant))
        return learn_combination(lists, seed, kind)

    monkeypatch.setattr(folds_module, "lessons", looking)
    monkeypatch.setattr(folds_module, "learn_combination", noting)
    metrics = train(read_catalogue(catalogue_folder), tiny_config(FOLDED), tmp_path / "run", Reporter(quiet=True))
    first, second = (len(own.relevant) for own in taught)
    assert metrics["combination"]["kept"] and first != second
    tried = len(kinds(len(taught[0]) + len(taught[1])))
    assert learned_from == [second] * tried + [first] * tried + [first + second]
    assert metrics["combination"]["lists"] == sum(len(own) for own in taught)


def test_precision_of_lists() -> None:
    """By hand, lists of different lengths, one shorter than five; joined lists are the same lists."""
    relevant = np.array([0, 1, 0, 1, 0, 0, 1, 0], np.float32)
    lists = Lists(np.zeros((8, len(FEATURES)), np.float32), relevant, np.array([0, 6, 8]))
    scores = np.array([9, 5, 4, 3, 2, 1, 8, 7], np.float32)
    assert lists.precision(scores) == {"P@1": 0.5, "P@5": pytest.approx((2 / 5 + 1 / 5) / 2)}
    parts = [Lists(lists.features[:6], relevant[:6], np.array([0, 6])), Lists(lists.features[6:], relevant[6:], np.array([0, 2]))]  # fmt: skip
    joined = Lists.joined(parts)
    np.testing.assert_array_equal(joined.starts, lists.starts)
    assert joined.precision(scores) == lists.precision(scores)


@pytest.mark.parametrize("hidden", [0, 4])
def test_several_perceptrons_are_one(hidden: int) -> None:
    """Their mean, member by member."""
    random = np.random.default_rng(1)
    features = random.normal(size=(80, len(FEATURES))).astype(np.float32)
    lists = Lists(features, np.tile(np.eye(8, dtype=np.float32)[2], 10), np.arange(11) * 8)
    members = [learn_perceptron(lists, hidden, 0.01, seed)(features) for seed in (5, 6, 7)]
    together = learn_combination(lists, 5, Kind("", 3, hidden, 0))(features)
    np.testing.assert_allclose(together, np.mean(members, axis=0), atol=1e-5)
    assert hidden == 0 or np.abs(members[0] - members[1]).max() > 1e-3


def test_a_run_keeps_the_combination_that_pays(finished: Path) -> None:
    """It is in the run, better than fusion on products that its folds never saw, and every kind tried is told."""
    run = load_run(finished)
    assert run.evidence is not None and run.combination is not None
    report = run.metrics["combination"]
    told = {name: own["P@1"] + own["P@5"] for name, own in report["out_of_fold"].items()}
    assert report["kept"] and set(told) == {"fusion", *(kind.name for kind in kinds(112))}
    assert max(told, key=lambda name: told[name]) == report["kind"]
    units = sum(kind.members * kind.hidden for kind in kinds(112) if kind.name == report["kind"])
    assert run.combination.hidden_bias.size == units
    assert report["lists"] == 112
    assert not (finished / FOLDS_FOLDER).exists()
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["combination"] == report


def test_a_combination_that_does_not_pay_is_left_out(
    catalogue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where plain fusion does no worse out of fold, the run fuses, and says what was tried."""

    def useless(lists: Lists, seed: int, kind: Kind) -> object:
        return lambda features: np.arange(len(features), dtype=np.float32)  # the worst cosine first

    monkeypatch.setattr(folds_module, "learn_combination", useless)
    metrics = train(read_catalogue(catalogue_folder), tiny_config(FOLDED), tmp_path / "run", Reporter(quiet=True))
    run = load_run(tmp_path / "run")
    assert run.evidence is None and run.combination is None
    report = metrics["combination"]
    assert not report["kept"] and "kind" not in report
    assert max(own["P@1"] for name, own in report["out_of_fold"].items() if name != "fusion") < 0.5
    assert metrics["full"] == metrics["fusion"]


def test_a_killed_run_goes_on_behind_its_finished_folds(
    catalogue_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the second fold begins: the first is not trained again, and the end is the same to the bit."""
    catalogue, config = read_catalogue(catalogue_folder), tiny_config(FOLDED)
    trained: list[str] = []
    original = folds_module.fold_catalogue

    def stop_at_second(*arguments: object) -> object:
        if arguments[2] == 1:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(folds_module, "fold_catalogue", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            train(catalogue, config, tmp_path / "run", Reporter(quiet=True))
    marker = tmp_path / "run" / FOLDS_FOLDER / "0" / "model" / "run.json"
    before = marker.stat().st_mtime_ns
    kept = folds_module.lessons

    def looking(*arguments: object) -> object:
        trained.append(str(marker.stat().st_mtime_ns))
        return kept(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(folds_module, "lessons", looking)
    train(catalogue, config, tmp_path / "run", Reporter(quiet=True))
    assert trained == [str(before)]
    for name in ("evidence.npz", "combination.npz", "model.safetensors"):
        assert (tmp_path / "run" / "model" / name).read_bytes() == (finished / "model" / name).read_bytes()


def test_tail_calibration_takes_from_labels_by_their_training_products(
    catalogue_folder: Path, finished: Path, tmp_path: Path
) -> None:
    """The same combination otherwise; what is recommended first is rarer."""
    catalogue = read_catalogue(catalogue_folder)
    config = tiny_config(FOLDED, "combination.tail_calibration=2")
    metrics = train(catalogue, config, tmp_path / "run", Reporter(quiet=True))
    plain, run = load_run(finished), load_run(tmp_path / "run")
    assert plain.combination is not None and run.combination is not None and plain.combination.tail == 0
    assert run.combination.tail == pytest.approx(metrics["combination"]["tail"]) and run.combination.tail < 0
    features = np.random.default_rng(0).normal(size=(50, len(FEATURES))).astype(np.float32)
    frequency = features[:, FEATURES.index("log_frequency")]
    expected = replace(run.combination, tail=0.0)(features) + np.float32(run.combination.tail) * frequency
    np.testing.assert_allclose(run.combination(features), expected, rtol=1e-5)
    firsts = [rank_split(folder, catalogue, "valid").rows["full"][:, 0] for folder in (finished, tmp_path / "run")]
    common = catalogue.splits["train"].relevance.label_frequency()
    assert common[firsts[1]].mean() < common[firsts[0]].mean()


def test_tail_calibration_needs_a_combination() -> None:
    """Named with both values."""
    with pytest.raises(ConfigError, match=r"tail_calibration is 0\.1 and folds 0"):
        CombinationConfig(tail_calibration=0.1)


def test_too_many_training_products_are_refused(
    catalogue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained, with both numbers and what to set."""
    monkeypatch.setattr(folds_module, "MOST_PRODUCTS", 100)
    with pytest.raises(ConfigError, match=r"112 training products.*up to 100; set combination\.folds=0"):
        train(read_catalogue(catalogue_folder), tiny_config(FOLDED), tmp_path / "run", Reporter(quiet=True))
    assert not (tmp_path / "run" / FOLDS_FOLDER).exists()


def test_many_products_are_compared_by_lists_in_folds_and_in_the_end(
    catalogue_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided by the whole catalogue: a fold has fewer, and with the validation products there are more."""
    made: list[int] = []

    def gathered(*arguments: Any) -> Evidence:
        found = gather_evidence(*arguments)
        assert found.lists is not None
        made.append(len(found.products))
        return found

    monkeypatch.setattr(folds_module, "gather_evidence", gathered)
    catalogue = read_catalogue(catalogue_folder)
    config = tiny_config(FOLDED, "combination.exact_products=100", "refit=evidence")
    train(catalogue, config, tmp_path / "run", Reporter(quiet=True))
    training, validation = (len(catalogue.splits[name].products) for name in ("train", "valid"))
    assert max(made[:2]) < 100 < training and made[2:] == [training, training + validation]
    run = load_run(tmp_path / "run")
    assert run.evidence is not None and run.evidence.lists is not None
    assert len(run.evidence.lists.by_sentence) == training + validation
    plain = load_run(finished).evidence
    assert plain is not None and plain.lists is None


def test_a_limit_of_no_product_is_refused() -> None:
    """Named with the value."""
    with pytest.raises(ConfigError, match=r"exact_products is 0, needs at least 1"):
        CombinationConfig(exact_products=0)


def test_one_fold_is_refused() -> None:
    """There would be nothing to train on."""
    with pytest.raises(ConfigError, match=r"folds is 1, needs 0, or 2 or more"):
        CombinationConfig(1)


@pytest.mark.parametrize("hidden", [0, 5])
def test_gradients_by_hand_are_autograd_s(hidden: int) -> None:
    """Of the listwise softmax, with lists of unlike sizes and several relevant candidates."""
    torch.manual_seed(3)
    network, features = _network(4, hidden), torch.randn(9, 4)
    relevant, group = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2])
    scores = network(features).squeeze(-1)
    log_shares = torch.cat([scores[group == own].log_softmax(0) for own in range(3)])
    hits = torch.zeros(3).index_add(0, group, relevant)
    (-(log_shares * relevant / hits[group]).sum() / 3).backward()  # type: ignore[no-untyped-call]
    expected = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    _set_gradients(network, features, relevant.numpy(), np.asarray([0, 3, 8]))
    found = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(found) == len(expected) == (4 if hidden else 2)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)
