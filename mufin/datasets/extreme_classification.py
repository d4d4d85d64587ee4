"""Data sets of the extreme classification repository, MM-AmazonTitles-300K among them, as a catalogue folder.

Knows no training. docs/datasets.md says which files are read and what is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mufin.datasets.catalogue_folder import (
    TEST,
    TRAIN,
    Account,
    CatalogueFolder,
    ItemFile,
    PairFile,
    check_id,
    is_describable,
    keep_pairs,
)
from mufin.datasets.command import make_parser, run
from mufin.datasets.pair_spool import MergedPairs, PairSpool
from mufin.datasets.xc_files import (
    FILTER_FILES,
    MATRIX_FILES,
    TEXT_FILES,
    Point,
    find_file,
    read_filter,
    read_matrix,
    read_points,
)
from mufin.datasets.xc_images import PackedImages, pack_images
from mufin.errors import CatalogueError
from mufin.inputs import BoolArray, Int64Array
from mufin.progress import ProgressBar

PARTS = {"train": TRAIN, "test": TEST}
DEFAULT_MAX_IMAGES = 5


def convert(
    source: Path, target: Path, progress: ProgressBar, *,
    max_images: int = DEFAULT_MAX_IMAGES, encoding: str | None = None, with_content: bool = False,
) -> Account:  # fmt: skip
    """Writes the catalogue ``target``. Memory: ids of products and labels, and 16 bytes an image; texts are streamed."""
    texts = {part: _text_file(source, part) for part in (*PARTS, "label")}
    matrices = {part: find_file(source, names) for part, names in MATRIX_FILES.items()}
    filters = {part: find_file(source, names) for part, names in FILTER_FILES.items()}
    options = {"max_images": max_images, "encoding": encoding, "with_content": with_content}
    used = [p for p in (*texts.values(), *matrices.values(), *filters.values()) if p is not None]
    with CatalogueFolder(target, "extreme classification", options, used) as folder:
        images = pack_images(source, folder.folder, max_images, folder.account, progress)
        labels = _Items("label", images, folder.account)
        with folder.items("labels") as file:
            for point in read_points(texts["label"], encoding, with_content, progress):
                labels.write(file, point, texts["label"], "l")
        labels.finish()
        if not labels.ids:
            raise CatalogueError(texts["label"], None, "has no label; fetch the file again")
        products = _write_products(folder, texts, matrices, images, labels, (encoding, with_content), progress)
        _write_pairs(folder, products, labels, matrices, filters, progress)
    return folder.account


def _text_file(source: Path, part: str) -> Path:
    path = find_file(source, TEXT_FILES[part])
    if path is None:
        reason = (
            f"has no texts of {part}: none of {', '.join(TEXT_FILES[part])}; mufin needs titles, fetch the raw text"
        )
        raise CatalogueError(source, None, reason)
    return path


class _Items:
    """The ids of products or labels, in order, and which of them are kept."""

    def __init__(self, kind: str, images: PackedImages, account: Account) -> None:
        self.ids: list[str] = []
        self.own: list[str] = []
        """Ids as the files have them; ``ids`` has repeated ones numbered"""
        self.kept = np.zeros(0, dtype=np.bool_)
        self._kept = bytearray()
        self._kind, self._images, self._account = kind, images, account
        self._seen: set[str] = set()
        self.starts: dict[str, int] = {}
        """Part -> row of its first item"""

    def write(self, file: ItemFile, point: Point, path: Path, prefix: str, part: str = "label") -> None:
        start = self.starts.setdefault(part, len(self.ids))
        row = len(self.ids) - start
        known = self._images.count(part)
        if known is not None and row >= known:
            raise CatalogueError(path, point.line, f"is one item more than the {known} rows of {part}.img.bin.npz")
        own = check_id(point.ids[0], path, point.line, "the id") if point.ids else f"{prefix}{row}"
        item_id = self._numbered(own, path, point.line)
        images = self._images.of(part, row)
        foreign = sum(key not in point.ids for _, key in images) if point.ids else 0
        self._account.leave_out("images filed under an id that is not their item's (kept)", path, point.line, foreign)
        self.ids.append(item_id)
        self.own.append(own)
        self._kept.append(is_describable(point.title, [name for name, _ in images]))
        if self._kept[-1]:
            more = {"ids": list(point.ids)} if len(point.ids) > 1 else {}
            file.write(item_id, point.title, [name for name, _ in images], **more)
        else:
            self._account.leave_out(f"{self._kind}s with neither title nor image", path, point.line)

    def finish(self) -> None:
        """All of them are written."""
        self.kept = np.frombuffer(self._kept, dtype=np.bool_)

    def check_count(self, part: str, path: Path) -> int:
        """How many items the part has; as many as it has rows of images, if it has."""
        count = len(self.ids) - self.starts.setdefault(part, len(self.ids))
        known = self._images.count(part)
        if known is not None and known != count:
            raise CatalogueError(path, None, f"has {count} lines, {part}.img.bin.npz {known} rows; fetch both again")
        return count

    def _numbered(self, own: str, path: Path, line: int) -> str:
        item_id, number = own, 1
        while item_id in self._seen:
            number += 1
            item_id = f"{own}~{number}"
        if item_id != own:
            self._account.leave_out(f"ids of {self._kind}s met before, numbered as id~2", path, line)
        self._seen.add(item_id)
        return item_id


class _Products:
    """The products of train and test, and the pairs their files told."""

    def __init__(self, items: _Items, spool: PairSpool) -> None:
        self.items, self.spool = items, spool
        self.counts: dict[str, int] = {}
        """Part -> products"""


def _write_products(
    folder: CatalogueFolder, texts: dict[str, Path], matrices: dict[str, Path | None], images: PackedImages,
    labels: _Items, reading: tuple[str | None, bool], progress: ProgressBar,
) -> _Products:  # fmt: skip
    products = _Products(_Items("product", images, folder.account), PairSpool(folder.scratch / "pairs"))
    with folder.items("products") as file:
        for part, split in PARTS.items():
            path, matrix = texts[part], matrices[part]
            prefix = "trn" if part == "train" else "tst"
            products.items.starts[part] = len(products.items.ids)
            for point in read_points(path, *reading, progress):
                products.items.write(file, point, path, prefix, part)
                if matrix is None:
                    _add_targets(products, point, path, split, len(labels.ids))
            products.counts[part] = products.items.check_count(part, path)
    products.items.finish()
    labels.check_count("label", texts["label"])
    return products


def _add_targets(products: _Products, point: Point, path: Path, split: int, label_count: int) -> None:
    if point.targets is None:
        reason = 'has no "target_ind", and there is no *_X_Y.txt; one of them must tell the relevant labels'
        raise CatalogueError(path, point.line, reason)
    for label in point.targets:
        if not 0 <= label < label_count:
            raise CatalogueError(
                path, point.line, f"label {label} does not lie in 0..{label_count - 1}; fetch both again"
            )
        products.spool.add(len(products.items.ids) - 1, label, split)


def _write_pairs(
    folder: CatalogueFolder, products: _Products, labels: _Items, matrices: dict[str, Path | None],
    filters: dict[str, Path | None], progress: ProgressBar,
) -> None:  # fmt: skip
    items, spool, account = products.items, products.spool, folder.account
    excluded = PairSpool(folder.scratch / "excluded")
    for part, split in PARTS.items():
        start, shape = items.starts[part], (products.counts[part], len(labels.ids))
        if (matrix := matrices[part]) is not None:
            for row, entry in enumerate(read_matrix(matrix, *shape, progress), start):
                for label in entry.labels:
                    spool.add(row, label, split)
                account.leave_out("pairs whose value is not above 0", matrix, entry.line, entry.dropped)
        if (path := filters[part]) is not None:
            for _, row, label in read_filter(path, *shape, progress):
                excluded.add(start + row, label)
    own = _own_labels(items, labels)
    relevant = np.zeros(len(labels.ids), dtype=np.bool_)
    busy = np.zeros(len(items.ids), dtype=np.bool_)

    def kept() -> Iterator[MergedPairs]:
        for merged in spool.merged():
            account.leave_out("pairs given more than once", count=int((merged.counts - 1).sum()))
            pairs = keep_pairs(merged, items.kept, labels.kept, account)
            is_own = pairs.labels == own[pairs.products]
            account.leave_out("pairs of a product with itself", count=int(np.count_nonzero(is_own)))
            pairs = pairs.select(~is_own)
            relevant[pairs.labels] = busy[pairs.products] = True
            yield pairs

    folder.write_pairs(kept(), items.ids, labels.ids)
    _write_excluded(folder, excluded, items, labels)
    _note(account, "labels are never relevant; they are kept, as the data set counts them", labels.kept & ~relevant)
    _note(account, "products have no relevant label; they are kept", items.kept & ~busy)


def _note(account: Account, text: str, mask: BoolArray) -> None:
    if mask.any():
        account.notes.append(f"{int(np.count_nonzero(mask))} {text}")


def _own_labels(items: _Items, labels: _Items) -> Int64Array:
    """(products,) the label with the product's id, -1 for none."""
    by_id = {own: row for row, own in enumerate(labels.own)}
    return np.fromiter((by_id.get(own, -1) for own in items.own), dtype=np.int64, count=len(items.own))


def _write_excluded(folder: CatalogueFolder, excluded: PairSpool, items: _Items, labels: _Items) -> None:
    if not excluded.added:
        return
    count = 0
    with PairFile(folder.folder / "exclude.csv") as file:
        for merged in excluded.merged():
            folder.account.leave_out("exclude pairs given more than once", count=int((merged.counts - 1).sum()))
            pairs = keep_pairs(merged, items.kept, labels.kept, folder.account, "exclude pairs")
            file.write(pairs.products, pairs.labels, items.ids, labels.ids)
            count += len(pairs.products)
    folder.account.written["pairs in exclude.csv"] = count


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m mufin.datasets.extreme_classification SOURCE CATALOGUE``."""
    parser = make_parser("extreme_classification", __doc__, "1", "the unpacked folder of the data set")
    parser.add_argument(
        "--max-images", type=int, default=DEFAULT_MAX_IMAGES, help="images an item at most, 0 for none (%(default)s)"
    )
    parser.add_argument("--encoding", help="of text files (utf-8; for *.raw.txt latin-1)")
    parser.add_argument("--with-content", action="store_true", help="titles become title and content (JSON only)")

    def convert_options(options: argparse.Namespace, progress: ProgressBar) -> Account:
        return convert(
            options.sources[0], options.catalogue, progress, max_images=max(0, options.max_images),
            encoding=options.encoding, with_content=options.with_content,
        )  # fmt: skip

    return run(parser, arguments, convert_options)


if __name__ == "__main__":
    sys.exit(main())
