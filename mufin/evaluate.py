"""mufin-evaluate: a run or a bundle against a split of a catalogue.

Knows neither network nor formulas: ``rankings`` ranks, ``metrics`` and ``significance`` score, the report prints.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mufin.catalogue import Catalogue, Split, forbidden_pairs, read_catalogue
from mufin.errors import CatalogueError, ConfigError, MufinError
from mufin.evaluation_report import Comparison, Figures, Report
from mufin.inputs import Int64Array
from mufin.label_bands import LabelBands, label_bands, score_bands
from mufin.metrics import (
    AMAZON_PROPENSITY,
    Float64Array,
    Propensity,
    RowScores,
    inverse_propensities,
    remove_from_relevance,
    score_rows,
)
from mufin.progress import ProgressBar
from mufin.rankings import RANKINGS, Progress, Subject, open_subject
from mufin.relevance import Relevance
from mufin.significance import Bootstrap, Interval, compare, intervals

CEILINGS_FILE = "ceilings.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen about an evaluation."""

    propensity: Propensity = field(default_factory=Propensity)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    without_exclude: bool = False
    """Also give figures with exclude pairs treated like any other."""


@dataclass(frozen=True, slots=True, eq=False)
class _Training:
    """What the training pairs say of the labels."""

    weights: Float64Array
    bands: LabelBands


def evaluate(
    subject: Subject, catalogue: Catalogue, split: str, settings: Settings | None = None,
    other: Subject | None = None, progress: Progress = lambda task, done, total: None,
) -> Report:  # fmt: skip
    """Rank the split, score it, and compare with ``other``. Raises MufinError for what does not fit together."""
    settings = settings or Settings()
    subjects = [subject] if other is None else [subject, other]
    for own in subjects if split == "valid" else ():
        if own.trained_on_validation():
            raise MufinError(
                f"{own.path}: learned from the validation split, too (refit), so figures on it say nothing; those from "
                "before stand in model/run.json of the run: score --split test, or train with --set refit=none"
            )
    if split != "test" and "valid" not in catalogue.splits and "train" in catalogue.splits:
        catalogue = _cut_as_trained(catalogue, subjects)
    train = catalogue.splits.get("train")
    relevance = _relevance(catalogue, split)
    training = None if train is None else _training(train, settings.propensity)
    ranked = subject.rank(catalogue, split, settings.without_exclude, progress)
    scores = _score_all(ranked.allowed, relevance, training)
    figures = _figures(scores, relevance, settings.bootstrap)
    report = Report(
        _describe(subject), str(catalogue.folder), split, _settings_json(settings, train), figures,
        {} if training is None else training.bands.describe(),
        compare(scores["fused"][0], scores["shortlist"][0], settings.bootstrap),
        ceilings=read_ceilings(catalogue.folder),
        notes=() if train is not None else ("there are no training pairs: no PSP, PSnDCG, head, torso and tail",),
    )  # fmt: skip
    if ranked.unfiltered is not None:
        open_relevance = _relevance(catalogue, split, with_exclude=False)
        open_scores = _score_all(ranked.unfiltered, open_relevance, training)
        report = replace(report, without_exclude=_figures(open_scores, open_relevance, settings.bootstrap))
    if other is not None:
        fused = other.rank(catalogue, split, False, progress).allowed["fused"]
        theirs = score_rows(fused, relevance, None if training is None else training.weights)
        report = replace(report, comparison=_compare(scores["fused"][0], theirs, other, settings.bootstrap))
    return report


def _cut_as_trained(catalogue: Catalogue, subjects: Sequence[Subject]) -> Catalogue:
    """The catalogue with the validation split that training cut from it."""
    cuts = [subject.validation_cut() for subject in subjects]
    if cuts[-1] != cuts[0]:
        raise MufinError(
            f"{subjects[0].path} was trained with the validation cut {asdict(cuts[0])}, {subjects[1].path} with "
            f"{asdict(cuts[1])}, so one was trained on what the other is scored on: write valid.csv and train again"
        )
    found = [subject.cut_as_trained(catalogue) for subject in subjects]  # each knows what it was trained on
    return found[0]


def _relevance(catalogue: Catalogue, split: str, with_exclude: bool = True) -> Relevance:
    """What counts as right for the split's products, forbidden pairs taken out."""
    if split not in catalogue.splits:
        present = ", ".join(catalogue.splits)
        raise CatalogueError(catalogue.folder, None, f"has no split {split!r}; it has {present}: name one of them")
    own = catalogue.splits[split]
    forbidden = forbidden_pairs(catalogue, with_exclude).select(own.products)
    relevance = remove_from_relevance(own.relevance, forbidden)
    if len(relevance.indices) == 0:
        reason = f"all {len(own.relevance.indices)} pairs of split {split} are excluded; correct exclude.csv"
        raise CatalogueError(catalogue.folder, None, reason)
    return relevance


def _training(train: Split, propensity: Propensity) -> _Training:
    frequency = train.relevance.label_frequency()
    weights = inverse_propensities(frequency, len(train.products), propensity)
    return _Training(weights, label_bands(frequency))


def _score_all(
    rankings: Mapping[str, Int64Array], relevance: Relevance, training: _Training | None
) -> dict[str, tuple[RowScores, RowScores | None]]:
    """Ranking -> its figures and, where there are training pairs, its parts by band."""
    scores: dict[str, tuple[RowScores, RowScores | None]] = {}
    for name in RANKINGS:
        if training is None:
            scores[name] = score_rows(rankings[name], relevance), None
        else:
            parts = score_bands(rankings[name], relevance, training.bands)
            scores[name] = score_rows(rankings[name], relevance, training.weights), parts
    return scores


def _figures(
    scores: Mapping[str, tuple[RowScores, RowScores | None]], relevance: Relevance, bootstrap: Bootstrap
) -> Figures:
    rankings: dict[str, dict[str, Interval]] = {}
    bands: dict[str, dict[str, Interval]] = {}
    for name, (own, parts) in scores.items():
        # One set of draws for both: drawing costs more than scoring.
        found = intervals(own if parts is None else own.joined(parts), bootstrap)
        rankings[name] = {figure: found[figure] for figure in own.names}
        if parts is not None:
            bands[name] = {figure: found[figure] for figure in parts.names}
    fused = scores["fused"][0]
    scored = len(fused.rows)
    return Figures(scored, fused.row_count - scored, len(relevance.indices), fused.attainable(), rankings, bands)


def _compare(ours: RowScores, theirs: RowScores, other: Subject, bootstrap: Bootstrap) -> Comparison:
    return Comparison(_describe(other), intervals(theirs, bootstrap), compare(ours, theirs, bootstrap))


def _describe(subject: Subject) -> dict[str, str]:
    described = {"kind": subject.kind, "path": str(subject.path)}
    return {**described, "bundle_id": subject.identity} if subject.identity else described


def _settings_json(settings: Settings, train: Split | None) -> dict[str, Any]:
    return {
        "propensity": None if train is None else {**asdict(settings.propensity), "train_products": len(train.products)},
        "bootstrap": asdict(settings.bootstrap),
    }


def read_ceilings(folder: Path) -> dict[str, dict[str, float]]:
    """Oracle -> figure -> value of the folder's ceilings.json; empty without one. Raises CatalogueError."""
    path = folder / CEILINGS_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
        return {str(o): {str(n): float(v) for n, v in reached.items()} for o, reached in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = f'is no {{"oracle": {{"P@1": number}}}} ({error}); write the catalogue again or remove the file'
        raise CatalogueError(path, None, reason) from error


def parse_propensity(text: str) -> Propensity:
    """``A,B``, or ``amazon``. Raises ValueError, which argparse reports."""
    if text == "amazon":
        return AMAZON_PROPENSITY
    a, b = (float(part) for part in text.split(","))
    return Propensity(a, b)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mufin-evaluate", description="Score a run or a bundle on a catalogue split.")
    parser.add_argument("subject", type=Path, metavar="RUN_OR_BUNDLE", help="folder of mufin-train or mufin-export")
    parser.add_argument("catalogue", type=Path, metavar="CATALOGUE", help="catalogue folder (docs/catalogue.md)")
    parser.add_argument("--split", default="valid", help="split to score (default valid)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument(
        "--compare", type=Path, metavar="RUN_OR_BUNDLE", help="another one, scored on the same products"
    )
    parser.add_argument(
        "--propensity", type=parse_propensity, default=Propensity(), metavar="A,B",
        help="of PSP and PSnDCG: two numbers, or amazon for 0.6,2.6 (default 0.55,1.5)",
    )  # fmt: skip
    parser.add_argument("--without-exclude", action="store_true", help="also score with exclude pairs left in")
    parser.add_argument("--replicates", type=int, default=1000, help="bootstrap draws (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--batch-size", type=int, default=32, help="products a bundle encodes together (default 32)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of a bundle's graph call")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.replicates, options.batch_size, options.threads) < 1 or options.seed < 0:
        parser.error("--replicates, --batch-size and --threads need at least 1, --seed at least 0")
    try:
        _run(options)
    except (MufinError, OSError) as error:
        print(f"mufin-evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmufin-evaluate: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.json is not None:
        _require_writable(options.json)
    catalogue = read_catalogue(options.catalogue)
    paths = [options.subject] if options.compare is None else [options.subject, options.compare]
    subjects = [open_subject(path, options.batch_size, options.threads) for path in paths]
    settings = Settings(options.propensity, Bootstrap(options.replicates, options.seed), options.without_exclude)
    other = subjects[1] if len(subjects) > 1 else None
    with ProgressBar(options.quiet) as progress:
        report = evaluate(subjects[0], catalogue, options.split, settings, other, progress)
    # First of all the table: whatever becomes of the file, the figures have been seen.
    print(report.table(), flush=True)
    if options.json is not None:
        text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        options.json.write_text(text, encoding="utf-8")


def _require_writable(path: Path) -> None:
    """Before the evaluation, which may take hours. Leaves nothing behind: an interrupted run writes nothing."""
    if path.is_dir():
        raise ConfigError(f"--json {path}: is a folder; name a file")
    if not path.exists() and not path.parent.is_dir():
        raise ConfigError(f"--json {path}: {path.parent} is no folder; make it, or name a file elsewhere")
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise ConfigError(f"--json {path}: {place} may not be written to; allow it, or name a file elsewhere")


if __name__ == "__main__":
    sys.exit(main())
