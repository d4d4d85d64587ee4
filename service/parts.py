"""The parts of the service, built from settings and joined: queue, cache, fetcher, decoder, recommenders.

Knows no HTTP; whoever answers requests asks for the recommender of an endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from mufin.inputs import ImageLimits
from service.batching import BatchQueue
from service.block_lists import BlockList, BlockSource, block_source
from service.bundles import Encoder, Endpoint, OpenBundle, Opener, OpenModel
from service.cache import Cache, LayeredCache, MemoryCache
from service.cores import usable_cores
from service.decoding import Decoder
from service.errors import NoBundle, NotReady, SettingsError
from service.fetching import Fetcher, FetchLimits
from service.lifecycle import Lifecycle
from service.picture_urls import UrlPolicy
from service.ranking import Ranker
from service.rate_limit import RateLimiter
from service.recommender import Recommender
from service.redis_client import RedisClient
from service.security import KeyRing, read_keys
from service.served import Served
from service.settings import Settings
from service.shared_cache import RedisCache
from service.telemetry import Metrics
from service.vectors import VectorLimits, Vectors


@dataclass
class Parts:
    """Everything that requests share. Make it with ``build``."""

    settings: Settings
    lifecycle: Lifecycle
    metrics: Metrics
    keys: KeyRing
    rate_limiter: RateLimiter
    queue: BatchQueue
    cache: Cache
    fetcher: Fetcher
    decoder: Decoder
    block_lists: dict[Endpoint, BlockList]
    served: Served = field(init=False)
    _vectors: WeakValueDictionary[int, Vectors] = field(default_factory=WeakValueDictionary)

    @cached_property
    def folders(self) -> dict[Endpoint, Path]:
        """The bundle folder of every endpoint that has one."""
        wanted: dict[Endpoint, Path | None] = {
            "recommend": self.settings.recommend_bundle,
            "bid-queries": self.settings.bid_queries_bundle,
        }
        return {endpoint: folder for endpoint, folder in wanted.items() if folder is not None}

    def recommender(self, endpoint: Endpoint) -> Recommender:
        """Raises NotReady before the bundles are open, NoBundle for an endpoint without one."""
        if endpoint not in self.folders:
            raise NoBundle(f"nothing is served behind /{endpoint}")
        if not self.lifecycle.answers:
            raise NotReady(f"the service is {self.lifecycle.phase.value}")
        return self.served.recommender(endpoint)

    def open_bundles(self) -> list[dict[str, Any]]:
        """What is served now, as GET /bundles shows it."""
        # Made by ``open``, which begins a moment after the listener.
        served: Served | None = getattr(self, "served", None)
        bundles = {} if served is None else served.bundles()
        return [{"endpoint": f"/{endpoint}", **bundle.facts()} for endpoint, bundle in bundles.items()]

    async def open(self, open_model: OpenModel, settle: Callable[[], None]) -> None:
        """Open, verify and warm the bundles; ready afterwards. Raises BundleError."""
        settings = self.settings
        opener = Opener(open_model, settings.verify_bundles, settings.intra_op_threads, settings.resident_records)
        self.served = Served(self.folders, opener, self._recommender, self.metrics, self.block_lists)
        await self.served.open()
        await asyncio.to_thread(settle)
        self.lifecycle.ready()

    def _recommender(self, endpoint: Endpoint, bundle: OpenBundle) -> Recommender:
        model, settings = bundle.model, self.settings
        return Recommender(
            bundle,
            self.queue,
            self._vectors_of(model.encoder),
            Ranker(model, self.queue, settings.max_rank_batch),
            image_reserve_seconds=settings.image_reserve_milliseconds / 1000,
            distinct_words=endpoint == "bid-queries",
        )

    def _vectors_of(self, encoder: Encoder) -> Vectors:
        """One for all bundles that share an encoder: what one endpoint waits for, the other does not compute again."""
        vectors = self._vectors.get(id(encoder))
        if vectors is None:
            limits = _vector_limits(self.settings)
            vectors = Vectors(encoder, self.queue, self.cache, self.fetcher, self.decoder, limits)
            self._vectors[id(encoder)] = vectors
        return vectors

    async def aclose(self) -> None:
        """Answer whoever is left, then let go of threads and connections."""
        self.lifecycle.stop()
        await self.queue.aclose(grace_seconds=1.0)
        self.decoder.close()
        await asyncio.gather(self.fetcher.aclose(), self.cache.aclose(), return_exceptions=True)


def build(settings: Settings) -> Parts:
    """The parts, before any bundle is open. Raises SettingsError."""
    metrics, lifecycle = Metrics(), Lifecycle()
    threads = settings.worker_threads or max(1, usable_cores() // settings.intra_op_threads)
    longest_batch = settings.longest_batch_milliseconds / 1000
    queue = BatchQueue(threads, settings.max_waiting_items, metrics.observe_batch, longest_batch)
    near, client = MemoryCache(settings.cache_bytes), _redis_client(settings)
    metrics.queue_items.set_function(lambda: queue.waiting_items)
    metrics.cache_bytes.set_function(lambda: near.used_bytes)
    metrics.ready.set_function(lambda: float(lifecycle.phase.value == "ready"))
    fetcher = Fetcher(_url_policy(settings), _fetch_limits(settings))
    metrics.breaker_open.labels("picture_hosts").set_function(fetcher.hosts_left_alone)
    if client is not None:
        metrics.breaker_open.labels("redis").set_function(lambda: float(client.breaker.is_open))
    return Parts(
        settings=settings,
        lifecycle=lifecycle,
        metrics=metrics,
        keys=read_keys(settings.read_api_keys()),
        rate_limiter=RateLimiter(client),
        queue=queue,
        cache=near if client is None else LayeredCache(near, RedisCache(client, settings.redis_ttl_seconds)),
        fetcher=fetcher,
        decoder=Decoder(
            settings.decode_threads or threads,
            settings.decode_budget_pixels,
            ImageLimits(max_pixels=settings.max_image_pixels),
        ),
        block_lists=_block_lists(settings, client),
    )


def _redis_client(settings: Settings) -> RedisClient | None:
    """One for all that is shared: a Redis that is down is found out once."""
    url = settings.read_redis_url()
    if url is None:
        return None
    try:
        return RedisClient(url, settings.redis_timeout_milliseconds / 1000)
    except ValueError:
        # The library's own text shows the URL, and with it the password.
        raise SettingsError("redis_url must look like redis://[:PASSWORD@]HOST:6379/0, or rediss:// for TLS") from None


def _block_lists(settings: Settings, client: RedisClient | None) -> dict[Endpoint, BlockList]:
    sources: dict[Endpoint, BlockSource | None] = {}
    if settings.recommend_bundle is not None:
        sources["recommend"] = block_source(settings.recommend_block_file, settings.recommend_block_set, client)
    if settings.bid_queries_bundle is not None:
        sources["bid-queries"] = block_source(settings.bid_queries_block_file, settings.bid_queries_block_set, client)
    return {endpoint: BlockList(source) for endpoint, source in sources.items() if source is not None}


def _url_policy(settings: Settings) -> UrlPolicy:
    return UrlPolicy(
        allow_http=settings.fetch_allow_http,
        ports=frozenset(settings.fetch_ports),
        allowed_hosts=settings.fetch_allowed_hosts,
        trusted_origins=frozenset(settings.fetch_trusted_origins),
    )


def _fetch_limits(settings: Settings) -> FetchLimits:
    return FetchLimits(
        connect_seconds=settings.fetch_connect_seconds,
        first_byte_seconds=settings.fetch_first_byte_seconds,
        total_seconds=settings.fetch_total_seconds,
        min_bytes_per_second=settings.fetch_min_bytes_per_second,
        max_bytes=settings.max_image_bytes,
        max_fetches=settings.max_fetches,
        max_fetches_per_host=settings.max_fetches_per_host,
    )


def _vector_limits(settings: Settings) -> VectorLimits:
    return VectorLimits(
        url_fresh_seconds=settings.url_fresh_seconds,
        url_failed_seconds=settings.url_failed_seconds,
        embedding_ttl_seconds=float(settings.redis_ttl_seconds),
        max_image_bytes=settings.max_image_bytes,
        max_title_batch=settings.max_title_batch,
        max_image_batch=settings.max_image_batch,
        shared=settings.read_redis_url() is not None,
    )
