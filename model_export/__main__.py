"""mufin-export: a run in, a bundle out; or a bundle verified."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from model_export.export import ExportSettings, export
from model_export.label_index import IndexSettings
from model_export.label_records import RecordType
from model_export.verify import verify_bundle
from mufin.errors import MufinError
from mufin.golden import Parity
from mufin.training.progress import Reporter


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mufin-export", description="Make a bundle of a run, or verify a bundle.")
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="finished run folder of mufin-train")
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="bundle folder to make; must not exist")
    parser.add_argument("--verify", type=Path, metavar="BUNDLE", help="check hashes and replay golden products instead")
    parser.add_argument("--catalogue", type=Path, help="catalogue folder, when it is no longer where the run saw it")
    parser.add_argument("--name", help="name of the bundle (default: the catalogue folder's)")
    parser.add_argument("--record-type", choices=("float32", "float16"), default="float32", help="of records.bin")
    parser.add_argument("--image-base-url", help="URL put before folder-relative label images in answers")
    parser.add_argument(
        "--exact-labels", type=int, default=IndexSettings.exact_labels, help="most labels searched exactly"
    )
    parser.add_argument("--device", default="cpu", help="where labels are encoded: cpu, cuda (default cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.verify is None) == (options.run is None) or (options.run is not None and options.bundle is None):
        parser.error("give RUN and BUNDLE, or --verify BUNDLE")
    try:
        parity = verify_bundle(options.verify) if options.verify is not None else _export_from(options)
    except (MufinError, OSError) as error:
        print(f"mufin-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmufin-export: interrupted; no bundle was written", file=sys.stderr)
        return 130
    if not options.quiet:
        print(parity.table())
        print(f"bundle: {options.verify or options.bundle}")
    return 0 if parity.passed else 1


def _export_from(options: argparse.Namespace) -> Parity:
    settings = ExportSettings(
        name=options.name,
        record_type=cast(RecordType, options.record_type),
        image_base_url=options.image_base_url,
        index=IndexSettings(exact_labels=options.exact_labels),
        device=options.device,
    )
    with Reporter(options.quiet) as reporter:
        return export(options.run, options.bundle, settings, reporter, options.catalogue)


if __name__ == "__main__":
    sys.exit(main())
