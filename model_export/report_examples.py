"""Example recommendations with thumbnails: validation products, put through the finished bundle.

Knows no page. Pictures are small JPEGs as data URIs, so that the page needs nothing outside itself.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mufin.catalogue import Catalogue, ImageReader, Item, Relevance
from mufin.errors import MufinError
from mufin.inputs import Int64Array, Uint8Array, decode_image, normalise_title
from mufin.predictor import Predictor, Ranking

_PRODUCTS = 12
_RESULTS = 5
_SIDE_PIXELS = 96
_QUALITY = 72


@dataclass(frozen=True)
class Card:
    """An item as the page shows it."""

    title: str
    picture: str | None
    """data URI of its first image; None when it has none that can be read"""


@dataclass(frozen=True)
class Result:
    """A recommended label."""

    card: Card
    score: float
    probability: float
    relevant: bool


@dataclass(frozen=True)
class Example:
    """A product and what it gets, best first."""

    card: Card
    relevant: int
    """labels that are relevant to it"""
    results: tuple[Result, ...]


def make_examples(
    predictor: Predictor, catalogue: Catalogue, rows: Int64Array, relevance: Relevance, number: int = _PRODUCTS
) -> list[Example]:
    """``number`` products of ``rows`` (into the catalogue), evenly spaced, those with an image before others.

    ``relevance``: (rows, L). A product whose images cannot be read is recommended to by its title.
    """
    places = _spread(np.array([bool(catalogue.products[row].images) for row in rows], dtype=np.bool_), number)
    examples = []
    with ImageReader(catalogue.folder) as reader:
        show = _Pictures(reader)
        for place in places:
            product = catalogue.products[rows[place]]
            ranking = _rank(predictor, product, reader)
            if ranking is not None:
                examples.append(_example(product, ranking, catalogue.labels, relevance.row(int(place)), show))
    return examples


def _spread(pictured: np.ndarray[tuple[int], np.dtype[np.bool_]], number: int) -> list[int]:
    """Positions, evenly spaced among the pictured ones, filled up with others."""
    first, rest = np.flatnonzero(pictured), np.flatnonzero(~pictured)
    chosen = _evenly(first, number)
    return sorted([*chosen, *_evenly(rest, number - len(chosen))])


def _evenly(places: Int64Array, number: int) -> list[int]:
    count = min(number, len(places))
    return [int(places[i * len(places) // count]) for i in range(count)]


def _rank(predictor: Predictor, product: Item, reader: ImageReader) -> Ranking | None:
    spec = predictor.input_spec
    pixels: list[Uint8Array] = []
    for image in product.images[: spec.max_images]:
        decoded = _decode(reader, image, spec.image_side_pixels)
        pixels += [] if decoded is None else [decoded]
    if not pixels and not normalise_title(product.title):
        return None
    empty = np.zeros((0, spec.image_side_pixels, spec.image_side_pixels, 3), dtype=np.uint8)
    bags = predictor.embed([product.title], [np.stack(pixels) if pixels else empty])
    return predictor.rank(bags, _RESULTS, excluded=[predictor.labels.excluded(product.id)])[0]


def _example(
    product: Item, ranking: Ranking, labels: Sequence[Item], relevant: Int64Array, show: Callable[[Item], Card]
) -> Example:
    results = tuple(
        Result(show(labels[int(label)]), float(score), float(chance), bool(np.isin(label, relevant)))
        for label, score, chance in zip(ranking.labels, ranking.scores, ranking.probabilities, strict=True)
    )
    return Example(show(product), len(relevant), results)


class _Pictures:
    """Cards of items; an image that several share is read once."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader
        self._known: dict[str, str | None] = {}

    def __call__(self, item: Item) -> Card:
        if not item.images:
            return Card(item.title, None)
        name = item.images[0]
        if name not in self._known:
            pixels = _decode(self._reader, name, _SIDE_PIXELS)
            self._known[name] = None if pixels is None else data_uri(pixels)
        return Card(item.title, self._known[name])


def _decode(reader: ImageReader, image: str, side_pixels: int) -> Uint8Array | None:
    """None for an image that cannot be had: a page without one picture is better than no bundle."""
    try:
        return decode_image(reader.read(image), side_pixels)
    except (MufinError, OSError):
        return None


def data_uri(pixels: Uint8Array) -> str:
    """(side, side, 3) as a JPEG in a data URI."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
