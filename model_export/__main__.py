"""mufin-export: a run in, a bundle out; or a bundle verified."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from model_export.export import ExportSettings, export, export_trained
from model_export.int8_report import PrecisionSettings
from model_export.label_index import IndexSettings
from model_export.label_records import RecordType
from model_export.label_updates import add_labels, remove_labels
from model_export.official import DEFAULT_FUSION_WEIGHT, OfficialSettings, trained_official
from model_export.verify import verify_bundle
from mufin.errors import MufinError
from mufin.golden import Parity
from mufin.label_records_file import RECORD_NUMBERS
from mufin.processor import int8_sums_overflow
from mufin.training.progress import Reporter


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mufin-export", description="Make a bundle of a run, or verify a bundle.")
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        metavar="RUN",
        help="finished run folder of mufin-train; with --official the CATALOGUE, to add or remove labels the BUNDLE",
    )
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="bundle folder to make; must not exist")
    parser.add_argument("--verify", type=Path, metavar="BUNDLE", help="check hashes and replay golden products instead")
    parser.add_argument(
        "--official", type=Path, metavar="FOLDER",
        help="checkpoints of the authors' release: mufin-export --official FOLDER CATALOGUE BUNDLE",
    )  # fmt: skip
    parser.add_argument(
        "--add-labels", type=Path, metavar="FILE",
        help="further labels (JSONL or Parquet) without training: mufin-export --add-labels FILE BUNDLE NEW_BUNDLE",
    )  # fmt: skip
    parser.add_argument(
        "--remove-labels", type=Path, metavar="FILE",
        help="labels to take out, one id a line: mufin-export --remove-labels FILE BUNDLE NEW_BUNDLE",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", metavar="PATH",
        help="with --official: tokenizer.json, folder or hub name (default: FOLDER/tokenizer.json, then config.json's)",
    )  # fmt: skip
    parser.add_argument(
        "--fusion-weight", type=float, metavar="ALPHA",
        help=f"with --official: share of the classifier's score (default: fitted on valid; {DEFAULT_FUSION_WEIGHT} without)",
    )  # fmt: skip
    parser.add_argument("--catalogue", type=Path, help="catalogue folder, when it is no longer where the run saw it")
    parser.add_argument("--name", help="name of the bundle (default: the catalogue folder's)")
    _add_choices(parser)
    parser.add_argument("--no-report", action="store_true", help="no latency measured, no report.html")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """What can be chosen about a bundle, and about the machine that makes it."""
    parser.add_argument("--record-type", choices=RECORD_NUMBERS, default="float32", help="of records.bin")
    parser.add_argument("--image-base-url", help="URL put before folder-relative label images in answers")
    parser.add_argument(
        "--exact-labels", type=int, default=IndexSettings.exact_labels, help="most labels searched exactly"
    )
    parser.add_argument(
        "--index-recall", type=float, default=IndexSettings.target_recall, metavar="SHARE",
        help="least share of the exact shortlist that an approximate index must find (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--index-kind", choices=IndexSettings.kinds,
        help="the approximate index to build (default: the cheapest that finds enough)",
    )  # fmt: skip
    parser.add_argument(
        "--encoders", choices=("auto", "fp32", "int8"), default=PrecisionSettings.encoders,
        help="int8: title and image encoders in int8, refused when they cost more than --int8-tolerance; "
        "auto: those that are large enough to gain by it and cost no more (default auto)",
    )  # fmt: skip
    parser.add_argument(
        "--int8-tolerance", type=float, default=PrecisionSettings.tolerance_points, metavar="POINTS",
        help="most that P@1 of the validation products may fall by int8, in points (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--int8-reduced-range", action=argparse.BooleanOptionalAction, default=int8_sums_overflow(),
        help="7-bit weights, for serving on x86-64 processors without VNNI, too (default: where this is one)",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="cpu", help="where labels are encoded: cpu, cuda (every GPU), cuda:1, ... (default cpu)"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that encode labels (default 1)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if fault := _fault(options):
        parser.error(fault)
    try:
        parity = _done(options)
    except (MufinError, OSError) as error:
        print(f"mufin-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nmufin-export: interrupted; no bundle was written. The same command takes over the labels encoded so far",
            file=sys.stderr,
        )
        return 130
    if not options.quiet:
        print(parity.table())
        print(f"bundle: {options.verify or options.bundle}")
    return 0 if parity.passed else 1


def _fault(options: argparse.Namespace) -> str | None:
    """What is wrong with the arguments together."""
    updating = [name for name in ("add_labels", "remove_labels") if getattr(options, name) is not None]
    if updating:
        return _update_fault(options, updating)
    if (options.verify is None) == (options.source is None) or (options.source is not None and options.bundle is None):
        return "give RUN and BUNDLE, or --official FOLDER CATALOGUE BUNDLE, or --verify BUNDLE"
    if options.official is None and (options.tokenizer is not None or options.fusion_weight is not None):
        return "--tokenizer and --fusion-weight belong to --official: a run has its own"
    if options.official is not None and (options.verify is not None or options.catalogue is not None):
        return "--official takes CATALOGUE and BUNDLE as its arguments: leave --verify and --catalogue out"
    return None


def _update_fault(options: argparse.Namespace, updating: Sequence[str]) -> str | None:
    allowed = {"source", "bundle", "quiet", updating[0]} | ({"image_base_url"} if updating == ["add_labels"] else set())
    defaults = vars(_parser().parse_args([]))
    surplus = [name for name in defaults if name not in allowed and getattr(options, name) != defaults[name]]
    flag = "--" + updating[0].replace("_", "-")
    if surplus:
        named = ", ".join("--" + name.replace("_", "-") for name in surplus)
        return f"{flag} leaves everything else of a bundle as it is: leave out {named}"
    return None if options.bundle is not None else f"give {flag} FILE BUNDLE NEW_BUNDLE"


def _done(options: argparse.Namespace) -> Parity:
    if options.verify is not None:
        return verify_bundle(options.verify)
    if options.add_labels is None and options.remove_labels is None:
        return _export_from(options)
    with Reporter(options.quiet) as reporter:
        if options.add_labels is not None:
            updated = add_labels(
                options.source, options.add_labels, options.bundle, reporter.step, options.image_base_url,
                os.cpu_count() or 1,
            )  # fmt: skip
        else:
            updated = remove_labels(options.source, options.remove_labels, options.bundle, reporter.step)
        reporter.say(f"{updated.labels} labels" + (", tombstones cleared away" if updated.compacted else ""))
    return updated.parity


def _export_from(options: argparse.Namespace) -> Parity:
    settings = ExportSettings(
        name=options.name,
        record_type=cast(RecordType, options.record_type),
        image_base_url=options.image_base_url,
        index=IndexSettings(
            exact_labels=options.exact_labels,
            target_recall=options.index_recall,
            kinds=IndexSettings.kinds if options.index_kind is None else (options.index_kind,),
        ),
        precision=PrecisionSettings(options.encoders, options.int8_tolerance, options.int8_reduced_range),
        device=options.device,
        processes=options.processes,
        report=not options.no_report,
    )
    with Reporter(options.quiet) as reporter:
        if options.official is None:
            return export(options.source, options.bundle, settings, reporter, options.catalogue)
        own = OfficialSettings(options.tokenizer, options.fusion_weight)
        trained, catalogue = trained_official(options.official, options.source, own, reporter)
        return export_trained(trained, catalogue, options.bundle, settings, reporter)


if __name__ == "__main__":
    sys.exit(main())
