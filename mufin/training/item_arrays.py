"""The items of a catalogue as arrays on disk, and batches of them.

Knows no network. Tokens and pixels are memory-mapped, so that a catalogue larger than memory streams;
an image that several items share is decoded and stored once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from mufin.catalogue import Catalogue, ImageReader, Item
from mufin.errors import CatalogueError, ImageError
from mufin.image_source import is_url, packed_image
from mufin.inputs import (
    BoolArray,
    FloatArray,
    InputSpec,
    Int64Array,
    TitleTokenizer,
    Uint8Array,
    decode_image,
    normalise_title,
)
from mufin.training.disk import allocate, atomic_write, load_kept, locked

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many are done, of how many."""

_TITLES_AT_ONCE = 8192


@dataclass(frozen=True)
class ItemArrays:
    """N items. Arrays may be memory maps; none is written to after construction."""

    token_ids: Int64Array
    """(N, T) int32 on disk, padded with 0"""
    token_counts: Int64Array
    """(N,) tokens of each title"""
    has_title: BoolArray
    """(N,)"""
    image_offsets: Int64Array
    """(N + 1,) into ``image_rows``"""
    image_rows: Int64Array
    """rows of ``pixels``, item after item"""
    pixels: Uint8Array
    """(U, side, side, 3): each distinct image once; shared between products and labels"""
    title_features: FloatArray | None = None
    """(N, width): the frozen text encoder's features instead of tokens"""
    image_features: FloatArray | None = None
    """(U, width): the frozen image encoder's features instead of pixels"""
    title_vectors: FloatArray | None = None
    """(N, D): module 3's title vectors instead of tokens"""
    image_vectors: FloatArray | None = None
    """(U, D): module 3's image vectors instead of pixels"""

    def __len__(self) -> int:
        return len(self.token_counts)

    @property
    def most_images(self) -> int:
        """Images of the item that has most: fixes the bag slots of a whole set."""
        return int(np.diff(self.image_offsets).max(initial=0))

    def batch(
        self, items: Int64Array, image_dropout: float = 0.0, random: np.random.Generator | None = None
    ) -> ItemBatch:
        """The items' arrays, gathered and padded; ``image_dropout`` leaves images out, never the last slot."""
        owners, rows = self._images_of(items)
        if image_dropout and random is not None:
            stays = random.random(len(rows)) >= image_dropout
            bare = ~self.has_title[items] & (np.bincount(owners[stays], minlength=len(items)) == 0)
            first = np.diff(owners, prepend=-1) > 0
            stays |= first & bare[owners]
            owners, rows = owners[stays], rows[stays]
        counts = np.bincount(owners, minlength=len(items))
        image_mask = np.arange(counts.max(initial=0)) < counts[:, None]
        distinct, inverse = np.unique(rows, return_inverse=True)
        image_index = np.zeros(image_mask.shape, dtype=np.int64)
        image_index[image_mask] = inverse
        title, token_mask = self.titles(items)
        image = self.images(distinct)
        return ItemBatch(title, token_mask, self.has_title[items], image, image_index, image_mask, self.stages)

    def _images_of(self, items: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Of each image of the items, one item after the other: its place in ``items`` and its row."""
        starts = self.image_offsets[items]
        counts = self.image_offsets[items + 1] - starts
        owners = np.repeat(np.arange(len(items)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owners, self.image_rows[starts[owners] + within]

    @property
    def image_count(self) -> int:
        """U, distinct images."""
        return len(self.pixels)

    @property
    def stages(self) -> tuple[str, str]:
        """What stands for titles and images: raw, features or vectors."""
        title = (
            "vectors" if self.title_vectors is not None else "features" if self.title_features is not None else "raw"
        )
        image = (
            "vectors" if self.image_vectors is not None else "features" if self.image_features is not None else "raw"
        )
        return title, image

    def titles(self, items: Int64Array) -> tuple[Int64Array | FloatArray, Int64Array]:
        """Stored form of the items' titles, and the token mask (B, T), without columns where it is no tokens."""
        stored = self.title_vectors if self.title_vectors is not None else self.title_features
        if stored is not None:
            return np.array(stored[items], dtype=np.float32), np.zeros((len(items), 0), np.int64)
        counts = self.token_counts[items]
        length = int(counts.max(initial=1))
        mask = (np.arange(length)[None, :] < counts[:, None]).astype(np.int64)
        return np.asarray(self.token_ids[items, :length], dtype=np.int64), mask

    def images(self, rows: Int64Array) -> Uint8Array | FloatArray:
        """Stored form of distinct images, in the order of ``rows``."""
        stored = self.image_vectors if self.image_vectors is not None else self.image_features
        if stored is not None:
            return np.array(stored[rows], dtype=np.float32)
        return np.array(self.pixels[rows])

    def without_images(self) -> ItemArrays:
        """The same items as if none had an image; those without a title have nothing left."""
        return replace(self, image_offsets=np.zeros_like(self.image_offsets), image_rows=self.image_rows[:0])

    def without_titles(self) -> ItemArrays:
        """The same items as if none had a title; those without an image have nothing left."""
        return replace(self, has_title=np.zeros_like(self.has_title))

    def with_vectors(self, title_vectors: FloatArray, image_vectors: FloatArray) -> ItemArrays:
        """The same items with module 3's vectors in place of tokens and pixels."""
        return replace(self, title_vectors=title_vectors, image_vectors=image_vectors)


@dataclass(frozen=True)
class ItemBatch:
    """B items, ready for the encoder."""

    title: Int64Array | FloatArray
    """(B, T) token ids, or (B, width) features, or (B, D) vectors"""
    token_mask: Int64Array
    """(B, T); without columns when ``title`` is no tokens"""
    has_title: BoolArray
    """(B,)"""
    image: Uint8Array | FloatArray
    """(U, side, side, 3) pixels, or (U, width) features, or (U, D) vectors of the batch's distinct images"""
    image_index: Int64Array
    """(B, I) into ``image``; 0 where masked"""
    image_mask: BoolArray
    """(B, I)"""
    stages: tuple[str, str]
    """What ``title`` and ``image`` hold: raw, features or vectors"""


def prepare(
    catalogue: Catalogue, spec: InputSpec, tokenizer: TitleTokenizer, folder: Path, progress: Progress,
    shared: Path | None = None,
) -> tuple[ItemArrays, ItemArrays]:  # fmt: skip
    """Products and labels of a catalogue as arrays in ``folder``; pictures that lie there whole already are reused.

    ``shared``: where pictures are kept instead, for other trainings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = shared or folder
    kept.mkdir(parents=True, exist_ok=True)
    sets = [catalogue.products] if catalogue.products_are_labels else [catalogue.products, catalogue.labels]
    names: dict[str, int] = {}
    layouts = [_image_layout(items, spec.max_images, names) for items in sets]
    with locked(kept):
        pixels = _decode_all(list(names), catalogue, spec, kept, progress)
    arrays = []
    for number, (items, (offsets, rows)) in enumerate(zip(sets, layouts, strict=True)):
        ids, counts = _tokenise(items, spec, tokenizer, folder / f"tokens-{number}.npy")
        has_title = np.fromiter((bool(normalise_title(i.title)) for i in items), np.bool_, len(items))
        empty = np.flatnonzero(~has_title & (np.diff(offsets) == 0))
        if len(empty):
            reason = f"has no title, and inputs.max_images {spec.max_images} leaves it no image: allow at least 1"
            raise CatalogueError(catalogue.folder, None, f"item {items[empty[0]].id!r} {reason}")
        arrays.append(ItemArrays(ids, counts, has_title, offsets, rows, pixels))
    return arrays[0], arrays[-1]


def _image_layout(items: Sequence[Item], most: int, names: dict[str, int]) -> tuple[Int64Array, Int64Array]:
    counts = np.fromiter((min(len(i.images), most) for i in items), np.int64, len(items))
    rows = [names.setdefault(image, len(names)) for item in items for image in item.images[:most]]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), np.asarray(rows, dtype=np.int64)


def _decode_all(
    names: list[str], catalogue: Catalogue, spec: InputSpec, folder: Path, progress: Progress
) -> Uint8Array:
    side = spec.image_side_pixels
    identity = hashlib.sha256(
        json.dumps([str(catalogue.folder.resolve()), side, _stamps(catalogue, names)]).encode()
    ).hexdigest()
    path, marker = (folder / f"pixels-{identity[:16]}{suffix}" for suffix in (".npy", ".json"))
    whole = json.dumps(identity)
    if marker.is_file() and path.is_file() and marker.read_text() == whole:
        return _read_pixels(path, names)
    marker.unlink(missing_ok=True)
    if not names:
        np.save(path, np.zeros((0, side, side, 3), np.uint8))
    else:
        pixels = allocate(path, np.uint8, (len(names), side, side, 3))
        with ImageReader(catalogue.folder) as reader, ThreadPoolExecutor(os.cpu_count() or 1) as pool:

            def read(name: str) -> Uint8Array:
                try:
                    return decode_image(reader.read(name), side)
                except ImageError as error:
                    raise _image_error(catalogue, name, error) from error

            for row, decoded in enumerate(_bounded_map(pool, read, names)):
                pixels[row] = decoded
                progress("decoding images", row + 1, len(names))
        pixels.flush()
    atomic_write(marker, lambda path: path.write_text(whole))
    return _read_pixels(path, names)


def _image_error(catalogue: Catalogue, name: str, error: ImageError) -> CatalogueError:
    """At its file; a URL is said with the item that has it: as a path its slashes would be lost."""
    if not is_url(name):
        return CatalogueError(catalogue.folder / name, None, f"{error}; replace or remove the image")
    owner = next(item.id for item in [*catalogue.products, *catalogue.labels] if name in item.images)
    reason = f"image {name} of {owner!r}: {error}; replace or remove the image"
    return CatalogueError(catalogue.folder, None, reason)


def _stamps(catalogue: Catalogue, names: list[str]) -> list[list[object]]:
    """Name, size and time of every image file: a replaced picture is decoded anew. URLs have their name only."""
    stamps: list[list[object]] = []
    for name in names:
        packed = packed_image(name)
        path = catalogue.folder / (name if packed is None else packed.file)
        known = path.stat() if path.is_file() else None
        stamps.append([name] if known is None else [name, known.st_size, known.st_mtime_ns])
    return stamps


def _read_pixels(path: Path, names: list[str]) -> Uint8Array:
    return load_kept(path, mapped=bool(names))  # nothing cannot be mapped


def _bounded_map(
    pool: ThreadPoolExecutor, function: Callable[[str], Uint8Array], names: list[str]
) -> Iterator[Uint8Array]:
    """``pool.map`` that keeps at most 256 results waiting, so that memory stays bounded."""
    iterator = iter(names)
    waiting = deque(pool.submit(function, name) for name in islice(iterator, 256))
    while waiting:
        done = waiting.popleft()
        waiting.extend(pool.submit(function, name) for name in islice(iterator, 1))
        yield done.result()


def _tokenise(
    items: Sequence[Item], spec: InputSpec, tokenizer: TitleTokenizer, path: Path
) -> tuple[Int64Array, Int64Array]:
    ids = allocate(path, np.int32, (max(1, len(items)), spec.max_title_tokens))
    counts = np.zeros(len(items), dtype=np.int64)
    for start in range(0, len(items), _TITLES_AT_ONCE):
        batch = tokenizer.encode([i.title for i in items[start : start + _TITLES_AT_ONCE]])
        ids[start : start + len(batch.ids), : batch.ids.shape[1]] = batch.ids
        counts[start : start + len(batch.ids)] = batch.mask.sum(axis=1)
    ids.flush()
    return np.load(path, mmap_mode="r"), counts
