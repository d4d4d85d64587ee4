"""Configuration: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mufin.catalogue import read_catalogue
from mufin.errors import ConfigError
from mufin.training.config_reading import build_config, config_from_json
from mufin.training.presets import PRESETS
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_whole_and_survive_json(preset: str) -> None:
    """A config goes through a checkpoint unchanged."""
    overrides = ["text.name=some/encoder"] if preset == "frozen" else []
    config = build_config(preset, overrides)
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_300k_preset_is_the_release() -> None:
    """The figures of the release's newest configuration."""
    config = build_config("paper-300k")
    siamese, frozen, fine = config.siamese, config.frozen_ranker, config.ranker
    assert (siamese.epochs, siamese.batch_size, siamese.margin, siamese.hard_negatives) == (300, 1023, 0.3, 10)
    assert (siamese.learning_rate, siamese.random_epochs, siamese.recluster_epochs, siamese.cluster_size) == (
        2e-4,
        20,
        5,
        32,
    )
    assert (frozen.epochs, frozen.batch_size, frozen.negatives, frozen.positives, frozen.margin) == (
        20,
        400,
        12,
        2,
        0.5,
    )
    assert (frozen.encoder_learning_rate, frozen.cross_learning_rate, frozen.classifier_learning_rate) == (
        5e-4,
        5e-4,
        5e-3,
    )
    assert (fine.batch_size, fine.encoder_learning_rate, fine.cross_learning_rate, fine.classifier_learning_rate) == (
        200,
        1e-5,
        1e-4,
        1e-3,
    )
    assert (config.network.dimension, config.network.attention_heads, config.shortlist.size) == (192, 1, 300)
    assert config.shortlist.head_frequency == 1000


def test_overrides_reach_nested_keys() -> None:
    """--set takes dotted keys and JSON values; a plain word is text."""
    config = build_config(
        None, ["siamese.epochs=3", "network.spectral_norm=false", "siamese.loss=margin", "text.name=some/encoder"]
    )
    assert (config.siamese.epochs, config.network.spectral_norm, config.siamese.loss) == (3, False, "margin")
    assert config.text.name == "some/encoder" and not config.text.options


def test_a_file_may_start_from_a_preset(tmp_path: Path) -> None:
    """TOML and JSON files change single keys of the preset they name."""
    (tmp_path / "a.toml").write_text('preset = "small"\nseed = 5\n[siamese]\nepochs = 2\n')
    config = build_config(tmp_path / "a.toml")
    assert (config.seed, config.siamese.epochs, config.siamese.loss) == (5, 2, "softmax")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("siamese.epoch=3", r"unknown key siamese\.epoch; known: epochs"),
        ("siamese.epochs=0", r"siamese\.epochs is 0, needs at least 1"),
        ("siamese.epochs=many", r"siamese\.epochs: is 'many', needs int"),
        ("siamese.epochs=true", r"siamese\.epochs: is True, needs int"),
        ("precision=fp8", r"precision: is 'fp8', must be one of 'fp32', 'bf16', 'fp16'"),
        ("network.attention_heads=7", r"dimension 96 is no multiple of attention_heads 7"),
        ("frozen_ranker.epochs=0", r"both 0: classifiers would stay untrained"),
        ("siamese", r"write key=value"),
        ("text.trainable_layers=2", r"a random encoder cannot be frozen"),
        ("siamese.label_to_product_weight=-1", r"label_to_product_weight is -1\.0 with loss softmax: needs 0 or more"),
        ("frozen_ranker.distillation_weight=-0.5", r"distillation_weight is -0\.5, needs 0 or more"),
        ("inputs.max_title_tokens=2", r"config inputs: max_title_tokens is 2, needs at least 3"),
        ("siamese.weight_decay=-1", r"siamese\.weight_decay is -1\.0, needs 0 or more"),
        ("siamese.classifier_learning_rate=-1", r"siamese\.classifier_learning_rate is -1\.0, needs 0 or more"),
        ("frozen_ranker.weight_decay=-0.5", r"config frozen_ranker: ranker weight_decay is -0\.5, needs 0 or more"),
        ("ranker.encoder_learning_rate=-1", r"config ranker: ranker learning rates are \(-1\.0"),
        ("checkpoint_minutes=-5", r"checkpoint_minutes is -5\.0, needs 0 or more"),
        ("seed=-1", r"seed is -1, must lie in 0\.\.18446744073709551615"),
        ("seed=" + "9" * 5000, r"config seed: is '999"),
        ("seed=18446744073709551616", r"seed is 18446744073709551616, must lie in 0\.\."),
        ("inputs.image_std=NaN", r"config inputs\.image_std: is nan, needs a finite number"),
        ("frozen_ranker.margin=Infinity", r"config frozen_ranker\.margin: is inf, needs a finite number"),
        ("siamese.learning_rate=1e999", r"config siamese\.learning_rate: is inf, needs a finite number"),
        (f"siamese.margin={10**400}", r"config siamese\.margin: is an integer of 1329 bits, needs a finite number"),
        ("text.options={}", r"the text encoder needs a name or options\.model_type: --set text\.name="),
        ("image.options={}", r"the image encoder needs .* --set image\.options="),
        (
            "image.trainable_layers=0",
            r"image\.trainable_layers is 0 without image\.name, and a random encoder .* --set image",
        ),
    ],
)
def test_contradictions_are_refused_by_name(override: str, message: str) -> None:
    """Every refusal names the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        build_config(None, [override])


def test_a_missing_file_lists_the_presets(tmp_path: Path) -> None:
    """A typo in a preset's name is answered with the names there are."""
    with pytest.raises(ConfigError, match="nor a preset \\(small, frozen, paper-300k\\)"):
        build_config(tmp_path / "smal")


@pytest.mark.parametrize("preset", [["small"], {"name": "small"}, 7, "smal"])
def test_a_preset_that_is_no_name_is_refused_with_the_file(preset: object, tmp_path: Path) -> None:
    """Lists and numbers, too."""
    (tmp_path / "a.json").write_text(json.dumps({"preset": preset}))
    with pytest.raises(ConfigError, match=r"a\.json: unknown preset .*, have small, frozen, paper-300k"):
        build_config(tmp_path / "a.json")


def test_every_seed_that_is_taken_can_be_trained_with(tmp_path: Path) -> None:
    """Up to the last one, whose successors are counted from 0 again."""
    folds = ("combination.folds=2", "combination.exact_products=1", "ranker.epochs=0")
    config = tiny_config(*folds, f"seed={2**64 - 1}", "siamese.epochs=1", "frozen_ranker.epochs=1")
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "catalogue", 100))
    assert train(catalogue, config, tmp_path / "run", Reporter(quiet=True))["full"]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """Unreadable JSON is reported with its file."""
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read"):
        build_config(tmp_path / "a.json")


def test_label_to_product_loss_needs_the_softmax_loss() -> None:
    """The hinge has no such side."""
    with pytest.raises(ConfigError, match=r"label_to_product_weight is 1\.0 with loss margin: .* loss=softmax"):
        build_config("small", ["siamese.loss=margin", "siamese.label_to_product_weight=1"])
