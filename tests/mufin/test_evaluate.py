"""mufin-evaluate over a real tiny bundle, a real tiny run, and the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mufin.catalogue import ImageReader, forbidden_pairs, read_catalogue
from mufin.evaluate import Settings, evaluate, main, parse_propensity
from mufin.inputs import decode_image
from mufin.metrics import AMAZON_PROPENSITY, relevant
from mufin.predictor import open_predictor
from mufin.progress import ProgressBar
from mufin.rankings import RANKINGS, BundleSubject, open_subject
from mufin.significance import Bootstrap
from tests.bundle_factory import COLOURS, KINDS, SIDE, make_tiny_bundle, picture, tiny_labels
from tests.catalogue_factory import make_tiny_catalogue

LABELS = 40
QUICK = Settings(bootstrap=Bootstrap(replicates=50))
RUN_SETTINGS = [
    'text.options={"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}',
    'image.options={"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
    '"intermediate_size": 16, "image_size": 16, "patch_size": 8}',
    "inputs.image_side_pixels=16", "network.dimension=8", "shortlist.size=10", "siamese.batch_size=16",
    "siamese.epochs=1", "siamese.random_epochs=1", "frozen_ranker.epochs=0", "ranker.epochs=1", "ranker.batch_size=16",
    "vocabulary_size=200",
]  # fmt: skip


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.write_text("product_id,label_id\n" + "".join(f"{p},{label}\n" for p, label in pairs), encoding="utf-8")


def make_shop(folder: Path, *, valid: bool = True) -> Path:
    """30 products for the tiny bundle's labels, which stand in another order here; two products are labels, too."""
    (folder / "images").mkdir(parents=True)
    products: list[dict[str, Any]] = []
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for number in range(30):
        colour, kind = COLOURS[number % 5], KINDS[number % 4]
        name = f"images/{number}.png"
        (folder / name).write_bytes(picture(colour, kind="PNG"))
        identifier = f"L{number}" if number < 2 else f"p{number}"
        images = [] if number % 4 == 1 else [name, name, name]
        products.append(
            {"id": identifier, "title": "" if number % 4 == 2 else f"{colour} {kind} no {number}", "images": images}
        )
        own = {number, *(i for i in range(LABELS) if i % 5 == number % 5 and (i // 5) % 4 == number % 4)}
        (train if number < 18 else test).extend((identifier, f"L{label}") for label in sorted(own))
    write_lines(folder / "products.jsonl", products)
    write_lines(
        folder / "labels.jsonl", [{"id": o.id, "title": o.title or "picture"} for o in reversed(tiny_labels(LABELS))]
    )
    write_pairs(folder / "train.csv", train)
    write_pairs(folder / "valid.csv" if valid else folder / "test.csv", test)
    excluded = [("p18", "L18")] + [(f"p{n}", f"L{i}") for n in range(19, 24) for i in range(n % 5, LABELS, 5) if i != n]
    write_pairs(folder / "exclude.csv", excluded)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny bundle for the whole file."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", labels=LABELS, shortlist_size=12)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One catalogue for that bundle."""
    return make_shop(tmp_path_factory.mktemp("catalogues") / "shop")


def small_run(folder: Path) -> tuple[Path, Path]:
    """A catalogue without a validation split in ``folder``, and a small run trained on it."""
    from mufin.training.config_reading import build_config
    from mufin.training.progress import Reporter
    from mufin.training.recipe import train

    catalogue = make_tiny_catalogue(folder / "catalogue", with_labels=False)
    (catalogue / "valid.csv").rename(catalogue / "test.csv")
    train(read_catalogue(catalogue), build_config(None, RUN_SETTINGS), folder / "run", Reporter(quiet=True))
    return catalogue, folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One for the whole file."""
    return small_run(tmp_path_factory.mktemp("trained"))


def product_by_product(bundle: Path, shop: Path, excluded: bool) -> dict[str, list[list[int]]]:
    """The top ten of every validation product, asked for one at a time."""
    predictor, catalogue = open_predictor(bundle), read_catalogue(shop)
    reader, found = ImageReader(shop), {name: list[list[int]]() for name in RANKINGS}
    index = {label.id: i for i, label in enumerate(catalogue.labels)}
    for row in catalogue.splits["valid"].products:
        item = catalogue.products[row]
        images = [decode_image(reader.read(name), SIDE) for name in item.images]
        pixels = np.stack(images) if images else np.zeros((0, SIDE, SIDE, 3), np.uint8)
        bag = predictor.embed([item.title], [pixels])
        banned = {catalogue.labels[i].id for i in catalogue.exclude.row(int(row))} if excluded else set()
        out = [predictor.labels.index_of(own) for own in banned | ({item.id} & index.keys())]
        ranking = predictor.rank(bag, 12, excluded=[np.array(sorted(i for i in out if i is not None), np.int64)])[0]
        labels = np.array([index[label.id] for label in predictor.labels.describe(ranking.labels)])
        by = {"shortlist": ranking.shortlist_scores, "classifier": ranking.classifier_scores, "fused": ranking.scores}
        for name, scores in by.items():
            found[name].append([label for _, label in sorted(zip(-scores, labels.tolist(), strict=True))[:10]])
    return found


@pytest.mark.parametrize("excluded", [True, False])
def test_batches_rank_as_products_one_by_one(bundle: Path, shop: Path, excluded: bool) -> None:
    """Batching, label matching by id and exclusion give each product the predictor's own answer in the catalogue's
    numbers."""
    steps: list[tuple[str, int, int]] = []
    subject = BundleSubject(bundle, batch_size=5, threads=1)
    ranked = subject.rank(read_catalogue(shop), "valid", True, lambda *step: steps.append(step))
    found = ranked.allowed if excluded else ranked.unfiltered
    assert found is not None
    expected = product_by_product(bundle, shop, excluded)
    assert {name: rows.tolist() for name, rows in found.items()} == expected
    banned = forbidden_pairs(read_catalogue(shop)).select(read_catalogue(shop).splits["valid"].products)
    assert bool(relevant(found["fused"], banned).any()) is not excluded
    assert [step[1:] for step in steps] == [(5, 12), (10, 12), (12, 12)]


def test_a_report_agrees_with_the_rankings_and_holds_every_figure(bundle: Path, shop: Path) -> None:
    """P@1 is counted by hand from the rankings; intervals hold their values; bands add up; JSON is strict."""
    catalogue = read_catalogue(shop)
    subject = open_subject(bundle)
    report = evaluate(subject, catalogue, "valid", replace(QUICK, without_exclude=True), subject)
    valid, forbidden = catalogue.splits["valid"], forbidden_pairs(catalogue)
    top = subject.rank(catalogue, "valid", False, lambda *_: None).allowed["fused"][:, 0]
    right = [set(valid.relevance.row(i)) - set(forbidden.row(int(p))) for i, p in enumerate(valid.products)]
    expected = np.mean([label in own for label, own in zip(top, right, strict=True) if own])
    fused = report.figures.rankings["fused"]
    assert fused["P@1"].value == pytest.approx(expected)
    assert report.figures.relevant_pairs == sum(len(own) for own in right)
    assert all(own.low <= own.value <= own.high for own in fused.values())
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    names = ["P@1", "P@3", "P@5", "nDCG@1", "nDCG@3", "nDCG@5", "PSP@1", "PSP@3", "PSP@5", "PSnDCG@1", "PSnDCG@3"]
    names += ["PSnDCG@5", "R@1", "R@3", "R@5", "R@10", "P@5/max", "R@10/max"]
    for part in (values, values["without_exclude"]):
        assert list(part["rankings"]) == ["shortlist", "classifier", "fused"]
        assert all(list(own) == names for own in part["rankings"].values())
        for ranking, bands in part["bands"].items():
            total = sum(bands[f"P@5 {band}"]["value"] for band in ("head", "torso", "tail"))
            assert total == pytest.approx(part["rankings"][ranking]["P@5"]["value"], abs=1e-5)
    assert values["without_exclude"]["relevant_pairs"] == sum(
        len(set(valid.relevance.row(i))) for i in range(len(valid.products))
    )
    assert values["without_exclude"]["relevant_pairs"] > report.figures.relevant_pairs
    assert all(own["difference"] == 0 for own in values["comparison"]["differences"].values())
    assert values["fused_over_shortlist"]["P@1"]["difference"] == pytest.approx(
        fused["P@1"].value - report.figures.rankings["shortlist"]["P@1"].value, abs=1e-6
    )


def test_propensities_and_bands_come_from_training_pairs_alone(bundle: Path, shop: Path) -> None:
    """Changing what validation holds changes no weight; without training pairs there is none, and it is said."""
    catalogue = read_catalogue(shop)
    facts = evaluate(open_subject(bundle), catalogue, "valid", QUICK).band_facts
    assert sum(own["train_pairs"] for own in facts.values()) == len(catalogue.splits["train"].relevance.indices)
    alone = replace(catalogue, splits={"test": catalogue.splits["valid"]})
    report = evaluate(open_subject(bundle), alone, "test", QUICK)
    assert "PSP@1" not in report.figures.rankings["fused"]
    assert "no training pairs" in report.table()


def test_the_command_prints_a_table_and_writes_json(
    bundle: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table on stdout, progress on stderr, the same numbers in the file, ceilings with the share reached."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    (folder / "ceilings.json").write_text('{"all attributes": {"P@1": 0.8}, "title only": {"P@1": 0.5}}')
    target = tmp_path / "figures.json"
    command = [str(bundle), str(folder), "--json", str(target), "--compare", str(bundle), "--replicates", "40"]
    assert main([*command, "--propensity", "amazon", "--without-exclude"]) == 0
    out, err = capsys.readouterr()
    values = json.loads(target.read_text())
    fused = values["rankings"]["fused"]["P@1"]
    assert f"{fused['value']:.4f} [{fused['low']:.4f}, {fused['high']:.4f}]" in out
    for text in ("shortlist", "classifier", "PSnDCG@5", "tail", "share above 0", "attainable: P@5", "title only"):
        assert text in out
    assert values["settings"]["propensity"] == {"a": 0.6, "b": 2.6, "train_products": 18}
    assert values["share_of_ceilings"]["all attributes"]["P@1"] == pytest.approx(fused["value"] / 0.8, abs=1e-5)
    assert "ranking valid: 12/12" in err
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "says"), [("absent/a.json", "absent is no folder; make it"), (".", "is a folder")])
def test_a_file_that_cannot_be_written_is_refused_before_the_evaluation(
    name: str, says: str, bundle: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nothing is read and ranked in vain."""
    monkeypatch.setattr("mufin.evaluate.read_catalogue", lambda folder: pytest.fail("began"))
    assert says in fail(capsys, bundle, shop, "--json", tmp_path / name)


def test_the_table_is_printed_though_the_file_cannot_be_written(
    bundle: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up meanwhile must not cost the figures."""

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main([str(bundle), str(shop), "--quiet", "--replicates", "5", "--json", str(tmp_path / "a.json")]) == 1
    out, err = capsys.readouterr()
    assert "P@1" in out and "No space left" in err


def test_a_seed_repeats_the_figures(bundle: Path, shop: Path) -> None:
    """Two evaluations of one seed are equal in every digit; another seed draws other products."""
    catalogue = read_catalogue(shop)
    first, second = (evaluate(open_subject(bundle), catalogue, "valid", QUICK).to_json() for _ in range(2))
    assert first == second
    other = evaluate(open_subject(bundle), catalogue, "valid", Settings(bootstrap=Bootstrap(50, seed=1))).to_json()
    assert other["rankings"] != first["rankings"]


def fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says when it must not succeed."""
    assert main([str(argument) for argument in arguments] + ["--quiet", "--replicates", "5"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_an_unknown_split_names_those_there_are(bundle: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy stands in the message."""
    assert "has no split 'tets'; it has train, valid: name one of them" in fail(capsys, bundle, shop, "--split", "tets")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda labels: labels[1:],
            "bundle has 40 labels, {shop} has 39; 0 of the catalogue are not in the bundle, 1 ('L39')",
        ),
        (lambda labels: [*labels, {"id": "new", "title": "x"}], "bundle has 40 labels, {shop} has 41; 1 ('new')"),
        (
            lambda labels: [{"id": "new", "title": "x"}, *labels[1:]],
            "1 ('new') of the catalogue are not in the bundle, 1 ('L39')",
        ),
    ],
)
def test_other_labels_are_refused_with_both_counts(
    change: Callable[[list[Any]], list[Any]], message: str, bundle: Path, shop: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Fewer, more, or as many but different labels: counts, examples and the remedy."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    write_lines(folder / "labels.jsonl", change(labels))
    for name in ("train.csv", "valid.csv", "exclude.csv"):
        pairs = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(pair for pair in pairs if not pair.endswith(",L39\n")))
    error = fail(capsys, bundle, folder)
    assert message.format(shop=folder) in error
    assert "name the catalogue that the bundle was made from" in error


def test_a_folder_that_is_neither_is_refused(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A catalogue is no run; an unfinished run is to be resumed."""
    assert "neither manifest.json (a bundle) nor model/run.json" in fail(capsys, shop, shop)
    (tmp_path / "metrics.jsonl").write_text("")
    assert "the run is not finished: run mufin-train again" in fail(capsys, tmp_path, shop)


def test_a_broken_picture_ends_the_evaluation(
    bundle: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of a product whose picture was silently left out would be figures of something else."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    (folder / "images/20.png").write_bytes(b"no picture")
    assert "images/20.png: the content is no JPEG, PNG or WebP image; replace or remove" in fail(capsys, bundle, folder)


def test_a_split_that_is_all_excluded_is_refused(
    bundle: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing to score is a fault of the catalogue, not a row of NaN."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    shutil.copy(folder / "valid.csv", folder / "exclude.csv")
    assert "pairs of split valid are excluded" in fail(capsys, bundle, folder)


def test_faulty_ceilings_are_refused(
    bundle: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ceilings file of another form is named."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    (folder / "ceilings.json").write_text('{"all": 3}')
    assert "ceilings.json: is no" in fail(capsys, bundle, folder)


def test_a_bundle_that_does_not_know_its_validation_cut_says_so(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut made up here could hold training products."""
    shop = make_shop(tmp_path / "shop", valid=False)
    assert "does not say how its validation split was cut: write valid.csv" in fail(capsys, bundle, shop)
    assert main([str(bundle), str(shop), "--split", "test", "--quiet", "--replicates", "5"]) == 0


def test_a_run_is_scored_on_the_validation_split_its_training_cut(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are those that training wrote for its own cut, and a run equals itself."""
    catalogue, run = trained
    target = tmp_path / "run.json"
    command = [str(run), str(catalogue), "--json", str(target), "--compare", str(run), "--replicates", "20"]
    assert main(command) == 0
    assert "run " in capsys.readouterr().out
    values, own = json.loads(target.read_text()), json.loads((run / "model" / "run.json").read_text())["metrics"]
    for name, full in (("shortlist", "shortlist"), ("classifier", "classifier"), ("fused", "full")):
        assert values["rankings"][name]["P@1"]["value"] == pytest.approx(own[full]["P@1"], abs=1e-5)
    assert values["comparison"]["differences"]["P@5"]["difference"] == 0


def test_a_run_is_scored_on_test_with_and_without_exclude(trained: tuple[Path, Path]) -> None:
    """Excluding the product itself changes nothing here, as the label with its id is never ranked anyway."""
    catalogue, run = read_catalogue(trained[0]), trained[1]
    report = evaluate(open_subject(run), catalogue, "test", replace(QUICK, without_exclude=True))
    assert report.without_exclude is not None
    assert report.without_exclude.rankings == report.figures.rankings
    assert sum(own["train_pairs"] for own in report.band_facts.values()) == len(
        catalogue.splits["train"].relevance.indices
    )


def test_evaluating_a_bundle_imports_no_torch(bundle: Path, shop: Path) -> None:
    """The base installation has none of what training installs, and whoever imports it here meets an ImportError."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'scipy', 'pyarrow'))); "
        "from mufin.evaluate import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(bundle), str(shop), "--replicates", "5", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "P@1" in done.stdout


def test_propensity_is_read_from_text() -> None:
    """Two numbers or a name; anything else is for argparse to report."""
    assert parse_propensity("amazon") == AMAZON_PROPENSITY == parse_propensity("0.6,2.6")
    with pytest.raises(ValueError, match=r"could not convert|not enough"):
        parse_propensity("x")


def test_progress_draws_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With rich and a terminal there is a bar; it ends with the block."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with ProgressBar() as progress:
        progress("ranking", 1, 2)
        progress("ranking", 2, 2)
    assert "100%" in capsys.readouterr().err
