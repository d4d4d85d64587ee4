"""ESCI, Amazon's shopping queries: product to the queries it answers, as a catalogue folder.

Knows no training. Source: Reddy et al. 2022, Shopping Queries Dataset; the files of its repository, Parquet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mufin.datasets.catalogue_folder import (
    TEST,
    TRAIN,
    Account,
    CatalogueFolder,
    check_id,
    is_describable,
    keep_pairs,
    split_of,
)
from mufin.datasets.command import add_split_options, make_parser, run
from mufin.datasets.pair_spool import MergedPairs, PairSpool
from mufin.datasets.source_tables import read_table
from mufin.errors import CatalogueError
from mufin.inputs import BoolArray, Int64Array, normalise_title
from mufin.progress import ProgressBar

EXAMPLES_FILE = "shopping_queries_dataset_examples.parquet"
PRODUCTS_FILE = "shopping_queries_dataset_products.parquet"
GRADES = ("E", "S", "C", "I")
_SPLITS = {"train": TRAIN, "test": TEST}
_EXAMPLE_COLUMNS = ("query", "query_id", "product_id", "product_locale", "esci_label", "split")
_PRODUCT_COLUMNS = ("product_id", "product_title", "product_locale")
_METADATA = ("product_brand", "product_color")


def convert(
    source: Path, target: Path, progress: ProgressBar, *, locale: str = "us", grades: Sequence[str] = ("E",),
    version: str = "large", split_products: tuple[float, float] | None = None,
) -> Account:  # fmt: skip
    """Writes the catalogue ``target``. Memory: judged product ids and the queries' texts, and a Parquet row group.

    ``split_products``: shares of valid and test by products, in place of the data set's split by queries.
    """
    examples, table = source / EXAMPLES_FILE, source / PRODUCTS_FILE
    options = {"locale": locale, "grades": list(grades), "version": version, "split_products": split_products}
    with CatalogueFolder(target, "esci", options, [examples, table]) as folder:
        judged = _Judgements(folder, examples, locale, set(grades), version, progress)
        splits = np.full(len(judged.products), -1, dtype=np.int64)
        _write_products(folder, table, locale, judged, splits, split_products, progress)
        _write_rest(folder, judged, splits, moved=split_products is not None)
    return folder.account


class _Judgements:
    """Products and queries by row, and the relevant pairs."""

    def __init__(
        self, folder: CatalogueFolder, path: Path, locale: str, grades: set[str], version: str, progress: ProgressBar
    ) -> None:
        self.products: dict[str, int] = {}
        self.queries: dict[str, tuple[int, str]] = {}
        """Query id -> row, text"""
        self.spool = PairSpool(folder.scratch / "pairs")
        size = f"{version}_version"
        for row, values in read_table(path, (*_EXAMPLE_COLUMNS, size), progress):
            query, query_id, product_id, own_locale, grade, split, is_in = values
            if own_locale != locale:
                folder.account.leave_out(f"judgements of a locale that is not {locale}", path, row)
            elif is_in not in (0, 1):
                raise CatalogueError(path, row, f"{size} is {is_in!r}, expected 0 or 1; fetch the file again")
            elif not is_in:
                folder.account.leave_out(f"judgements not in the {version} version", path, row)
            elif grade not in GRADES:
                raise CatalogueError(path, row, f"esci_label is {grade!r}, expected one of {', '.join(GRADES)}")
            elif split not in _SPLITS:
                raise CatalogueError(path, row, f"split is {split!r}, expected train or test; fetch the file again")
            elif grade not in grades:
                folder.account.leave_out(f"judgements of grade {grade}", path, row)
            else:
                product = self.products.setdefault(check_id(product_id, path, row, "product_id"), len(self.products))
                self.spool.add(product, self._query(path, row, query_id, query), _SPLITS[split])

    def _query(self, path: Path, row: int, query_id: Any, query: Any) -> int:
        if not isinstance(query, str) or not isinstance(query_id, int | str):
            raise CatalogueError(path, row, f"query_id {query_id!r}, query {query!r}: expected a number and a string")
        known, text = self.queries.setdefault(
            check_id(str(query_id), path, row, "query_id"), (len(self.queries), query)
        )
        if text != query:
            raise CatalogueError(
                path, row, f"query {query_id} is {query!r}, before it was {text!r}; fetch the file again"
            )
        return known


def _write_products(
    folder: CatalogueFolder, path: Path, locale: str, judged: _Judgements, splits: Int64Array,
    split_products: tuple[float, float] | None, progress: ProgressBar,
) -> None:  # fmt: skip
    """Writes the judged products; ``splits`` (products,) gets TRAIN, VALID or TEST, and stays -1 where none was written."""
    account = folder.account
    met = np.zeros(len(splits), dtype=np.bool_)
    with folder.items("products") as file:
        for row, (product_id, title, own_locale, *more) in read_table(path, _PRODUCT_COLUMNS, progress, _METADATA):
            place = judged.products.get(product_id) if own_locale == locale else None
            if place is None:
                account.leave_out("products of another locale, or without a relevant query", path, row)
            elif met[place]:
                account.leave_out("products described before (the first is kept)", path, row)
            elif not isinstance(title, str | None):
                raise CatalogueError(path, row, f"product_title is {title!r}, expected a string")
            elif not is_describable(title or ""):
                met[place] = True
                account.leave_out("products with an empty title", path, row)
            else:
                met[place] = True
                names = ("brand", "color")
                metadata = {name: value for name, value in zip(names, more, strict=True) if value}
                file.write(product_id, title or "", **metadata)
                splits[place] = split_of(title or "", product_id, *split_products) if split_products else TRAIN
    account.leave_out(f"judged products that {path.name} does not have", count=int(np.count_nonzero(~met)))


def _write_rest(folder: CatalogueFolder, judged: _Judgements, splits: Int64Array, *, moved: bool) -> None:
    """Pairs and labels. ``moved``: the products' splits count, not those of the judgements."""
    texts = [text for _, text in judged.queries.values()]
    good = np.array([bool(normalise_title(text)) for text in texts], dtype=np.bool_)
    folder.account.leave_out("queries with an empty text", count=int(np.count_nonzero(~good)))
    relevant: BoolArray = np.zeros(len(texts), dtype=np.bool_)
    both = np.zeros(len(splits), dtype=np.int64)

    def pairs() -> Iterator[MergedPairs]:
        for merged in judged.spool.merged():
            folder.account.leave_out("judgements given more than once", count=int((merged.counts - 1).sum()))
            kept = keep_pairs(merged, splits >= 0, good, folder.account)
            relevant[kept.labels] = True
            if moved:
                kept = MergedPairs(kept.products, kept.labels, 1 << splits[kept.products], kept.counts)
            np.bitwise_or.at(both, kept.products, kept.splits)
            yield kept

    ids = list(judged.queries)
    folder.write_pairs(pairs(), list(judged.products), ids, "judgements of the grades and the locale asked for")
    folder.account.leave_out("queries without a relevant product", count=int(np.count_nonzero(good & ~relevant)))
    with folder.items("labels") as file:
        for row, (query_id, text) in enumerate(zip(ids, texts, strict=True)):
            if relevant[row]:
                file.write(query_id, text)
    if not moved:
        shared = int(np.count_nonzero(both & (both - 1)))
        folder.account.notes.append(
            f"the split is by queries: a test query has no training product, and {shared} products are in train and "
            "test, whose training queries count as wrong on test; --split-by-product gives a split with seen queries"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m mufin.datasets.esci SOURCE CATALOGUE``."""
    parser = make_parser("esci", __doc__, "1", f"the folder that holds {EXAMPLES_FILE} and {PRODUCTS_FILE}")
    parser.add_argument("--locale", default="us", help="us, es or jp (%(default)s)")
    parser.add_argument("--grades", default="E", help="what counts as relevant, as E or E,S (%(default)s)")
    parser.add_argument("--version", choices=("large", "small"), default="large", help="which judgements (%(default)s)")
    parser.add_argument(
        "--split-by-product", action="store_true", help="cut splits by products, by a hash of the title"
    )
    add_split_options(parser)

    def convert_options(options: argparse.Namespace, progress: ProgressBar) -> Account:
        shares = (options.valid, options.test) if options.split_by_product else None
        return convert(
            options.sources[0], options.catalogue, progress, locale=options.locale,
            grades=_grades(parser, options.grades), version=options.version, split_products=shares,
        )  # fmt: skip

    return run(parser, arguments, convert_options)


def _grades(parser: argparse.ArgumentParser, text: str) -> tuple[str, ...]:
    grades = tuple(text.split(","))
    if not set(grades) <= set(GRADES):
        parser.error(f"--grades {text}: grades are {', '.join(GRADES)}, parted by commas")
    return grades


if __name__ == "__main__":
    sys.exit(main())
