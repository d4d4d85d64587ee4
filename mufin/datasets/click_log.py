"""A click log - product, query, count - and a table of products, as a catalogue folder of bid queries.

Knows no training. Both may be CSV, TSV, JSONL or Parquet, with columns of any name.
"""

from __future__ import annotations

import argparse
import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue_tables import LEAST_INTEGER, MOST_INTEGER
from mufin.datasets.catalogue_folder import (
    ITEM_KEYS,
    TRAIN,
    Account,
    CatalogueFolder,
    ItemFile,
    check_id,
    is_describable,
    keep_pairs,
    split_of,
)
from mufin.datasets.command import add_split_options, make_parser, positive, run
from mufin.datasets.image_pack import ImagePack
from mufin.datasets.pair_spool import MergedPairs, PairSpool
from mufin.datasets.source_tables import Row, read_table
from mufin.errors import CatalogueError
from mufin.image_source import image_name_fault, is_url
from mufin.inputs import BoolArray, Int64Array, normalise_title
from mufin.progress import ProgressBar

_LEFT_OUT = -1
_IMAGE_SEPARATOR = "|"


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen. Columns are named as the files name them."""

    product_column: str = "product_id"
    query_column: str = "query"
    count_column: str | None = None
    """None: each line of the log counts 1"""
    minimum: int = 1
    """Counts that a product and a query need together"""
    minimum_products: int = 1
    """Different products that a query needs"""
    keep_case: bool = False
    id_column: str = "id"
    title_column: str = "title"
    images_column: str | None = None
    """None: titles only"""
    metadata_columns: tuple[str, ...] = ()
    valid: float = 0.1
    test: float = 0.1


def _require_metadata_names(table: Path, names: Sequence[str]) -> None:
    """Raise CatalogueError for columns that would take the place of what makes an item."""
    for name in names:
        if name in ITEM_KEYS:
            raise CatalogueError(
                table, None, f"--metadata-columns names {name!r}, which is no metadata: {', '.join(ITEM_KEYS)} of an item have "
                "columns of their own (--id-column, --title-column, --images-column); leave it out, or rename the column"
            )  # fmt: skip


def convert(
    logs: Sequence[Path], table: Path, target: Path, progress: ProgressBar, settings: Settings | None = None
) -> Account:
    """Writes the catalogue ``target``. Memory: the ids of products and the different queries; logs are streamed."""
    settings = settings or Settings()
    _require_metadata_names(table, settings.metadata_columns)
    with CatalogueFolder(target, "click log", asdict(settings), [*logs, table]) as folder:
        products = _Products(table, settings, progress, folder.account)
        clicks = _Clicks(folder, products, settings)
        for path in logs:
            clicks.read(path, progress)
        _write(folder, products, clicks, settings)
    return folder.account


class _Products:
    """The table of products: numbers of ids, and the splits of what is usable."""

    def __init__(self, path: Path, settings: Settings, progress: ProgressBar, account: Account) -> None:
        self._path, self._settings, self._progress = path, settings, progress
        self.rows: dict[str, int] = {}
        """Product id -> number"""
        splits = array("b")
        for line, item_id, values in self._lines():
            if self.rows.setdefault(item_id, len(self.rows)) != len(splits):
                raise CatalogueError(path, line, f"product {item_id!r} is described twice; keep one of the two")
            title, images = self._title(line, values), self._images(line, values, account)
            if is_describable(title, images):
                splits.append(split_of(title, item_id, settings.valid, settings.test))
            else:
                splits.append(_LEFT_OUT)
                account.leave_out("products with neither title nor image", path, line)
        self.splits: Int64Array = np.array(splits, dtype=np.int64)
        """(products,) TRAIN, VALID or TEST; -1 for what is left out"""

    def write(self, folder: CatalogueFolder, busy: BoolArray) -> None:
        """Reads the table again and writes the products with pairs; their picture files go into the pack."""
        unclicked = int(np.count_nonzero((self.splits != _LEFT_OUT) & ~busy))
        folder.account.leave_out("products without a query that is kept", count=unclicked)
        with folder.items("products") as file, ImagePack(folder.folder) as pack:
            for line, item_id, values in self._lines():
                if busy[self.rows[item_id]]:
                    self._write_one(file, pack, line, item_id, values)

    def _write_one(self, file: ItemFile, pack: ImagePack, line: int, item_id: str, values: Row) -> None:
        images = [
            image if is_url(image) else pack.add((self._path.parent / image).read_bytes())
            for image in self._images(line, values)
        ]
        names = self._settings.metadata_columns
        metadata = (
            {n: self._plain(line, n, v) for n, v in zip(names, values[-len(names) :], strict=True)} if names else {}
        )
        file.write(item_id, self._title(line, values), images, **{n: v for n, v in metadata.items() if v is not None})

    def _lines(self) -> Iterator[tuple[int, str, Row]]:
        settings = self._settings
        columns = [settings.id_column, settings.title_column]
        columns += [settings.images_column] if settings.images_column else []
        for line, values in read_table(self._path, [*columns, *settings.metadata_columns], self._progress):
            yield line, check_id(_text(values[0]), self._path, line, settings.id_column), values

    def _title(self, line: int, values: Row) -> str:
        if not isinstance(values[1], str | None):
            raise CatalogueError(self._path, line, f"{self._settings.title_column} is {values[1]!r}, expected a text")
        return values[1] or ""

    def _images(self, line: int, values: Row, account: Account | None = None) -> list[str]:
        """URLs, and the paths beside the table that are files with something in them."""
        if self._settings.images_column is None or not values[2]:
            return []
        names = values[2].split(_IMAGE_SEPARATOR) if isinstance(values[2], str) else values[2]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            reason = f"{self._settings.images_column} is {repr(names)[:60]}, expected paths or URLs"
            raise CatalogueError(self._path, line, reason)
        usable = []
        for name in (name.strip() for name in names):
            fault = image_name_fault(name)
            if fault is not None:
                raise CatalogueError(self._path, line, fault)
            path = self._path.parent / name
            if is_url(name) or (path.is_file() and path.stat().st_size):
                usable.append(name)
            elif account is not None:
                account.leave_out("images that are missing or empty", self._path, line)
        return usable

    def _plain(self, line: int, name: str, value: Any) -> Any:
        is_plain = isinstance(value, str | bool | int | None) or (isinstance(value, float) and math.isfinite(value))
        if not is_plain and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise CatalogueError(
                self._path, line, f"{name} is {value!r}, metadata are texts, numbers or lists of texts"
            )
        if isinstance(value, int) and not LEAST_INTEGER <= value <= MOST_INTEGER:
            # Its digits may be more than a line holds, or than Python writes.
            shown = f"an integer of {value.bit_length()} bits"
            reason = f"{name} is {shown}, metadata lie in {LEAST_INTEGER}..{MOST_INTEGER}; write it as text"
            raise CatalogueError(self._path, line, reason)
        return value


class _Clicks:
    """The log: numbers of queries, and the pairs with their counts."""

    def __init__(self, folder: CatalogueFolder, products: _Products, settings: Settings) -> None:
        self.queries: dict[str, int] = {}
        """Query, as it becomes a label -> number"""
        self.spool = PairSpool(folder.scratch / "pairs")
        self._account, self._products, self._settings = folder.account, products, settings

    def read(self, path: Path, progress: ProgressBar) -> None:
        """Adds a log. What is left out is counted."""
        settings, account = self._settings, self._account
        columns = [settings.product_column, settings.query_column]
        columns += [settings.count_column] if settings.count_column else []
        for line, (clicked, text, *counted) in read_table(path, columns, progress):
            product_id = _text(clicked)
            if not isinstance(text, str | None) or not isinstance(product_id, str | None):
                reason = (
                    f"{settings.product_column} is {product_id!r}, {settings.query_column} is {text!r}: expected texts"
                )
                raise CatalogueError(path, line, reason)
            count = _count(path, line, settings.count_column or "", counted[0]) if counted else 1
            query = self._normal(text or "")
            row = self._products.rows.get(product_id or "")
            if row is None:
                account.leave_out("lines of a product that the table does not have", path, line)
            elif not query:
                account.leave_out("lines without a query", path, line)
            elif count == 0:
                account.leave_out("lines whose count is 0", path, line)
            else:
                self.spool.add(row, self.queries.setdefault(query, len(self.queries)), TRAIN, count)

    def _normal(self, text: str) -> str:
        query = normalise_title(text)
        return query if self._settings.keep_case else query.lower()


def _text(value: Any) -> Any:
    """Whole numbers are ids, too."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _count(path: Path, line: int, column: str, value: Any) -> int:
    try:
        number = float(value) if isinstance(value, str) else value
        if isinstance(number, bool) or number != int(number) or not 0 <= number < 2**53:
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise CatalogueError(path, line, f"{column} is {value!r}, expected a whole number from 0") from error
    return int(number)


def _write(folder: CatalogueFolder, products: _Products, clicks: _Clicks, settings: Settings) -> None:
    splits, account = products.splits, folder.account
    queries = list(clicks.queries)
    breadth = np.zeros(len(queries), dtype=np.int64)
    busy, relevant = np.zeros(len(splits), dtype=np.bool_), np.zeros(len(queries), dtype=np.bool_)
    for merged in clicks.spool.merged():
        usable = (merged.counts >= settings.minimum) & (splits[merged.products] != _LEFT_OUT)
        np.add.at(breadth, merged.labels[usable], 1)
    broad = breadth >= settings.minimum_products

    def pairs() -> Iterator[MergedPairs]:
        for merged in clicks.spool.merged():
            enough = merged.counts >= settings.minimum
            account.leave_out(f"pairs of a count below {settings.minimum}", count=int(np.count_nonzero(~enough)))
            kept = keep_pairs(merged.select(enough), splits != _LEFT_OUT, broad, account)
            busy[kept.products] = relevant[kept.labels] = True
            yield MergedPairs(kept.products, kept.labels, 1 << splits[kept.products], kept.counts)

    folder.write_pairs(pairs(), list(products.rows), queries)
    products.write(folder, busy)
    account.leave_out("queries without a pair that is kept", count=int(np.count_nonzero(~relevant)))
    with folder.items("labels") as file:
        for query, is_relevant in zip(queries, relevant.tolist(), strict=True):
            if is_relevant:
                file.write(query, query)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m mufin.datasets.click_log LOG... CATALOGUE --products TABLE``."""
    parser = make_parser("click_log", __doc__, "+", "click logs, .csv, .tsv, .jsonl (also .gz) or .parquet")
    plain = Settings()
    add = parser.add_argument
    add("--products", type=Path, required=True, metavar="TABLE", help="table of products, of the same formats")
    add("--product-column", default=plain.product_column, help="of the log (%(default)s)")
    add("--query-column", default=plain.query_column, help="of the log (%(default)s)")
    add("--count-column", help="of the log; without it each line counts 1")
    add("--minimum", type=positive, default=plain.minimum, help="counts a pair needs (%(default)s)")
    add(
        "--minimum-products", type=positive, default=plain.minimum_products, help="products a query needs (%(default)s)"
    )
    add("--keep-case", action="store_true", help="queries that differ in case are different")
    add("--id-column", default=plain.id_column, help="of the products (%(default)s)")
    add("--title-column", default=plain.title_column, help="of the products (%(default)s)")
    add("--images-column", help=f"of the products: paths beside the table or URLs, parted by {_IMAGE_SEPARATOR}")
    add("--metadata-columns", default="", help="of the products, parted by commas: kept for filters")
    add_split_options(parser)

    def convert_options(options: argparse.Namespace, progress: ProgressBar) -> Account:
        columns = tuple(name for name in options.metadata_columns.split(",") if name)
        settings = Settings(
            options.product_column, options.query_column, options.count_column, options.minimum,
            options.minimum_products, options.keep_case, options.id_column, options.title_column,
            options.images_column, columns, options.valid, options.test,
        )  # fmt: skip
        return convert(options.sources, options.products, options.catalogue, progress, settings)

    return run(parser, arguments, convert_options)


if __name__ == "__main__":
    sys.exit(main())
