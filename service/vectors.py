"""Titles and images to vectors: cache, fetch, decode, encode, each thing once.

Knows no labels and no request; an image that cannot be had is an outcome, not an error.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from opentelemetry.trace import SpanKind

from mufin.inputs import FloatArray, normalise_title
from service.batching import BatchQueue, Stage
from service.bundles import Encoder
from service.cache import Cache, Kind, SingleFlight, cache_key
from service.decoding import Decoder, read_data_url
from service.encoder_calls import Sequel, TitleItem, TitleResult, encode_images, encode_titles, unpacked
from service.errors import PictureError
from service.fetching import Fetcher, require_image
from service.tracing import span
from service.url_entries import UrlEntry, read_entry, url_key

CacheOutcome = Literal["hit", "miss"]

_DAY_SECONDS = 86400.0
_URL_HIT: tuple[tuple[Kind, CacheOutcome], ...] = (("url", "hit"),)
_BOTH_HIT: tuple[tuple[Kind, CacheOutcome], ...] = (("url", "hit"), ("image", "hit"))
# Hashing less than this is quicker than handing it to a thread.
_HASH_INLINE_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class VectorLimits:
    """What may be kept for how long, and how large a picture may be."""

    url_fresh_seconds: float
    url_failed_seconds: float
    embedding_ttl_seconds: float
    max_image_bytes: int
    max_title_batch: int
    max_image_batch: int
    shared: bool
    """Whether vectors go to a cache outside this process, as fp16; then all do, so that hit and miss answer alike."""


@dataclass(slots=True)
class ImageOutcome:
    """What became of one image."""

    vector: FloatArray | None = None
    """(D,)"""
    error: PictureError | None = None
    seconds: Mapping[str, float] | None = None
    """Of the steps that were needed: fetch, decode, encode."""
    lookups: tuple[tuple[Kind, CacheOutcome], ...] = ()


@dataclass(slots=True)
class TitleOutcome:
    """A title's vector, and whether it was known."""

    vector: FloatArray
    seconds: float
    lookup: CacheOutcome
    tokens: tuple[int, int] = (0, 0)
    """(known, unknown) to the tokenizer, where this request had it encoded"""


@dataclass(slots=True)
class Known:
    """What the cache knew of a product."""

    title: TitleOutcome | None
    """None: there is none, or it has to be encoded."""
    images: Sequence[ImageOutcome | None]
    """One an image; None: it has to be fetched or encoded."""
    entries: Mapping[str, UrlEntry]
    """By URL, the stale ones too: they may hold an ETag."""
    title_key: str = ""
    """Where the cache keeps the title's vector; "" without a title."""
    missing_images: int = 0
    """That have to be fetched or encoded"""


class Vectors:
    """Vectors of one encoder; shared by all requests to its bundles."""

    def __init__(
        self,
        encoder: Encoder,
        queue: BatchQueue,
        cache: Cache,
        fetcher: Fetcher,
        decoder: Decoder,
        limits: VectorLimits,
    ) -> None:
        self._encoder, self._queue, self._cache = encoder, queue, cache
        self._fetcher, self._decoder, self._limits = fetcher, decoder, limits
        # Functions of the encoder alone: were they methods, this object and its stages would hold each other.
        self._number = np.dtype(np.float16 if limits.shared else np.float32)
        titles, images = partial(encode_titles, encoder, self._number), partial(encode_images, encoder)
        # Titles go first: they cost little, and a request whose pictures are late is answered from its title.
        self._images = queue.stage("encode_images", images, limits.max_image_batch, step=0)
        self._titles = queue.stage("encode_titles", titles, limits.max_title_batch, step=1)
        self._flights: SingleFlight[bytes] = SingleFlight()
        self._url_flights: SingleFlight[_Picture] = SingleFlight()

    def work(self, title: str, known: Known) -> dict[Stage[Any, Any], int]:
        """Items that the product will bring to the queue, as far as the cache's answer tells; stages without any left out."""
        work: dict[Stage[Any, Any], int] = {}
        if title and known.title is None:
            work[self._titles] = 1
        if known.missing_images:
            work[self._images] = known.missing_images
        return work

    @property
    def title_stage(self) -> Stage[Any, Any]:
        """Where titles are encoded."""
        return self._titles

    @property
    def image_stage(self) -> Stage[Any, Any]:
        """Where images are encoded."""
        return self._images

    async def known(self, title: str, images: Sequence[str], patience: Callable[[], float]) -> Known:
        """What the cache knows of a product, in two questions: title and URLs, then the content of those URLs.

        ``patience``: asked before each, what it may take in seconds; a shared cache that takes longer knows nothing.
        """
        title_key = self._title_key(title) if title else ""
        url_keys = {url: url_key(url) for url in images if not url.startswith("data:")}
        found = await self._found([title_key, *url_keys.values()] if title else list(url_keys.values()), patience())
        vector = self._whole(found.get(title_key), self._encoder.title_width)
        hit = None if vector is None else TitleOutcome(self._unpack(vector), 0.0, "hit")
        if not images:
            return Known(hit, (), {}, title_key)
        entries: dict[str, UrlEntry] = {}
        for url, key in url_keys.items():
            entry = read_entry(found.get(key))
            if entry is not None:
                entries[url] = entry
        fresh = {url: entry for url, entry in entries.items() if self._is_fresh(entry)}
        image_keys = {own.content_hash: self._image_key(own.content_hash) for own in fresh.values() if own.content_hash}
        packed = await self._found(list(image_keys.values()), patience()) if image_keys else {}
        outcomes = [
            None
            if url not in fresh
            else self._at_once(fresh[url], packed.get(image_keys.get(fresh[url].content_hash or "", "")))
            for url in images
        ]
        return Known(hit, outcomes, entries, title_key, sum([own is None for own in outcomes]))

    def _at_once(self, entry: UrlEntry, packed: bytes | None) -> ImageOutcome | None:
        """Of a URL whose entry is fresh; None: its content is needed."""
        if entry.failure is not None:
            return ImageOutcome(error=entry.failure, lookups=_URL_HIT)
        vector = self._whole(packed, self._encoder.dimension)
        return None if vector is None else ImageOutcome(self._unpack(vector), lookups=_BOTH_HIT)

    async def _found(self, keys: Sequence[str], seconds: float) -> dict[str, bytes]:
        values = await self._cache.get_many(keys, seconds) if keys else []
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    async def title(self, title: str) -> TitleOutcome:
        """The vector (D,) of a normalised title that is not known. Raises what the model raised, Shed, NotReady."""
        began = time.perf_counter()
        key = self._title_key(title)
        tokens = (0, 0)

        async def encode() -> bytes:
            nonlocal tokens
            with span("encode", modality="title"):
                found = await self._queue.submit(self._titles, TitleItem(title))
            tokens = found.tokens
            self._put(key, found.packed, self._limits.embedding_ttl_seconds)
            return found.packed

        packed = await self._flights.run(key, encode)
        return TitleOutcome(self._unpack(packed), time.perf_counter() - began, "miss", tokens)

    def may_continue(self, title: str, known: Known) -> bool:
        """Whether the title is all that has to be encoded, and nobody is at it."""
        if not title or known.title is not None or known.missing_images:
            return False
        return not self._flights.is_under_way(known.title_key)

    async def title_and(
        self, title: str, key: str, sequel: Sequel, job: Any, seconds: float
    ) -> tuple[TitleOutcome, Any]:
        """The vector of a title for which ``may_continue``, and what ``sequel`` makes of the job with it.

        Both on one worker, in one go. ``key``: the title's, as ``known`` gave it. Raises what they raised, Shed, NotReady,
        and TimeoutError when they are not there within ``seconds``.
        """

        async def encode() -> tuple[bytes, TitleResult]:
            found = await self._queue.submit(self._titles, TitleItem(title, sequel, job), seconds)
            self._put(key, found.packed, self._limits.embedding_ttl_seconds)
            return found.packed, found

        packed, found = await self._flights.lead(key, encode())
        if isinstance(found.result, Exception):
            raise found.result
        return TitleOutcome(self._unpack(packed), 0.0, "miss", found.tokens), found.result

    async def image(self, url: str, known: Known) -> ImageOutcome:
        """An image's vector, or the reason why there is none. Raises Shed, NotReady, or what the model raised."""
        seconds: dict[str, float] = {}
        lookups: list[tuple[Kind, CacheOutcome]] = []
        try:
            vector = await self._image(url, known.entries.get(url), seconds, lookups)
        except PictureError as error:
            return ImageOutcome(error=error, seconds=seconds, lookups=tuple(lookups))
        return ImageOutcome(vector, seconds=seconds, lookups=tuple(lookups))

    async def _image(
        self,
        url: str,
        entry: UrlEntry | None,
        seconds: dict[str, float],
        lookups: list[tuple[Kind, CacheOutcome]],
    ) -> FloatArray:
        if url.startswith("data:"):
            picture = await self._read_data_url(url)
        else:
            fresh = entry is not None and self._is_fresh(entry)
            lookups.append(("url", "hit" if fresh else "miss"))
            if fresh:
                entry = None  # the URL is known, the embedding forgotten: the content is needed again
            began = time.perf_counter()
            picture = await self._url_flights.run(url, lambda: self._fetch(url, entry))
            seconds["fetch"] = time.perf_counter() - began
        packed = await self._look_up(picture.content_hash)
        lookups.append(("image", "miss" if packed is None else "hit"))
        if packed is None and picture.content is None:
            # Unchanged by its ETag, but the embedding was forgotten meanwhile. Not a flight that asks by an ETag again.
            picture = await self._url_flights.run(f"whole {url}", lambda: self._fetch(url, None))
        if packed is None:
            try:
                packed = await self._encode(picture, seconds)
            except PictureError as error:
                if not url.startswith("data:"):
                    self._remember(url, UrlEntry(None, None, time.time(), error))
                raise
        return self._unpack(packed)

    async def _read_data_url(self, url: str) -> _Picture:
        content = await self._decoder.run(read_data_url, url, self._limits.max_image_bytes)
        require_image(content)
        return await self._picture(content)

    async def _picture(self, content: bytes) -> _Picture:
        if len(content) < _HASH_INLINE_BYTES:
            return _Picture(content, _digest(content))
        return _Picture(content, await self._decoder.run(_digest, content))

    async def _fetch(self, url: str, entry: UrlEntry | None) -> _Picture:
        """Bytes of a URL, or its known hash when the server says that nothing changed."""
        etag = entry.etag if entry is not None and entry.content_hash is not None else None
        try:
            with span("fetch", SpanKind.CLIENT):
                fetched = await self._fetcher.fetch(url, etag)
        except PictureError as error:
            if error.of_the_url:
                self._remember(url, UrlEntry(None, None, time.time(), error))
            raise
        if fetched.content is None and entry is not None:
            self._remember(url, replace(entry, fetched_at=time.time()))
            return _Picture(None, str(entry.content_hash))
        picture = await self._picture(fetched.content or b"")
        self._remember(url, UrlEntry(picture.content_hash, fetched.etag, time.time()))
        return picture

    async def _encode(self, picture: _Picture, seconds: dict[str, float]) -> bytes:
        key = self._image_key(picture.content_hash)
        content = picture.content or b""

        async def encode() -> bytes:
            began = time.perf_counter()
            with span("decode"):
                pixels = await self._decoder.decode(content, self._encoder.input_spec.image_side_pixels)
            decoded = time.perf_counter()
            with span("encode", modality="image"):
                vector = await self._queue.submit(self._images, pixels)
            seconds.update(decode=decoded - began, encode=time.perf_counter() - decoded)
            return self.keep(key, vector)

        return await self._flights.run(key, encode)

    async def _look_up(self, content_hash: str) -> bytes | None:
        (packed,) = await self._cache.get_many([self._image_key(content_hash)])
        return self._whole(packed, self._encoder.dimension)

    def _whole(self, packed: bytes | None, width: int) -> bytes | None:
        """Nothing but a vector of this model's size, all of it numbers: a shared cache may hold garbage."""
        if packed is None or len(packed) != self._number.itemsize * width:
            return None
        if self._limits.shared and not np.isfinite(np.frombuffer(packed, dtype=self._number)).all():
            return None
        return packed

    def _is_fresh(self, entry: UrlEntry) -> bool:
        fresh = self._limits.url_failed_seconds if entry.failure is not None else self._limits.url_fresh_seconds
        return 0 <= time.time() - entry.fetched_at < fresh

    def _remember(self, url: str, entry: UrlEntry) -> None:
        if entry.failure is not None:
            ttl = self._limits.url_failed_seconds
        else:
            # With an ETag a stale entry still spares the transfer.
            ttl = max(self._limits.url_fresh_seconds, _DAY_SECONDS if entry.etag else 0.0)
        self._put(url_key(url), entry.to_bytes(), ttl)

    def keep(self, key: str, vector: FloatArray) -> bytes:
        """Remember a vector, also one that a sequel was given and whose own result came too late; returns it packed."""
        packed = vector.astype(self._number).tobytes()
        self._put(key, packed, self._limits.embedding_ttl_seconds)
        return packed

    def _unpack(self, packed: bytes) -> FloatArray:
        """Every vector comes this way, cached or not."""
        return unpacked(packed, self._number)

    def _put(self, key: str, value: bytes, ttl_seconds: float) -> None:
        self._cache.put_soon({key: value}, ttl_seconds)

    def _title_key(self, title: str) -> str:
        return cache_key(self._encoder.encoder_id, "title", title.encode())

    def _image_key(self, content_hash: str) -> str:
        return cache_key(self._encoder.encoder_id, "image", content_hash.encode())


@dataclass(frozen=True, slots=True)
class _Picture:
    content: bytes | None
    """None when only the hash is known."""
    content_hash: str


def usable_title(title: str | None) -> str:
    """The normalised title; empty when there is none."""
    return normalise_title(title or "")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
