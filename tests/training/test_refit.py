"""Refit: the kept network learned from validation products, too; what was chosen, and its figures, are from before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mufin.catalogue import Catalogue, forbidden_pairs, read_catalogue
from mufin.errors import ConfigError, MufinError
from mufin.evaluate import evaluate
from mufin.rankings import open_subject
from mufin.training import recipe
from mufin.training import refit as refit_module
from mufin.training.checkpoint import load_run
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.refit import REFIT_FOLDER, with_validation
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.test_recipe import weights
from tests.training.tiny_config import tiny_config

CHANGES = ("combination.folds=2", "ranker.epochs=0")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Enough products for two folds."""
    return read_catalogue(make_tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "tiny", 140))


@pytest.fixture(scope="module")
def without(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps the network that never saw the validation split."""
    folder = tmp_path_factory.mktemp("runs") / "without"
    train(catalogue, tiny_config(*CHANGES), folder, Reporter(quiet=True))
    return folder


@pytest.fixture(scope="module")
def refitted(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with refit."""
    folder = tmp_path_factory.mktemp("runs") / "refitted"
    train(catalogue, tiny_config(*CHANGES, "refit=network"), folder, Reporter(quiet=True))
    return folder


def test_both_splits_are_one(catalogue: Catalogue) -> None:
    """Every product with its own pairs, and the validation split as it was."""
    joined = with_validation(catalogue)
    train_split, valid, whole = catalogue.splits["train"], catalogue.splits["valid"], joined.splits["train"]
    assert whole.products.tolist() == [*train_split.products.tolist(), *valid.products.tolist()]
    for row in range(len(valid.products)):
        place = len(train_split.products) + row
        np.testing.assert_array_equal(whole.relevance.row(place), valid.relevance.row(row))
    np.testing.assert_array_equal(whole.relevance.row(0), train_split.relevance.row(0))
    assert joined.splits["valid"] is valid


def test_what_was_chosen_and_its_figures_are_from_before(without: Path, refitted: Path) -> None:
    """Fusion weight, calibration, combination and metrics are those of the run that keeps the first network."""
    first, second = load_run(without), load_run(refitted)
    assert first.score_spec == second.score_spec
    assert first.metrics == second.metrics
    assert first.combination is not None and second.combination is not None
    np.testing.assert_array_equal(first.combination.hidden_weight, second.combination.hidden_weight)
    assert not (refitted / REFIT_FOLDER).exists()


def test_network_and_evidence_learned_from_all_products(catalogue: Catalogue, without: Path, refitted: Path) -> None:
    """Other weights, and validation products among the nearest ones, as the kept network embeds them."""
    first, second = weights(without), weights(refitted)
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    kept, whole = load_run(refitted).evidence, with_validation(catalogue).splits["train"]
    assert kept is not None
    np.testing.assert_array_equal(kept.relevance.indices, whole.relevance.indices)
    assert len(kept.products) == len(kept.product_words) == len(whole.products)
    # A validation product is now its own nearest neighbour.
    place, row = len(whole.products) - 1, int(whole.products[-1])
    title = kept.words.rows([catalogue.products[row].title]).row(0)
    (found,) = kept.of(kept.products.wide[place][None], [title], [kept.sentences.wide[place]])
    assert found.by_embedding.best == pytest.approx(1.0, abs=2e-3)
    own = np.setdiff1d(whole.relevance.row(place), forbidden_pairs(catalogue).row(row))
    assert (found.by_embedding.of(own)[0] > 0).all()


def test_evidence_alone_may_learn(catalogue: Catalogue, without: Path, tmp_path: Path) -> None:
    """The network is the one that validation judged, the neighbours are of both splits."""
    train(catalogue, tiny_config(*CHANGES, "refit=evidence"), tmp_path / "run", Reporter(quiet=True))
    first, second = weights(without), weights(tmp_path / "run")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    before, kept = load_run(without).evidence, load_run(tmp_path / "run").evidence
    assert before is not None and kept is not None
    assert len(kept.products) == len(before.products) + len(catalogue.splits["valid"].products)
    # The first ones are those of before, in their order.
    np.testing.assert_array_equal(kept.products.values[: len(before.products)], before.products.values)


def test_evidence_without_a_combination_is_refused() -> None:
    """There would be nothing to refit."""
    with pytest.raises(ConfigError, match=r"refit is 'evidence' and combination\.folds 0.*set refit=network or none"):
        tiny_config("refit=evidence")


def test_figures_on_the_validation_split_are_refused(catalogue: Catalogue, without: Path, refitted: Path) -> None:
    """They would flatter: the network was trained on it. The message names the run, why, and what to do."""
    assert evaluate(open_subject(without), catalogue, "valid").split == "valid"
    with pytest.raises(MufinError, match=r"refitted: learned from the validation split, too .* --split test"):
        evaluate(open_subject(refitted), catalogue, "valid")
    with pytest.raises(MufinError, match="refitted: learned from the validation split"):
        evaluate(open_subject(without), catalogue, "valid", other=open_subject(refitted))


def test_a_killed_run_goes_on_behind_its_finished_refit(
    catalogue: Catalogue, refitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while scores are fitted: the refit is not trained again, and the end is the same to the bit."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    config, folder = tiny_config(*CHANGES, "refit=network"), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(recipe, "fit_scores", killed)
        # Refit and folds fit no scores, so the first call is the run's own.
        with pytest.raises(KeyboardInterrupt):
            train(catalogue, config, folder, Reporter(quiet=True))
    before = (folder / REFIT_FOLDER / "model" / "run.json").stat().st_mtime_ns
    seen: list[int] = []
    original = refit_module.refitted

    def looking(*arguments: object) -> object:
        seen.append((folder / REFIT_FOLDER / "model" / "run.json").stat().st_mtime_ns)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe, "refitted", looking)
    train(catalogue, config, folder, Reporter(quiet=True))
    assert seen == [before]
    for name in ("evidence.npz", "combination.npz", "model.safetensors"):
        assert (folder / "model" / name).read_bytes() == (refitted / "model" / name).read_bytes()
