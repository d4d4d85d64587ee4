"""A bundle of the authors' checkpoint computes what their network does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from model_export.__main__ import main
from model_export.official import OfficialSettings, trained_official
from mufin.bundle import open_bundle
from mufin.catalogue import ImageReader, Item, read_catalogue
from mufin.errors import CheckpointError, ConfigError
from mufin.inputs import TitleTokenizer, decode_image
from mufin.predictor import Predictor, open_predictor
from mufin.training.official import check, compute, read_network
from mufin.training.progress import Reporter
from tests.training.test_official import OTHER_SIZES, write_folder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "official"
SIDE, LABELS, PRODUCTS = 32, 20, 12
WORDS = tuple(f"word{number}" for number in range(150))
QUIET = Reporter(quiet=True)


def tokenizer_json(words: int = len(WORDS)) -> str:
    """Whole words with [CLS] and [SEP], below the fixture's 200 ids."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{number}" for number in range(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    """The fixture's module 4, the size of pictures, a generated tokenizer."""
    folder.mkdir()
    config = {**json.loads((FIXTURE / "config.json").read_text()), "image_side_pixels": SIDE, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(FIXTURE / "module4.safetensors", folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return folder


def write_catalogue(folder: Path, valid: bool, labels: int = LABELS) -> Path:
    """Items with a title and none to three pictures of noise, exactly as large as the network takes them."""
    random = np.random.default_rng(4)
    folder.mkdir()
    for kind, count in (("product", PRODUCTS), ("label", labels)):
        lines = []
        for number in range(count):
            images = [f"{kind}-{number}-{place}.png" for place in range(number % 4)]
            for name in images:
                Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / name)
            title = " ".join(random.choice(WORDS, 2 + number % 7))
            lines.append(json.dumps({"id": f"{kind}{number}", "title": title, "images": images}))
        (folder / f"{kind}s.jsonl").write_text("\n".join(lines) + "\n")
    pairs = [f"product{n},label{(n * 7 + i) % labels}" for n in range(PRODUCTS) for i in range(4)]
    (folder / ("valid.csv" if valid else "test.csv")).write_text("\n".join(["product_id,label_id", *pairs]) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as released, of toy size."""
    return write_checkpoint(tmp_path_factory.mktemp("official") / "checkpoint")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a validation split."""
    return write_catalogue(tmp_path_factory.mktemp("official") / "things", valid=False)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command."""
    target = tmp_path_factory.mktemp("official") / "bundle"
    arguments = ["--official", str(checkpoint), str(catalogue), str(target), "--quiet", "--no-report"]
    assert main(arguments) == 0
    return target


def pictures(catalogue: Path, item: Item) -> np.ndarray:
    """(I, side, side, 3) uint8"""
    with ImageReader(catalogue) as reader:
        return np.stack(
            [np.zeros((SIDE, SIDE, 3), np.uint8), *(decode_image(reader.read(i), SIDE) for i in item.images)]
        )[1:]


def official_inputs(predictor: Predictor, catalogue: Path, shortlist: np.ndarray) -> dict[str, np.ndarray]:
    """The catalogue laid out as the fixture's inputs.npz: pictures as float32 in 0..1, channels first."""
    read = read_catalogue(catalogue)
    inputs: dict[str, np.ndarray] = {"shortlist": shortlist, "relevance": np.eye(PRODUCTS, LABELS)}
    for side, items in (("doc", read.products), ("label", read.labels)):
        tokens = predictor.tokenizer.encode([item.title for item in items])
        pixels = [pictures(catalogue, item) for item in items]
        inputs[f"{side}_input_ids"], inputs[f"{side}_attention_mask"] = tokens.ids, tokens.mask
        inputs[f"{side}_image_counts"] = np.array([len(own) for own in pixels])
        inputs[f"{side}_images"] = np.concatenate(pixels).transpose(0, 3, 1, 2).astype(np.float32) / 255
    return inputs


def test_every_score_of_the_bundle_is_the_authors_networks(bundle: Path, checkpoint: Path, catalogue: Path) -> None:
    """Bag, embedding, shortlist cosine, classifier and fused score, from picture files on, within 1e-4.

    The other side is the very function that ``python -m mufin.training.official --check`` holds against the golden
    vectors of the authors' own classes, fed with module 4 for the shortlist, too (docs/network.md).
    """
    assert all(result.passed for result in check(FIXTURE))
    predictor = open_predictor(bundle)
    products = read_catalogue(catalogue).products
    bags = predictor.embed([p.title for p in products], [pictures(catalogue, p) for p in products])
    shortlists = predictor.shortlist(np.stack([bag.embedding for bag in bags]))
    shortlist = np.stack([own.labels for own in shortlists])
    assert shortlist.shape == (PRODUCTS, LABELS)
    config = json.loads((checkpoint / "config.json").read_text())
    model = read_network(checkpoint, "module4", config)
    expected = compute(config, official_inputs(predictor, catalogue, shortlist), model, model)

    near: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
    for row, bag in enumerate(bags):
        np.testing.assert_allclose(bag.slots, expected["m4_doc_bag"][row][expected["m4_doc_mask"][row] > 0], **near)
    np.testing.assert_allclose(np.stack([bag.embedding for bag in bags]), expected["m1_doc_embedding"], **near)
    np.testing.assert_allclose(np.stack([own.scores for own in shortlists]), expected["m2_score"], **near)
    np.testing.assert_allclose(predictor.rerank(bags, shortlists), expected["m4_score"], **near)
    for row, (bag, own) in enumerate(zip(bags, shortlists, strict=True)):
        ranking = predictor.fuse(bag, own, predictor.rerank([bag], [own])[0], LABELS)
        order = np.argsort(own.labels)[np.searchsorted(np.sort(own.labels), ranking.labels)]
        np.testing.assert_allclose(ranking.scores, expected["fused_0.5"][row][order], **near)
    every = np.arange(LABELS)
    np.testing.assert_allclose(predictor.labels.records(every).classifiers, expected["m4_classifier"], **near)
    np.testing.assert_allclose(predictor.labels.embeddings(every), expected["m1_label_embedding"], **near)


def test_titles_and_pictures_are_the_authors_encoders(bundle: Path, checkpoint: Path, catalogue: Path) -> None:
    """The two graphs by themselves; pictures as uint8 on one side, as floats in 0..1 on the other."""
    predictor, config = open_predictor(bundle), json.loads((checkpoint / "config.json").read_text())
    model = read_network(checkpoint, "module4", config)
    inputs = official_inputs(predictor, catalogue, np.zeros((PRODUCTS, 1), np.int64))
    with torch.no_grad():
        ids, mask = (torch.from_numpy(inputs[f"doc_{name}"]) for name in ("input_ids", "attention_mask"))
        titles = model.encoder.text(ids, mask).numpy()
        floats = (torch.from_numpy(inputs["doc_images"]) - config["image_mean"]) / config["image_std"]
        images = model.encoder.image.encode_features(model.encoder.image.features(floats)).numpy()
    products = read_catalogue(catalogue).products
    np.testing.assert_allclose(predictor.encode_titles([p.title for p in products]), titles, rtol=0, atol=1e-4)
    pixels = np.concatenate([pictures(catalogue, p) for p in products])
    np.testing.assert_allclose(predictor.encode_images(pixels), images, rtol=0, atol=1e-4)


def test_provenance_says_what_was_made_of_what(bundle: Path, catalogue: Path) -> None:
    """Without a validation split the stated default; no path of either folder."""
    manifest = open_bundle(bundle).manifest
    assert manifest.provenance["origin"]["kind"] == "official"
    assert manifest.provenance["origin"]["fusion_weight"] == "default"
    assert manifest.provenance["origin"]["calibration"].startswith("none")
    assert (manifest.score_spec.fusion_weight, manifest.name) == (0.5, "things")
    assert str(catalogue.parent) not in json.dumps(dict(manifest.provenance))


def test_a_validation_split_fits_weight_and_calibration(checkpoint: Path, tmp_path: Path) -> None:
    """As training would; a given weight stays, and only the calibration is fitted."""
    folder = write_catalogue(tmp_path / "things", valid=True)
    fitted, _ = trained_official(checkpoint, folder, OfficialSettings(), QUIET)
    assert fitted.origin["fusion_weight"] == fitted.origin["calibration"] == "fitted on valid"
    assert fitted.metrics["fusion_weight"] == fitted.score_spec.fusion_weight
    assert set(fitted.metrics) >= {"shortlist", "classifier", "full"}
    given, _ = trained_official(checkpoint, folder, OfficialSettings(fusion_weight=0.9), QUIET)
    assert (given.score_spec.fusion_weight, given.origin["fusion_weight"]) == (0.9, "given")
    assert given.score_spec.calibration_both.scale != 1.0


def test_several_heads_are_exported_when_they_are_merged_rightly(tmp_path: Path, catalogue: Path) -> None:
    """Golden products prove the bundle; the release's own merging depends on a batch's padding, and is refused."""
    config = {**OTHER_SIZES, "mufin_attention_heads": 3, "image_side_pixels": SIDE}
    folder, target = write_folder(tmp_path / "heads", config), tmp_path / "bundle"
    (folder / "tokenizer.json").write_text(tokenizer_json(40))
    things = write_catalogue(tmp_path / "things", valid=False, labels=config["labels"])
    assert main(["--official", str(folder), str(things), str(target), "--quiet", "--no-report"]) == 0
    assert open_predictor(target).replay_golden().passed
    legacy = write_checkpoint(tmp_path / "legacy", mufin_attention_heads=3, legacy_heads=True)
    model = read_network(legacy, "module4", json.loads((legacy / "config.json").read_text()))
    bag = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = model.encoder.attend(bag[:, :2], torch.tensor([[True, True]]))
        padded = model.encoder.attend(bag, torch.tensor([[True, True, False]]))[:, :2]
    assert not torch.allclose(alone, padded, atol=0.1)
    with pytest.raises(ConfigError, match=r"legacy_heads is true with 3 attention heads: .* the padding of its batch"):
        trained_official(legacy, catalogue, OfficialSettings(), QUIET)


def test_another_number_of_labels_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Both values and the remedy."""
    folder = write_catalogue(tmp_path / "things", valid=False, labels=LABELS + 1)
    with pytest.raises(CheckpointError, match=r"classifiers of 20 labels, .*things has 21 labels: give the catalogue"):
        trained_official(checkpoint, folder, OfficialSettings(), QUIET)


def test_the_tokenizer_is_looked_for_and_checked(checkpoint: Path, catalogue: Path, tmp_path: Path) -> None:
    """An option, the folder's, what config.json names; one with more tokens than the encoder knows is refused."""
    alone = Path(shutil.copytree(checkpoint, tmp_path / "alone"))
    (alone / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(
        ConfigError, match=r"has no tokenizer\.json, and config\.json names no tokenizer: give --tokenizer"
    ):
        trained_official(alone, catalogue, OfficialSettings(), QUIET)
    given, _ = trained_official(alone, catalogue, OfficialSettings(str(tmp_path / "elsewhere.json")), QUIET)
    named = write_checkpoint(tmp_path / "named", tokenizer=str(tmp_path / "elsewhere.json"))
    (named / "tokenizer.json").unlink()
    other, _ = trained_official(named, catalogue, OfficialSettings(), QUIET)
    assert given.tokenizer_json == other.tokenizer_json == tokenizer_json()
    assert TitleTokenizer(given.tokenizer_json, 8).vocabulary_size == len(WORDS) + 4
    (tmp_path / "large.json").write_text(tokenizer_json(300))
    with pytest.raises(ConfigError, match=r"has 304 tokens, the title encoder knows 200"):
        trained_official(alone, catalogue, OfficialSettings(str(tmp_path / "large.json")), QUIET)
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"none\.json: is no tokenizer\.json"):
        trained_official(alone, catalogue, OfficialSettings(str(tmp_path / "none.json")), QUIET)


def test_a_folder_without_classifiers_is_refused(
    checkpoint: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Module 1 alone has no classifiers; a missing config.json, and a key too few, are named."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    arguments = ["--official", str(folder), str(catalogue), str(tmp_path / "bundle"), "--quiet"]
    weights = load_file(folder / "module4.safetensors")
    del weights["item_encoder.module.label_clf.weights.weight"]
    save_file(weights, folder / "module4.safetensors")
    assert main(arguments) == 1
    assert "missing keys: classifiers.gate.weight" in capsys.readouterr().err
    (folder / "module4.safetensors").unlink()
    shutil.copy(FIXTURE / "module1.safetensors", folder)
    assert main(arguments) == 1
    assert "has no module4.safetensors" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert main(arguments) == 1
    assert "config.json: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_options_of_other_commands_are_refused(tmp_path: Path) -> None:
    """A run has its own tokenizer and weight; --official takes its catalogue as an argument."""
    run, bundle = str(tmp_path), str(tmp_path / "b")
    for arguments in (
        [run, bundle, "--fusion-weight", "0.5"], [run, bundle, "--tokenizer", "x"], ["--official", run],
        ["--official", run, run, bundle, "--catalogue", run], ["--official", run, run],
    ):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
