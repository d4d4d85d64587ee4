"""The recommended recipe: every size gives a whole config, and the reasons say what was chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from mufin.catalogue import read_catalogue
from mufin.evidence import MOST_PRODUCTS
from mufin.training.__main__ import main
from mufin.training.auto import recommend, recommended
from mufin.training.config_reading import build_config
from tests.catalogue_factory import make_tiny_catalogue


@pytest.mark.parametrize(
    ("training", "folds", "batch"),
    [(500, 4, 256), (8_000, 3, 512), (90_000, 3, 512), (200_000, 3, 512), (MOST_PRODUCTS + 1, 0, 1023)],
)
@pytest.mark.parametrize("encoder", ["some/encoder", None])
def test_every_size_has_a_recipe(training: int, folds: int, batch: int, encoder: str | None) -> None:
    """More products, fewer folds and larger batches; none beyond what evidence is made for."""
    config = build_config(recommended(training, 100, True, encoder).values)
    assert config.combination.folds == folds and config.siamese.batch_size == batch
    assert config.refit == ("none" if not folds else "network" if training == 500 else "evidence")
    if encoder is not None:
        assert config.text.name == encoder
        assert config.text.trainable_layers == (None if training > MOST_PRODUCTS else 0)


def test_where_products_are_compared_by_lists_the_reasons_say_so() -> None:
    """Beyond what is compared one by one."""
    few, many = (" ".join(recommended(count, 100, False, "some/encoder").reasons) for count in (50_000, 50_001))
    assert "lists nearest to it" not in few and "lists nearest to it" in many


def test_without_pictures_no_room_is_made_for_them() -> None:
    """And with them they are described without training, which the reasons say."""
    plain, pictured = (recommended(500, 100, there, "some/encoder") for there in (False, True))
    assert build_config(plain.values).inputs.max_images == 0
    assert build_config(pictured.values).image.options["model_type"] == "mufin-descriptor"
    assert len(pictured.reasons) == len(plain.reasons) + 1


@pytest.mark.parametrize("training", [500, MOST_PRODUCTS + 1])
def test_what_is_missing_rules_every_size(training: int) -> None:
    """Without pictures no room and nothing to fetch for them, without an encoder a small one; both with their reasons."""
    bare = recommended(training, 100, False, None)
    config = build_config(bare.values)
    assert config.inputs.max_images == 0 and config.image.name is None
    assert config.text.name is None and config.text.options["dim"] == 128
    assert any("no pretrained title encoder" in reason for reason in bare.reasons)
    whole = recommended(training, 100, True, "some/encoder")
    assert build_config(whole.values).inputs.max_images > 0
    assert (
        build_config(recommended(training, 100, True, None).values).image.name == build_config(whole.values).image.name
    )
    if training > MOST_PRODUCTS:
        assert any("no pictures" in reason for reason in bare.reasons)
        assert not any("no pictures" in reason for reason in whole.reasons)


def test_it_counts_training_products(tmp_path: Path) -> None:
    """Of the split, where there is one."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "catalogue", 60))
    count = len(catalogue.splits["train"].products)
    assert f"{count} training products" in recommend(catalogue, None).reasons[0]


def test_the_command_says_why_and_takes_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an installed encoder a small one is trained; --set wins."""
    folder = make_tiny_catalogue(tmp_path / "catalogue", 60)
    settings = ["combination.folds=0", "siamese.epochs=1", "network.dimension=8", "network.word_vectors=4"]
    settings += [
        'text={"options": {"model_type": "distilbert", "dim": 8, "n_layers": 1, "n_heads": 1, "hidden_dim": 8}}'
    ]
    arguments = [part for own in settings for part in ("--set", own)]
    assert main([str(folder), str(tmp_path / "run"), "--config", "auto", *arguments]) == 0
    said = capsys.readouterr().out
    assert "auto: " in said and "learned combination" in said
    assert '"epochs": 1,' in (tmp_path / "run" / "model" / "run.json").read_text()
