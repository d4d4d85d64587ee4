"""What the service tells about itself: log lines, metrics, timings of a request.

Knows neither titles nor URLs, so that none can reach a log or a label.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
import structlog
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest

from service import tallies
from service.log_writer import LogWriter

# OpenTelemetry's advice for durations in seconds, and two finer steps for stages.
_OTEL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_STAGE_BUCKETS = (0.001, 0.0025, *_OTEL_BUCKETS)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_PROBABILITY_BUCKETS = tuple(tenth / 10 for tenth in range(1, 11))

HEADERS = "headers"
"""In a request's state: its headers by lower-case name, of several alike the first"""
RECORD = "record"
"""In a request's state: a call that records more of it, for when its answer has been sent"""


@dataclass(slots=True)
class Timings:
    """Seconds a request spent in each step; of steps that run side by side, the longest counts."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def add(self, step: str, seconds: float) -> None:
        """Note one run of a step."""
        self.seconds[step] = max(seconds, self.seconds.get(step, 0.0))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block that ends well; one that is cut short did not happen."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def milliseconds(self) -> dict[str, float]:
        """For the answer; total is up to now."""
        rounded = {step: round(seconds * 1000, 2) for step, seconds in self.seconds.items()}
        return {**rounded, "total": round((time.perf_counter() - self.began) * 1000, 2)}


class HeldBytes(Protocol):
    """How a part of a bundle is held."""

    @property
    def resident_bytes(self) -> int: ...
    @property
    def mapped_bytes(self) -> int: ...


class ShownBundle(Protocol):
    """What metrics say of a bundle."""

    @property
    def name(self) -> str: ...
    @property
    def bundle_id(self) -> str: ...
    @property
    def encoder_id(self) -> str: ...

    def memory(self) -> Mapping[str, HeldBytes]: ...


class Metrics:
    """Prometheus metrics in a registry of their own, so that two apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_work()
        self._add_outcomes()
        self._add_bundles()
        self.ready = self._gauge("mufin_ready", "1 while /readyz is 200.")

    def _add_work(self) -> None:
        self.request_seconds = self._histogram(
            "mufin_request_duration_seconds", "From the first byte of a request to the last of its answer.",
            _STAGE_BUCKETS, "route", "status",
        )  # fmt: skip
        self.stage_seconds = self._histogram(
            "mufin_stage_duration_seconds", "Time of a request's step, waiting included.", _STAGE_BUCKETS, "stage"
        )
        self.batch_seconds = self._histogram(
            "mufin_batch_duration_seconds", "Time of one model call.", _STAGE_BUCKETS, "stage"
        )
        self.batch_size = self._histogram("mufin_batch_size", "Items of one model call.", _BATCH_BUCKETS, "stage")
        self.queue_items = self._gauge("mufin_queue_items", "Items that wait for a worker.")
        self.requests_in_flight = self._gauge("mufin_requests_in_flight", "Requests being answered.")
        self.cache_bytes = self._gauge("mufin_cache_bytes", "Bytes in the in-process cache.")
        self.breaker_open = self._gauge(
            "mufin_breaker_open", "Open breakers: redis 0 or 1, picture_hosts how many.", "name"
        )

    def _add_outcomes(self) -> None:
        self.image_fetches = self._counter("mufin_image_fetch", "Images by what became of them.", "outcome")
        self.cache_requests = self._counter("mufin_cache_requests", "Look-ups.", "kind", "outcome")
        self.degraded = self._counter("mufin_degraded", "Answers with less than was asked for.", "reason")
        self.shed = self._counter("mufin_shed", "Requests refused because of load.", "reason")
        self.top_probability = self._histogram(
            "mufin_top_probability", "Probability of an answer's first label.", _PROBABILITY_BUCKETS, "endpoint"
        )
        self.products = self._counter(
            "mufin_products", "Answered products by what they could be ranked by.", "endpoint", "modality"
        )
        self.title_tokens = self._counter(
            "mufin_title_tokens", "Tokens of titles that were encoded.", "endpoint", "known"
        )

    def _add_bundles(self) -> None:
        self.bundle_info = self._gauge(
            "mufin_bundle_info", "1 for every bundle that is served.", "endpoint", "name", "bundle_id", "encoder_id"
        )
        self.bundle_swaps = self._counter(
            "mufin_bundle_swaps", "Bundles that were to be replaced.", "endpoint", "outcome"
        )
        self.bundles_in_memory = self._gauge(
            "mufin_bundles_in_memory",
            "Bundles that are open: served, or still answering requests that began before a swap.",
        )
        self.bundle_bytes = self._gauge(
            "mufin_bundle_bytes",
            "Bytes of a served bundle's parts by how they are held: resident, or mapped from a file.",
            "endpoint", "part", "held",
        )  # fmt: skip
        self.blocked_labels = self._gauge("mufin_blocked_labels", "Labels that the block list takes out.", "endpoint")
        self.block_list_age = self._gauge(
            "mufin_block_list_age_seconds", "Since the block list was last read; +Inf: never.", "endpoint"
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> tallies.Histogram:
        return tallies.Histogram(name, text, bounds, labels, self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> tallies.Counter:
        return tallies.Counter(name, text, labels, self.registry)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def show_bundle(self, endpoint: str, bundle: ShownBundle) -> None:
        """What is served behind an endpoint from now on."""
        for gauge in (self.bundle_info, self.bundle_bytes):
            gauge.remove_by_labels({"endpoint": endpoint})
        self.bundle_info.labels(endpoint, bundle.name, bundle.bundle_id, bundle.encoder_id).set(1)
        for part, use in bundle.memory().items():
            self.bundle_bytes.labels(endpoint, part, "resident").set(use.resident_bytes)
            self.bundle_bytes.labels(endpoint, part, "mapped").set(use.mapped_bytes)

    def observe_answer(self, endpoint: str, answer: Mapping[str, Any], title_tokens: tuple[int, int]) -> None:
        """What an answer says of the model's health. ``title_tokens``: known, unknown."""
        used = answer["modalities_used"]
        self.products.add(endpoint, "both" if len(used) > 1 else used[0])
        first = answer["results"][0]["probability"] if answer["results"] else None
        if first is not None:
            self.top_probability.observe(first, endpoint)
        for known, count in zip(("true", "false"), title_tokens, strict=True):
            if count:
                self.title_tokens.add(endpoint, known, amount=count)

    def observe_batch(self, stage: str, items: int, seconds: float) -> None:
        """Told by the queue of every model call."""
        self.batch_size.observe(items, stage)
        self.batch_seconds.observe(seconds, stage)


def configure_logging(level: str) -> None:
    """One JSON line an event on standard error, the server's own messages included."""
    global _logger
    lines = LogWriter(sys.stderr)
    structlog.configure(
        # Straight to the writer: the way through the standard library's loggers costs each request as much again.
        processors=[_stamp, structlog.processors.JSONRenderer(_json)],
        logger_factory=structlog.WriteLoggerFactory(lines),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=False,
    )
    _logger = structlog.get_logger("mufin").bind()
    handler: logging.Handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_stamp],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Their lines hold URLs.
    for name in ("httpcore", "httpx", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _stamp(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Level, time, and an exception's text: what structlog has a processor each for, in one call a line."""
    event["level"], event["timestamp"] = level, datetime.now(UTC).isoformat().removesuffix("+00:00") + "Z"
    return structlog.processors.format_exc_info(None, level, event) if "exc_info" in event else event


def _json(event: Any, default: Callable[[Any], Any] | None = None) -> str:
    try:
        return orjson.dumps(event, default=default).decode()
    except TypeError:  # half a surrogate pair, an integer of more than 64 bits: no reason to lose the line
        return json.dumps(event, default=default)


def is_sampled(request_id: str, share: float) -> bool:
    """Whether the answers of this request belong to the share that is logged; the same in every process."""
    return share > 0 and zlib.crc32(request_id.encode()) < share * 2**32


def log_answer(endpoint: str, answer: Mapping[str, Any], request_id: str, item: int | None) -> None:
    """One line an answer for evaluation offline: what was shown, best first. No titles, no URLs.

    ``item``: place in a batch.
    """
    results = answer["results"]
    get_logger().info(
        "answer", request_id=request_id, **({} if item is None else {"item": item}), endpoint=endpoint, bundle_id=answer["bundle"]["id"], stage=answer["stage"],
        modalities=answer["modalities_used"], labels=[own["id"] for own in results],
        probabilities=[own["probability"] for own in results],
    )  # fmt: skip


Logger = structlog.stdlib.BoundLogger
_logger: Logger | None = None


def get_logger() -> Logger:
    """The service's logger, made once where lines are written: structlog makes one anew at every first use."""
    return structlog.get_logger("mufin") if _logger is None else _logger
