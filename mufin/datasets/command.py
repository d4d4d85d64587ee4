"""What the commands of all data sets share: options, errors, the account at the end.

Knows no data set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mufin.datasets.catalogue_folder import Account
from mufin.errors import MufinError
from mufin.progress import ProgressBar

Converter = Callable[[argparse.Namespace, ProgressBar], Account]


def make_parser(module: str, description: str, sources: str, source_help: str) -> argparse.ArgumentParser:
    """A parser with SOURCE, CATALOGUE and --quiet; ``sources`` is argparse's nargs, "1" for one."""
    name = module.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m mufin.datasets.{name}", description=description)
    parser.add_argument(
        "sources", type=Path, nargs=1 if sources == "1" else sources, metavar="SOURCE", help=source_help
    )
    parser.add_argument("catalogue", type=Path, metavar="CATALOGUE", help="folder to write; must not exist")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """--valid and --test, for data sets that have no splits of their own."""
    for name, share in (("valid", 0.1), ("test", 0.1)):
        parser.add_argument(
            f"--{name}", type=_share, default=share, help=f"share of the products of {name}.csv, by a hash of the title (%(default)s)"
        )  # fmt: skip


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share < 0.5:
        raise argparse.ArgumentTypeError(f"{text} does not lie in 0..0.5 (0.5 left out)")
    return share


def positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, convert: Converter) -> int:
    """Converts, prints the account; returns the exit code. Nothing is left behind after an error."""
    options = parser.parse_args(arguments)
    try:
        with ProgressBar(options.quiet) as progress:
            account = convert(options, progress)
    except (MufinError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{options.catalogue}: written")
    print("\n".join(account.lines()))
    return 0
