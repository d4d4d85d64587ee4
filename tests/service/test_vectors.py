"""Pictures to vectors where several requests and a cache that takes its time meet."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any

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


class Meeting:
    """When who comes: the first request looks for a vector until the second asks whether the picture has changed."""

    def __init__(self) -> None:
        self.looking, self.asked_again = asyncio.Event(), asyncio.Event()
        self.tags_seen = 0


class SlowCache(MemoryCache):
    """As Redis: an answer takes a while."""

    def __init__(self, meeting: Meeting) -> None:
        super().__init__(1 << 20)
        self._meeting = meeting

    async def get_many(self, keys: Sequence[str], seconds: float = math.inf) -> list[bytes | None]:
        if ":image:" in keys[0] and self._meeting.tags_seen == 1:
            self._meeting.looking.set()
            await self._meeting.asked_again.wait()
        return await super().get_many(keys, seconds)


class Tagged:
    """A server that says "not changed" to whoever has the tag."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting

    async def fetch(self, url: str, etag: str | None = None) -> Fetched:
        if etag is None:
            return Fetched(CONTENT, '"a"')
        self._meeting.tags_seen += 1
        if self._meeting.tags_seen == 2:
            self._meeting.asked_again.set()
            await asyncio.sleep(0.05)  # the first request goes on meanwhile
        return Fetched(None, etag)


async def test_a_stale_picture_whose_vector_is_forgotten_is_fetched_whole() -> None:
    """Also while a second request asks whether it has changed: that answer holds no picture."""
    meeting = Meeting()
    queue, cache = BatchQueue(1, 256), SlowCache(meeting)
    fetcher: Any = Tagged(meeting)
    limits = VectorLimits(1.0, 60.0, 100.0, 1 << 20, 8, 8, shared=False)
    vectors = Vectors(MemoryModel(shop()), queue, cache, fetcher, Decoder(1, 1 << 24, ImageLimits()), limits)
    stale = UrlEntry(hashlib.sha256(CONTENT).hexdigest(), '"a"', time.time() - 1000)
    cache.put_soon({url_key(URL): stale.to_bytes()}, 1000.0)

    async def ask() -> None:
        known = await vectors.known("", [URL], lambda: math.inf)
        outcome = await vectors.image(URL, known)
        assert outcome.error is None
        assert outcome.vector is not None

    first = asyncio.ensure_future(ask())
    await meeting.looking.wait()
    cache.put_soon({url_key(URL): stale.to_bytes()}, 1000.0)  # stale again, as it will be
    await asyncio.gather(first, ask())
    assert meeting.tags_seen == 2
    await queue.aclose()
