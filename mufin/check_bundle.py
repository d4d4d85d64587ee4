"""python -m mufin.check_bundle: whether bundles may be served, before anybody depends on them.

Knows no service. For init containers and rollouts: every hash is checked and the golden products are replayed, as at the
start of mufin-serve.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mufin.bundle import MANIFEST_FILE
from mufin.errors import BundleError, MufinError
from mufin.predictor import open_predictor


def bundles_in(folder: Path) -> list[Path]:
    """The folder itself where it is a bundle, else the bundles in it. Raises BundleError where there is none."""
    if (folder / MANIFEST_FILE).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}"))
    if not found:
        raise BundleError(f"{folder}: holds no bundle, nor does a folder in it: name what mufin-export wrote")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every bundle; one line each. Returns the exit code: 1 when any must not be served."""
    parser = argparse.ArgumentParser(prog="python -m mufin.check_bundle", description="Check bundles before serving.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a bundle, or a folder of bundles")
    options = parser.parse_args(arguments)
    failed = False
    for folder in options.folders:
        try:
            for bundle in bundles_in(folder):
                predictor = open_predictor(bundle, kernel="numpy")
                parity = predictor.replay_golden()
                failed |= not parity.passed
                print(f"{bundle}: {predictor.bundle_id} {'ok' if parity.passed else 'computes something else'}")
                if not parity.passed:
                    print(parity.table(), file=sys.stderr)
                elif parity.advice:
                    print(f"{bundle}: warning: {parity.advice}", file=sys.stderr)
        except MufinError as error:
            failed = True
            print(f"check_bundle: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
