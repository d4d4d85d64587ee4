"""Encoders by local path: read, frozen wholly or in part, their features kept on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from mufin.catalogue import read_catalogue
from mufin.errors import ConfigError
from mufin.training import folds as folds_module
from mufin.training.checkpoint import load_run
from mufin.training.combining import CombinedCandidates, Combiner, Lists
from mufin.training.config import EncoderConfig
from mufin.training.folds import FOLDS_FOLDER, fold_catalogue
from mufin.training.model import build_backbone
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.split_ranking import rank_split
from mufin.training.tokenizer import load_named_tokenizer
from tests.catalogue_factory import make_tiny_catalogue
from tests.encoder_factory import make_encoders
from tests.training.tiny_config import tiny_config


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and an image encoder in the form that transformers saves."""
    return make_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.mark.parametrize(("layers", "moved"), [(0, set()), (1, {1}), (None, {0, 1})], ids=["frozen", "last", "all"])
def test_only_the_named_layers_move(layers: int | None, moved: set[int], encoders: Path, tmp_path: Path) -> None:
    """trainable_layers 0 keeps an encoder bit for bit, 1 trains its last block, null everything."""
    config = tiny_config(
        f"text.name={encoders / 'text'}", f"image.name={encoders / 'image'}",
        f"text.trainable_layers={json.dumps(layers)}", f"image.trainable_layers={json.dumps(layers)}",
        "siamese.epochs=2", "frozen_ranker.epochs=1", "ranker.epochs=1",
    )  # fmt: skip
    train(read_catalogue(make_tiny_catalogue(tmp_path / "c")), config, tmp_path / "run", Reporter(quiet=True))
    from transformers import AutoModel

    trained = load_run(tmp_path / "run").model.encoder
    for name, backbone, stack in (
        ("text", trained.text.backbone, "transformer.layer"), ("image", trained.image.backbone, "layers"),
    ):  # fmt: skip
        before = AutoModel.from_pretrained(encoders / name).state_dict()
        after = backbone.state_dict()
        changed = {int(k.removeprefix(stack + ".").split(".")[0]) for k in after if k.startswith(stack)
                   and not torch.equal(after[k], before[k])}  # fmt: skip
        assert changed == moved, name
        embeddings = [k for k in after if k.startswith("embeddings")]
        assert all(torch.equal(after[k], before[k]) for k in embeddings) == (layers is not None)


def test_a_named_encoder_brings_its_tokenizer(encoders: Path) -> None:
    """The text of its tokenizer.json is what the run and the bundle carry."""
    definition = json.loads(load_named_tokenizer(str(encoders / "text")))
    assert definition["model"]["vocab"] == json.loads((encoders / "tokenizer.json").read_text())["model"]["vocab"]


def test_a_tokenizer_without_a_vocabulary_is_refused(encoders: Path, tmp_path: Path) -> None:
    """transformers would make one that knows no word."""
    folder = tmp_path / "mute"
    shutil.copytree(encoders / "text", folder)
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(
        ConfigError, match=r"mute' knows no word, only 5 special tokens: its folder needs a tokenizer.json"
    ):
        load_named_tokenizer(str(folder))


def copy_without(source: Path, target: Path, prefix: str) -> Path:
    """An encoder's folder whose weights lack those that begin with ``prefix``."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    kept = {name: values for name, values in weights.items() if not name.startswith(prefix)}
    assert 0 < len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return target


def test_an_encoder_that_lacks_weights_is_refused(encoders: Path, tmp_path: Path) -> None:
    """transformers would draw them at random."""
    folder = copy_without(encoders / "text", tmp_path / "half", "transformer.layer.1.")
    missing = r"half' lacks 16 of the weights .*\(transformer\.layer\.1\.\S+ is not there"
    with pytest.raises(ConfigError, match=missing):
        build_backbone(EncoderConfig(name=str(folder)))


def test_an_encoder_whose_weights_have_other_sizes_is_refused(encoders: Path, tmp_path: Path) -> None:
    """With the first of them, and both sizes."""
    folder = tmp_path / "other"
    shutil.copytree(encoders / "text", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dim": config["hidden_dim"] + 3}))
    sizes = rf"\({config['hidden_dim']},\) where \({config['hidden_dim'] + 3},\) is wanted"
    with pytest.raises(ConfigError, match=rf"other' lacks \d+ of the weights .* has {sizes}"):
        build_backbone(EncoderConfig(name=str(folder)))


@pytest.mark.parametrize("kept", [100, 0], ids=["cut short", "empty"])
def test_an_encoder_whose_weights_are_broken_is_refused(kept: int, encoders: Path, tmp_path: Path) -> None:
    """By name, as one that is not there."""
    folder = tmp_path / "broken"
    shutil.copytree(encoders / "text", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ConfigError, match="broken' cannot be loaded by name or from a folder"):
        build_backbone(EncoderConfig(name=str(folder)))


def test_an_encoder_is_loaded_without_a_word(encoders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No page about weights that nobody uses, no bar; and the library talks as before afterwards."""
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    build_backbone(EncoderConfig(name=str(encoders / "text")))
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_a_random_encoder_cannot_be_frozen() -> None:
    """Random weights that never learn are a mistake, named at once."""
    with pytest.raises(ConfigError, match="a random encoder cannot be frozen"):
        tiny_config("image.trainable_layers=0")


def test_lessons_are_what_the_folds_networks_say(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own word vectors, fitted on fewer titles: scored again from the fold's run alone, nothing differs."""
    config = tiny_config(
        f"text.name={encoders / 'text'}", f"image.name={encoders / 'image'}", "text.trainable_layers=0",
        "image.trainable_layers=0", "network.word_vectors=8", "combination.folds=2",
    )  # fmt: skip
    original, found = folds_module.candidates_of, []
    compared_lists: list[Lists] = []

    def looking(*arguments: object, **keywords: bool) -> CombinedCandidates:
        own: CombinedCandidates = original(*arguments, **keywords)  # type: ignore[arg-type]
        found.append((arguments[1], own, arguments[3]))
        return own

    kept = folds_module.lessons

    def compared(session: object, folds: folds_module.Folds, bags: Path) -> list[Lists]:
        lists = kept(session, folds, bags)  # type: ignore[arg-type]
        for fold, (_, own, combiner) in enumerate(found):
            part = fold_catalogue(folds.catalogue, folds.titles.folds, fold)
            again = rank_split(tmp_path / "run" / FOLDS_FOLDER / str(fold), part, "valid")
            ours = own.candidates
            assert isinstance(combiner, Combiner) and len(combiner.evidence.frequency) == len(part.labels)
            for row in range(len(again.products)):
                scores = dict(zip(ours.labels[row].tolist(), ours.shortlist_scores[row].tolist(), strict=True))
                for label, score in zip(again.rows["shortlist"][row], again.scores["shortlist"][row], strict=True):
                    if label >= 0:
                        assert scores[int(label)] == pytest.approx(float(score), abs=1e-5)
        assert len(found) == 2
        compared_lists.extend(lists)
        return lists

    monkeypatch.setattr(folds_module, "candidates_of", looking)
    monkeypatch.setattr(folds_module, "lessons", compared)
    mutual = read_catalogue(make_tiny_catalogue(tmp_path / "mutual", 140, with_labels=False))
    train(mutual, config, tmp_path / "run", Reporter(quiet=True), shared=tmp_path / "kept")
    assert len(compared_lists) == 2
    files = list((tmp_path / "kept").glob("sentences-*.keys.npy"))
    encoded = np.concatenate([np.load(path) for path in files])
    assert len(set(encoded.tolist())) == len(encoded), "a fold's labels are the catalogue's: no title is encoded twice"
