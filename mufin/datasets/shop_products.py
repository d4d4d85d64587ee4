"""The products of the built-in shop: attributes drawn at random, titles that tell half of them.

Knows no pictures' pixels and no relevance. docs/catalogue.md describes the shop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mufin.inputs import BoolArray, Int64Array

BRAND, KIND, SIZE, COLOUR, PATTERN, SHAPE = range(6)
"""Columns of an attribute table (N, 6)."""
TITLE_ATTRIBUTES = (BRAND, KIND, SIZE)
PICTURE_ATTRIBUTES = (COLOUR, PATTERN, SHAPE)

BRANDS = ("Nordvik", "Casaluma", "Hartwell", "Kiyomi", "Oldbarn", "Fjella")
ROOMS = ("kitchen", "bedroom", "garden", "office")
KINDS = (
    "mug",
    "tray",
    "bowl",
    "pillow",
    "blanket",
    "lamp",
    "planter",
    "bench",
    "parasol",
    "clock",
    "folder",
    "organiser",
)
"""Three of each room, in the order of ROOMS."""
SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
PATTERNS = ("plain", "striped", "dotted", "checked")
SHAPES = ("round", "square", "pointed", "tall")
VALUES = tuple(len(names) for names in (BRANDS, KINDS, SIZES, COLOURS, PATTERNS, SHAPES))
KINDS_PER_ROOM = len(KINDS) // len(ROOMS)

LISTINGS_PER_ARTICLE = 3
"""Sellers that list the same article: equal attributes, other wording and photos."""
PICTURELESS_SHARE = 0.08
HELD_OUT_SHARE_OF_TEST = 0.4

_KIND_WORDS = {
    "mug": ("mug", "coffee mug"),
    "tray": ("tray", "serving tray"),
    "bowl": ("bowl", "salad bowl"),
    "pillow": ("pillow", "bed pillow"),
    "blanket": ("blanket", "throw blanket"),
    "lamp": ("lamp", "bedside lamp"),
    "planter": ("planter", "plant pot"),
    "bench": ("bench", "garden bench"),
    "parasol": ("parasol", "sun parasol"),
    "clock": ("clock", "wall clock"),
    "folder": ("folder", "document folder"),
    "organiser": ("organiser", "desk organiser"),
}
_SIZE_WORDS = {"small": ("small", "compact"), "large": ("large", "big")}
_ORDERS = ("{brand} {size} {kind}", "{brand} {kind}, {size}", "{size} {kind} by {brand}", "{kind} {size} {brand}")
_NOISE = (
    "", "", "new", "with gift box", "classic", "2nd edition", "bestseller", "easy care", "for home", "limited offer",
    "with warranty", "original", "gift idea", "modern living",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ShopProducts:
    """N products. A product's split is 0 train, 1 valid, 2 test."""

    attributes: Int64Array
    """(N, 6): indices into BRANDS, KINDS, SIZES, COLOURS, PATTERNS, SHAPES"""
    picture_counts: Int64Array
    """(N,) 0..3"""
    split: Int64Array
    """(N,)"""
    is_label: BoolArray
    """(N,): recommended in the product-to-product catalogue; all of train"""
    titles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.titles)


def make_products(count: int, random: np.random.Generator) -> ShopProducts:
    """About 73 % train, 10 % valid, 17 % test. Articles with several listings come first: they are the labels.

    For every kind one colour is held out: no train or valid product has the two together; 40 % of test does.
    """
    cells = len(ROOMS) * len(SIZES) * len(PATTERNS)
    articles = cells * max(1, round(count / 400))
    labels = articles * LISTINGS_PER_ARTICLE
    valid, test = round(count * 0.1), round(count * 0.17)
    if labels + valid + test > count:
        raise ValueError(f"{count} products are too few, the shop needs at least {round(labels / 0.73) + 1}")
    held_out = random.integers(len(COLOURS), size=len(KINDS))
    attributes = np.concatenate(
        [
            np.repeat(_articles(articles, held_out, random), LISTINGS_PER_ARTICLE, axis=0),
            _avoid_held_out(_random_attributes(count - labels - test, random), held_out, random),
            _test_attributes(test, held_out, random),
        ]
    )
    split = np.zeros(count, dtype=np.int64)
    split[count - test - valid : count - test] = 1
    split[count - test :] = 2
    pictures = random.choice(
        4, size=count, p=[PICTURELESS_SHARE, 0.72, 0.14, 1 - 0.72 - 0.14 - PICTURELESS_SHARE]
    ).astype(np.int64)
    titles = tuple(_title(row, random) for row in attributes)
    return ShopProducts(attributes, pictures, split, np.arange(count) < labels, titles)


def _random_attributes(count: int, random: np.random.Generator) -> Int64Array:
    return np.stack([random.integers(values, size=count) for values in VALUES], axis=1)


def _articles(count: int, held_out: Int64Array, random: np.random.Generator) -> Int64Array:
    """Equally many articles of every room, size and pattern, so that no product is without companions."""
    attributes = _random_attributes(count, random)
    cell = np.arange(count) % (len(ROOMS) * len(SIZES) * len(PATTERNS))
    room, attributes[:, SIZE], attributes[:, PATTERN] = np.unravel_index(cell, (len(ROOMS), len(SIZES), len(PATTERNS)))
    attributes[:, KIND] = room * KINDS_PER_ROOM + random.integers(KINDS_PER_ROOM, size=count)
    return _avoid_held_out(attributes, held_out, random)


def _avoid_held_out(attributes: Int64Array, held_out: Int64Array, random: np.random.Generator) -> Int64Array:
    clash = attributes[:, COLOUR] == held_out[attributes[:, KIND]]
    step = random.integers(1, len(COLOURS), size=len(attributes))
    attributes[clash, COLOUR] = (attributes[clash, COLOUR] + step[clash]) % len(COLOURS)
    return attributes


def _test_attributes(count: int, held_out: Int64Array, random: np.random.Generator) -> Int64Array:
    attributes = _avoid_held_out(_random_attributes(count, random), held_out, random)
    chosen = random.permutation(count)[: round(HELD_OUT_SHARE_OF_TEST * count)]
    attributes[chosen, COLOUR] = held_out[attributes[chosen, KIND]]
    return attributes


def _title(attributes: Int64Array, random: np.random.Generator) -> str:
    """Brand, kind and size in varying words and order, at times with words that mean nothing here."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(random.integers(len(words)))]

    title = pick(_ORDERS).format(
        brand=BRANDS[attributes[BRAND]],
        size=pick(_SIZE_WORDS[SIZES[attributes[SIZE]]]),
        kind=pick(_KIND_WORDS[KINDS[attributes[KIND]]]),
    )
    return f"{title} {pick(_NOISE)}".strip().capitalize()
