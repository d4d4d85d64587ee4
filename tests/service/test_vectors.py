"""Pictures to vectors where several requests and a cache that takes its time meet."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest

from mufin.inputs import ImageLimits
from service.batching import BatchQueue
from service.cache import MemoryCache
from service.decoding import Decoder
from service.fetching import Fetched
from service.url_entries import UrlEntry, url_key
from service.vectors import VectorLimits, Vectors
from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import picture

URL = "https://shop.example/a.png"
CONTENT = picture()


class SlowCache(MemoryCache):
    """As Redis: an answer takes a moment."""

    async def get_many(self, keys: Sequence[str], seconds: float = math.inf) -> list[bytes | None]:
        found = await super().get_many(keys, seconds)
        await asyncio.sleep(0.002)
        return found


class Tagged:
    """A server that says "not changed" to whoever has the tag."""

    async def fetch(self, url: str, etag: str | None = None) -> Fetched:
        await asyncio.sleep(0.003)
        return Fetched(None, etag) if etag else Fetched(CONTENT, '"a"')


@pytest.mark.parametrize("step", range(20))
async def test_a_stale_picture_whose_vector_is_forgotten_is_fetched_whole(step: int) -> None:
    """Whenever a second request comes: it must not be answered by one that asks whether something has changed."""
    queue, cache, fetcher = BatchQueue(1, 256), SlowCache(1 << 20), Tagged()
    limits = VectorLimits(1.0, 60.0, 100.0, 1 << 20, 8, 8, shared=False)
    unknown: Any = fetcher
    vectors = Vectors(MemoryModel(shop()), queue, cache, unknown, Decoder(1, 1 << 24, ImageLimits()), limits)
    stale = UrlEntry(hashlib.sha256(CONTENT).hexdigest(), '"a"', time.time() - 1000)
    cache.put_soon({url_key(URL): stale.to_bytes()}, 1000.0)

    async def ask(wait: float) -> None:
        await asyncio.sleep(wait)
        known = await vectors.known("", [URL], math.inf)
        outcome = known.images[0] or await vectors.image(URL, known)
        assert outcome.error is None
        assert outcome.vector is not None

    await asyncio.gather(ask(0.0), ask(0.0005 * step))
    await queue.aclose()
