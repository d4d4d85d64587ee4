"""What an accuracy table is measured on: splits, folds and catalogues with a modality left out.

Knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mufin.catalogue import Catalogue, Item, Split, ensure_validation, without_labels
from mufin.metrics import RowScores
from mufin.relevance import Relevance
from mufin.training.folds import fold_numbers

VALIDATION_FRACTION = 0.1
SCORED = "test"


@dataclass(frozen=True)
class Part:
    """A catalogue whose test split is scored, and the seed of what is trained on it."""

    catalogue: Catalogue
    seed: int
    number: int
    """Of the part: the seed, or the fold"""


def parts_of(catalogue: Catalogue, seeds: int, folds: int) -> list[Part]:
    """``seeds`` trainings on one split; with ``folds``, one training on each part of all products instead.

    Where there is no test split valid is scored, and a tenth of the training products becomes the validation split:
    nothing that is chosen is chosen on what is scored.
    """
    if folds:
        return _folded(catalogue, folds)
    splits = dict(catalogue.splits)
    if SCORED not in splits and "valid" in splits:
        splits[SCORED] = splits.pop("valid")
    own = ensure_validation(replace(catalogue, splits=splits), VALIDATION_FRACTION, 0)
    return [Part(own, seed, seed) for seed in range(seeds)]


def _folded(catalogue: Catalogue, folds: int) -> list[Part]:
    """Parts of all products that have a relevant label, products of one title on the same side.

    A product that is scored is no label of its part: where pairs are mutual, the pairs in which it stands as a label
    would tell a network that compares titles with labels' titles what to answer, and a product never seen has none.
    """
    splits = list(catalogue.splits.values())
    products = np.concatenate([split.products for split in splits])
    pairs = [split.relevance.to_pairs() for split in splits]
    offsets = np.cumsum([0, *(len(split.products) for split in splits)])
    rows = np.concatenate([own[0] + offset for own, offset in zip(pairs, offsets[:-1], strict=True)])
    labels = np.concatenate([own[1] for own in pairs])
    relevance = Relevance.from_pairs(rows, labels, len(products), len(catalogue.labels))
    numbers = fold_numbers([catalogue.products[int(row)].title for row in products], folds, 0)
    found = []
    for fold in range(folds):
        inside, outside = np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)
        own = {
            "train": Split(products[inside], relevance.select(inside)),
            SCORED: Split(products[outside], relevance.select(outside)),
        }
        unseen = {catalogue.products[int(row)].id for row in products[outside]}
        part = without_labels(replace(catalogue, splits=own), unseen)
        found.append(Part(ensure_validation(part, VALIDATION_FRACTION, 0), fold, fold))
    return found


def without_images(catalogue: Catalogue) -> Catalogue:
    """No item has an image, but those that have nothing else."""
    return _changed(catalogue, lambda item: replace(item, images=()) if item.title else item)


def without_titles(catalogue: Catalogue) -> Catalogue:
    """No item has a title, but those that have nothing else."""
    return _changed(catalogue, lambda item: replace(item, title="") if item.images else item)


def _changed(catalogue: Catalogue, change: Callable[[Item], Item]) -> Catalogue:
    products = [change(item) for item in catalogue.products]
    labels = products if catalogue.products_are_labels else [change(item) for item in catalogue.labels]
    return replace(catalogue, products=products, labels=labels)


def average(scores: Sequence[RowScores]) -> RowScores:
    """Figures of the same products with several seeds: the mean of each product's."""
    first = scores[0]
    if any(not np.array_equal(own.rows, first.rows) for own in scores):
        raise ValueError("figures of different products cannot be averaged")
    numerators = np.mean([own.numerators for own in scores], axis=0)
    return replace(first, numerators=numerators, denominators=np.mean([own.denominators for own in scores], axis=0))


def concatenated(scores: Sequence[RowScores]) -> RowScores:
    """Figures of different products, one after the other."""
    offsets = np.cumsum([0, *(own.row_count for own in scores)])
    return RowScores(
        scores[0].names, np.concatenate([own.numerators for own in scores]),
        np.concatenate([own.denominators for own in scores]),
        np.concatenate([own.rows + offset for own, offset in zip(scores, offsets[:-1], strict=True)]),
        int(offsets[-1]),
    )  # fmt: skip
