"""Amazon Reviews 2023 metadata: product to product bought together, as a catalogue folder.

Knows no training. Source: Hou et al. 2024, Bridging Language and Items; one meta_*.jsonl(.gz) a category.
"""

from __future__ import annotations

import argparse
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mufin.datasets.amazon_baskets import add_co_reviewed
from mufin.datasets.catalogue_folder import (
    Account,
    CatalogueFolder,
    check_id,
    is_describable,
    keep_pairs,
    split_of,
)
from mufin.datasets.command import add_split_options, make_parser, positive, run
from mufin.datasets.pair_spool import MergedPairs, PairSpool
from mufin.datasets.source_files import SourceFile
from mufin.errors import CatalogueError
from mufin.image_source import image_name_fault, is_url
from mufin.inputs import BoolArray, Int64Array
from mufin.progress import ProgressBar

IMAGE_SIZES = ("large", "hi_res", "thumb")
_LEFT_OUT = -1


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen."""

    relation: str = "bought_together"
    """The key that lists related ids; also_buy and also_view in metadata of 2018"""
    minimum_people: int = 2
    """People who reviewed both, for a pair out of reviews"""
    largest_basket: int = 50
    """People who reviewed more products than this tell nothing of what goes together"""
    max_images: int = 5
    image_size: str = IMAGE_SIZES[0]
    valid: float = 0.1
    test: float = 0.1


def convert(
    sources: Sequence[Path], target: Path, progress: ProgressBar, settings: Settings | None = None,
    reviews: Sequence[Path] = (),
) -> Account:  # fmt: skip
    """Writes the catalogue ``target``. Memory: every id that is met; the files are read twice, line by line."""
    settings = settings or Settings()
    with CatalogueFolder(target, "amazon reviews 2023", asdict(settings), [*sources, *reviews]) as folder:
        products = _Products(sources, settings, progress)
        pairs = PairSpool(folder.scratch / "pairs")
        products.read(pairs, folder.account)
        if not pairs.added and not reviews:
            raise CatalogueError(sources[0], None, _nothing_related(settings.relation, len(products.rows)))
        if reviews:
            add_co_reviewed(
                reviews, products.rows, settings.largest_basket, pairs, folder.scratch, folder.account, progress
            )
        _write(folder, products, pairs)
    return folder.account


def _nothing_related(relation: str, count: int) -> str:
    return (
        f'has no pair: "{relation}" is null or empty for all {count} products, as it usually is in the release of 2023; '
        "give the category's reviews with --reviews FILE for products that the same people reviewed, or metadata "
        "of 2018 with --relation also_buy"
    )


@dataclass(frozen=True, slots=True)
class _Product:
    """A line of metadata, checked."""

    file: SourceFile
    line: int
    row: int
    item_id: str
    title: str
    record: dict[str, Any]


class _Products:
    """The metadata: numbers of ids, and which products are written."""

    def __init__(self, sources: Sequence[Path], settings: Settings, progress: ProgressBar) -> None:
        self._files = [SourceFile(path, progress) for path in sources]
        self.settings = settings
        self.rows: dict[str, int] = {}
        """Id -> number, of products and of whatever they relate to"""
        self._splits = array("b")

    @property
    def splits(self) -> Int64Array:
        """(ids,) TRAIN, VALID or TEST; -1 without usable metadata."""
        return np.array(self._splits, dtype=np.int64)

    def read(self, pairs: PairSpool, account: Account) -> None:
        """Numbers the ids, notes what is left out, and adds the related ids to ``pairs``."""
        for product in self._lines():
            file, line, row = product.file, product.line, product.row
            if self._splits[row] != _LEFT_OUT:
                account.leave_out("products described before (the first is kept)", file.path, line)
            elif not is_describable(product.title, self.images(product, account)):
                account.leave_out("products with neither title nor image", file.path, line)
            else:
                shares = self.settings.valid, self.settings.test
                self._splits[row] = split_of(product.title, product.item_id, *shares)
                self._relate(product, pairs, account)

    def _relate(self, product: _Product, pairs: PairSpool, account: Account) -> None:
        relation = self.settings.relation
        related = product.record.get(relation)
        if related is None:
            account.leave_out(f'products whose "{relation}" is null', product.file.path, product.line)
            return
        if not isinstance(related, list):
            reason = f'"{relation}" is {repr(related)[:60]}, expected a list of ids or null'
            raise product.file.fault(product.line, reason)
        for other in related:
            row = self._number(check_id(other, product.file.path, product.line, f'an id of "{relation}"'))
            if row == product.row:
                account.leave_out("pairs of a product with itself", product.file.path, product.line)
            else:  # what is said outright needs no further witness
                pairs.add(product.row, row, count=self.settings.minimum_people)

    def _number(self, item_id: str) -> int:
        row = self.rows.setdefault(item_id, len(self.rows))
        if row == len(self._splits):
            self._splits.append(_LEFT_OUT)
        return row

    def _lines(self) -> Iterator[_Product]:
        for file in self._files:
            for line, record in file.records():
                item_id, title = record.get("parent_asin", record.get("asin")), record.get("title")
                if not isinstance(title, str | None):
                    raise file.fault(line, f'"title" is {title!r}, expected a string')
                item_id = check_id(item_id, file.path, line, '"parent_asin"')
                yield _Product(file, line, self._number(item_id), item_id, title or "", record)

    def images(self, product: _Product, account: Account | None = None) -> list[str]:
        """URLs of a product's first images, the main one first."""
        found: list[str] = []
        for url in _image_urls(product, self.settings.image_size):
            if not is_url(url) or image_name_fault(url) is not None:
                if account is not None:
                    account.leave_out("images that are no http(s) URL", product.file.path, product.line)
            elif url not in found:
                found.append(url)
        return found[: self.settings.max_images]

    def write(self, folder: CatalogueFolder, busy: BoolArray, relevant: BoolArray) -> None:
        """Reads the files again and writes the products with pairs and the labels."""
        written = np.zeros(len(busy), dtype=np.bool_)
        unrelated = 0
        with folder.items("products") as products, folder.items("labels") as labels:
            for product in self._lines():
                row = product.row
                if written[row] or self._splits[row] == _LEFT_OUT:
                    continue
                images = self.images(product)
                if not is_describable(product.title, images):
                    continue
                written[row] = True
                unrelated += not (busy[row] or relevant[row])
                category = product.record.get("main_category")
                metadata = {"main_category": category} if isinstance(category, str) else {}
                for wanted, file in ((busy[row], products), (relevant[row], labels)):
                    if wanted:
                        file.write(product.item_id, product.title, images, **metadata)
        folder.account.leave_out("products of no pair", count=unrelated)


def _image_urls(product: _Product, size: str) -> Iterable[str]:
    """Of the size asked for, else of another; metadata of 2018 has one list a size."""
    images = product.record.get("images")
    if images is None:
        images = product.record.get("imageURLHighRes") or product.record.get("imageURL") or []
        if not isinstance(images, list) or not all(isinstance(url, str) for url in images):
            raise product.file.fault(product.line, '"imageURLHighRes" is no list of URLs')
        return images
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise product.file.fault(product.line, f'"images" is {repr(images)[:60]}, expected a list of objects')
    order = sorted(images, key=lambda image: image.get("variant") != "MAIN")
    sizes = (size, *(other for other in IMAGE_SIZES if other != size))
    urls = (next((image[name] for name in sizes if image.get(name)), None) for image in order)
    return [str(url) for url in urls if url is not None]


def _write(folder: CatalogueFolder, products: _Products, spool: PairSpool) -> None:
    splits, ids = products.splits, list(products.rows)
    usable = splits != _LEFT_OUT
    busy, relevant = np.zeros(len(ids), dtype=np.bool_), np.zeros(len(ids), dtype=np.bool_)
    minimum = products.settings.minimum_people

    def pairs() -> Iterator[MergedPairs]:
        for merged in spool.merged():
            enough = merged.counts >= minimum
            folder.account.leave_out(f"pairs of less than {minimum} people", count=int(np.count_nonzero(~enough)))
            kept = keep_pairs(merged.select(enough), usable, usable, folder.account)
            busy[kept.products] = relevant[kept.labels] = True
            yield MergedPairs(kept.products, kept.labels, 1 << splits[kept.products], kept.counts)

    folder.write_pairs(pairs(), ids, ids)
    products.write(folder, busy, relevant)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m mufin.datasets.amazon_reviews META... CATALOGUE``."""
    parser = make_parser("amazon_reviews", __doc__, "+", "meta_*.jsonl or .jsonl.gz, one or several categories")
    plain = Settings()
    parser.add_argument("--relation", default=plain.relation, help="key that lists related products (%(default)s)")
    parser.add_argument(
        "--reviews", type=Path, default=[], action="append", metavar="FILE",
        help="a review file (may be repeated): products that the same people reviewed are pairs, too",
    )  # fmt: skip
    parser.add_argument(
        "--minimum-people", type=positive, default=plain.minimum_people, help="who reviewed both (%(default)s)"
    )
    parser.add_argument(
        "--largest-basket",
        type=positive,
        default=plain.largest_basket,
        help="people with more reviews are left out (%(default)s)",
    )
    parser.add_argument("--max-images", type=int, default=plain.max_images, help="a product at most (%(default)s)")
    parser.add_argument("--image-size", choices=IMAGE_SIZES, default=plain.image_size, help="%(default)s")
    add_split_options(parser)

    def convert_options(options: argparse.Namespace, progress: ProgressBar) -> Account:
        settings = Settings(
            options.relation, options.minimum_people, options.largest_basket, max(0, options.max_images),
            options.image_size, options.valid, options.test,
        )  # fmt: skip
        return convert(options.sources, options.catalogue, progress, settings, options.reviews)

    return run(parser, arguments, convert_options)


if __name__ == "__main__":
    sys.exit(main())
