"""The catalogue folder: read, check, split.

Knows no pixels, no tokens and no network: an image is a name here. docs/catalogue.md describes the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue_tables import Faults, find_table, read_pair_rows, read_records
from mufin.errors import CatalogueError
from mufin.image_source import ImageReader, PackedImage, image_name_fault, is_url, packed_image
from mufin.inputs import Int64Array, normalise_title
from mufin.relevance import Relevance

__all__ = ["Catalogue", "ImageReader", "Item", "Relevance", "Split", "ensure_validation", "read_catalogue"]

SPLITS = ("train", "valid", "test")
PAIR_COLUMNS = ("product_id", "label_id")


@dataclass(frozen=True, slots=True)
class Item:
    """A product or a label."""

    id: str
    title: str
    """May be empty when there is an image."""
    images: tuple[str, ...] = ()
    """Paths relative to the folder, parts of packed files (``FILE.bin#OFFSET+LENGTH``), or http(s) URLs."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Every other key of the line, as it stood there."""


@dataclass(frozen=True, slots=True)
class Split:
    """The products of train, valid or test and what is relevant to them."""

    products: Int64Array
    """(n,) rows into ``Catalogue.products``, unique, in the order of their first pair"""
    relevance: Relevance
    """(n x L), row i for ``products[i]``"""


@dataclass(frozen=True)
class Catalogue:
    """A checked catalogue."""

    folder: Path
    products: list[Item]
    labels: list[Item]
    products_are_labels: bool
    """Whether ``labels`` is ``products``, there being no labels file."""
    splits: dict[str, Split]
    """Those of train, valid, test that have a file."""
    exclude: Relevance
    """(all products x L): pairs never to be recommended or scored"""


def forbidden_pairs(catalogue: Catalogue, with_exclude: bool = True) -> Relevance:
    """(all products x L): the label that is the product itself (same id) and, unless told, the exclude pairs."""
    by_id = {label.id: index for index, label in enumerate(catalogue.labels)}
    own = [(row, by_id[item.id]) for row, item in enumerate(catalogue.products) if item.id in by_id]
    rows, labels = np.asarray(own, dtype=np.int64).reshape(-1, 2).T
    if with_exclude:
        excluded = catalogue.exclude.to_pairs()
        rows, labels = np.concatenate([rows, excluded[0]]), np.concatenate([labels, excluded[1]])
    return Relevance.from_pairs(rows, labels, len(catalogue.products), len(catalogue.labels))


def read_catalogue(folder: Path) -> Catalogue:
    """Reads and checks a catalogue folder; raises one CatalogueError that lists up to 20 faults."""
    if not folder.is_dir():
        raise CatalogueError(folder, None, "is no folder; give the folder that holds products.jsonl")
    faults = Faults()
    files = _ImageFiles(folder)
    path = find_table(folder, "products", ".jsonl", faults)
    if path is None:
        raise CatalogueError(folder / "products.jsonl", None, "is missing (as is products.parquet); write the products")
    products = _read_items(path, files, faults)
    label_path = find_table(folder, "labels", ".jsonl", faults)
    labels = products if label_path is None else _read_items(label_path, files, faults)
    # Pairs are only looked up in item files without faults: an item left out would make every pair of it one more.
    faults.raise_if_any()
    pairs = _PairReader(folder, products, labels, label_path or path, faults)
    tables = {name: table for name in SPLITS if (table := pairs.read(name)) is not None}
    excluded = pairs.read("exclude")
    if not tables:
        faults.add(folder / "train.csv", None, "is missing (as are valid.csv and test.csv); write the relevant pairs")
    _check_splits_disjoint(tables, products, labels, faults)
    faults.raise_if_any()
    none = np.zeros(0, dtype=np.int64)
    rows, columns = (excluded.rows, excluded.labels) if excluded is not None else (none, none)
    return Catalogue(
        folder,
        products,
        labels,
        label_path is None,
        {name: _split(table, len(labels)) for name, table in tables.items()},
        Relevance.from_pairs(rows, columns, len(products), len(labels)),
    )


def read_items(path: Path) -> list[Item]:
    """Reads and checks one items file (JSONL or Parquet) alone; images lie beside it. Raises CatalogueError."""
    faults = Faults()
    items = _read_items(path, _ImageFiles(path.parent), faults)
    faults.raise_if_any()
    return items


class _ImageFiles:
    """Which image files exist; a folder is listed once, as asking file by file is slow on network disks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[str, frozenset[str]] = {}
        self._packs: dict[str, int] = {}

    def fault(self, image: str) -> str | None:
        """Why a path of fault-free form cannot be read; None when it can."""
        packed = packed_image(image)
        if packed is not None:
            return self._packed_fault(image, packed)
        return None if self.has(image) else f"image file {image!r} is missing; restore it or remove it from the list"

    def _packed_fault(self, image: str, packed: PackedImage) -> str | None:
        if packed.file not in self._packs:
            path = self._folder / packed.file
            self._packs[packed.file] = path.stat().st_size if path.is_file() else -1
        size, end = self._packs[packed.file], packed.offset + packed.length
        if size < 0:
            return f"{packed.file!r} of packed image {image!r} is missing; restore it or remove the image from the list"
        if end > size:
            return f"packed image {image!r} ends at byte {end}, {packed.file!r} has {size}; restore the whole file"
        return None

    def has(self, image: str) -> bool:
        parent, _, name = image.rpartition("/")
        if parent not in self._listed:
            try:
                with os.scandir(self._folder / parent) as entries:
                    self._listed[parent] = frozenset(e.name for e in entries if e.is_file())
            except OSError:
                self._listed[parent] = frozenset()
        return name in self._listed[parent]


def _read_items(path: Path, files: _ImageFiles, faults: Faults) -> list[Item]:
    items: list[Item] = []
    first_lines: dict[str, int] = {}
    empty = True
    for line, record in read_records(path, faults):
        empty = False
        item, reason = _to_item(record, files)
        if item is None:
            faults.add(path, line, reason)
        elif item.id in first_lines:
            faults.add(path, line, f"id {item.id!r} is also on line {first_lines[item.id]}; give each item its own id")
        else:
            first_lines[item.id] = line
            items.append(item)
    if empty:
        faults.add(path, None, f"holds no {path.stem}; write one a line")
    return items


def _to_item(record: dict[str, Any], files: _ImageFiles) -> tuple[Item | None, str]:
    """The item, or None and what is wrong with it. ``null`` for title or images means none."""
    metadata = dict(record)
    item_id, title, images = metadata.pop("id", None), metadata.pop("title", None), metadata.pop("images", None)
    if "id" not in record:
        return None, 'has no "id"; add one, a string'
    if not isinstance(item_id, str):
        return None, f'"id" is {item_id!r}; write it as a string, in quotes'
    if not item_id or item_id != item_id.strip() or not item_id.isprintable():
        return None, f'"id" {item_id!r} is empty, has white space at an end or control characters; correct it'
    if "title" not in record:
        return None, f'{item_id!r} has no "title"; add one, "" where only images are known'
    if not isinstance(title, str | None):
        return None, f'"title" of {item_id!r} is {title!r}; write it as a string'
    if not isinstance(images, list | None):
        return None, f'"images" of {item_id!r} is {images!r}; write a list of paths or URLs'
    for image in images or ():
        reason = _image_fault(image, files)
        if reason is not None:
            return None, f"{item_id!r}: {reason}"
    if not images and not normalise_title(title or ""):
        return None, f"{item_id!r} has an empty title and no image; give it one of them or delete the line"
    return Item(item_id, title or "", tuple(images or ()), metadata), ""


def _image_fault(image: Any, files: _ImageFiles) -> str | None:
    if not isinstance(image, str):
        return f"image {image!r} is no string; write a path or a URL"
    fault = image_name_fault(image)
    if fault is None and not is_url(image):
        return files.fault(image)
    return fault


@dataclass(frozen=True, slots=True)
class _PairTable:
    """A pair file, line after line."""

    path: Path
    rows: Int64Array
    labels: Int64Array
    lines: Int64Array


class _PairReader:
    """Reads pair files, ids turned into numbers."""

    def __init__(
        self, folder: Path, products: Sequence[Item], labels: Sequence[Item], label_path: Path, faults: Faults
    ) -> None:
        self._folder, self._faults, self._label_path = folder, faults, label_path
        self._products = {item.id: row for row, item in enumerate(products)}
        self._labels = {item.id: row for row, item in enumerate(labels)}

    def read(self, name: str) -> _PairTable | None:
        """None when the file is absent. A split without pairs is a fault; an exclude file may be empty."""
        path = find_table(self._folder, name, ".csv", self._faults)
        if path is None:
            return None
        rows, labels, lines = [], [], []
        read_any = False
        for line, product_id, label_id in read_pair_rows(path, PAIR_COLUMNS, self._faults):
            read_any = True
            row, label = self._products.get(product_id), self._labels.get(label_id)
            if row is None:
                self._faults.add(path, line, self._unknown("product", product_id))
            elif label is None:
                self._faults.add(path, line, self._unknown("label", label_id))
            else:
                rows.append(row)
                labels.append(label)
                lines.append(line)
        if not read_any and name != "exclude":
            self._faults.add(path, None, f"the {name} split is empty; write its pairs or delete the file")
        table = _PairTable(path, *(np.asarray(values, dtype=np.int64) for values in (rows, labels, lines)))
        self._check_repeats(table)
        return table

    def _unknown(self, kind: str, item_id: str) -> str:
        known, file = (self._products, "products") if kind == "product" else (self._labels, self._label_path.stem)
        hint = f"add it to {file} or delete the pair"
        if item_id.strip() in known:
            hint = "there is one without the white space around it"
        elif kind == "label" and item_id in self._products:
            hint = f"it is a product; add it to {file}, too, or delete the pair"
        elif kind == "product" and item_id in self._labels:
            hint = "it is a label; the product comes first in a pair"
        return f"unknown {kind}_id {item_id!r}; {hint}"

    def _check_repeats(self, table: _PairTable) -> None:
        """A pair given twice is refused: as relevance is 0 or 1, the second line shows that a count was meant."""
        flat = table.rows * len(self._labels) + table.labels
        _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
        for place in np.flatnonzero(first[inverse] != np.arange(len(flat))):
            line = int(table.lines[first[inverse[place]]])
            self._faults.add(
                table.path, int(table.lines[place]), f"the pair is also on line {line}; keep one of the two"
            )


def _check_splits_disjoint(
    tables: Mapping[str, _PairTable], products: Sequence[Item], labels: Sequence[Item], faults: Faults
) -> None:
    """A pair that is trained on and scored would flatter the metrics."""
    flat = {name: table.rows * len(labels) + table.labels for name, table in tables.items()}
    names = list(tables)
    for number, later in enumerate(names):
        for earlier in names[:number]:
            _, here, there = np.intersect1d(flat[later], flat[earlier], return_indices=True)
            table, other = tables[later], tables[earlier]
            for place, first in sorted(zip(here.tolist(), there.tolist(), strict=True)):
                pair = f"{products[table.rows[place]].id},{labels[table.labels[place]].id}"
                where = f"{other.path.name}:{other.lines[first]}"
                faults.add(
                    table.path, int(table.lines[place]), f"the pair {pair} is also in {where}; keep it in one split"
                )


def _split(table: _PairTable, label_count: int) -> Split:
    unique, first, inverse = np.unique(table.rows, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return Split(unique[order], Relevance.from_pairs(rank[inverse], table.labels, len(unique), label_count))


def ensure_validation(catalogue: Catalogue, fraction: float = 0.1, seed: int = 0) -> Catalogue:
    """Cuts ``fraction`` of the training products off as ``valid`` when there is no valid split.

    Products of one normalised title stay on one side. A label keeps at least half of its training pairs, and one:
    where that forbids it, valid is smaller than asked for. Products that are no labels come first: a label's own pairs
    tell what it goes with, and what is chosen on products that are told of does not hold for new ones.
    """
    if "valid" in catalogue.splits:
        return catalogue
    if "train" not in catalogue.splits:
        raise CatalogueError(catalogue.folder / "train.csv", None, "is missing, so no validation split can be cut")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, must lie between 0 and 1")
    train = catalogue.splits["train"]
    groups = _title_groups([catalogue.products[row] for row in train.products])
    labels = {label.id for label in catalogue.labels}
    told = np.array([any(catalogue.products[train.products[row]].id in labels for row in group) for group in groups])
    wanted = max(1, round(fraction * len(train.products)))
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort(told[order], kind="stable")]
    chosen = _choose_groups(groups, train.relevance, wanted, order)
    if not chosen or len(chosen) == len(groups):
        raise CatalogueError(
            catalogue.folder / "train.csv",
            None,
            "has too few products of different titles to cut off a validation split; add valid.csv",
        )
    is_valid = np.zeros(len(train.products), dtype=np.bool_)
    for group in chosen:
        is_valid[groups[group]] = True
    splits = dict(catalogue.splits)
    for name, mask in (("train", ~is_valid), ("valid", is_valid)):
        rows = np.flatnonzero(mask)
        splits[name] = Split(train.products[rows], train.relevance.select(rows))
    return replace(catalogue, splits=splits)


def without_labels(catalogue: Catalogue, ids: set[str]) -> Catalogue:
    """The labels of these ids and their pairs are gone, and with them products of the splits that are left without a pair.

    The same catalogue where it has no such label.
    """
    stays = np.array([label.id not in ids for label in catalogue.labels])
    if stays.all():
        return catalogue
    numbers = np.cumsum(stays) - 1

    def narrowed(relevance: Relevance) -> Relevance:
        rows, labels = relevance.to_pairs()
        kept = stays[labels]
        return Relevance.from_pairs(rows[kept], numbers[labels[kept]], relevance.row_count, int(stays.sum()))

    splits = {}
    for name, split in catalogue.splits.items():
        relevance = narrowed(split.relevance)
        left = np.flatnonzero(relevance.row_sizes())
        splits[name] = Split(split.products[left], relevance.select(left))
    labels = [label for label, kept in zip(catalogue.labels, stays, strict=True) if kept]
    return replace(
        catalogue, labels=labels, products_are_labels=False, splits=splits, exclude=narrowed(catalogue.exclude)
    )


def _title_groups(items: Sequence[Item]) -> list[list[int]]:
    """Positions of the items that share a title, or, without one, their images."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, item in enumerate(items):
        title = normalise_title(item.title).casefold()
        groups.setdefault((title,) if title else ("", *item.images), []).append(position)
    return list(groups.values())


def _choose_groups(groups: list[list[int]], relevance: Relevance, wanted: int, order: Int64Array) -> list[int]:
    """The first groups of an order whose leaving starves no label; when every group would, the one that starves fewest."""
    frequency = relevance.label_frequency()
    floor = np.maximum(1, -(-frequency // 2))
    remaining = frequency.copy()
    losses = [_label_losses(groups[group], relevance) for group in order]
    chosen, products = [], 0
    for group, (labels, counts) in zip(order, losses, strict=True):
        if products + len(groups[group]) <= wanted and np.all(remaining[labels] - counts >= floor[labels]):
            remaining[labels] -= counts
            chosen.append(int(group))
            products += len(groups[group])
    if not chosen and len(groups) > 1:
        starved = [int(np.sum(frequency[labels] - counts < 1)) for labels, counts in losses]
        chosen = [int(order[int(np.argmin(starved))])]
    return chosen


def _label_losses(group: list[int], relevance: Relevance) -> tuple[Int64Array, Int64Array]:
    labels, counts = np.unique(np.concatenate([relevance.row(i) for i in group]), return_counts=True)
    return labels, counts.astype(np.int64)
