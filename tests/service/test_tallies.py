"""The page that Prometheus reads says of our counters and histograms what it would say of the library's."""

from __future__ import annotations

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.tallies import Counter, Histogram

BOUNDS = (0.005, 0.5, 1, 2.5)
OBSERVED = [0.0, 0.005, 0.0050001, 0.4, 1.0, 2.0, 2.5, 2.6, 1e9]


def page(registry: CollectorRegistry) -> list[str]:
    """Without the library's moments of creation, which nobody reads."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_the_page_is_the_librarys() -> None:
    """Value by value: bounds belong to their own interval, labels keep their order, text is escaped alike."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter = Counter("asked", "How often.", ("route", "status"), ours)
    histogram = Histogram("seconds", "How long.", BOUNDS, ("stage",), ours)
    model = prometheus_client.Counter("asked", "How often.", ("route", "status"), registry=theirs)
    timed = prometheus_client.Histogram("seconds", "How long.", ("stage",), buckets=BOUNDS, registry=theirs)
    for route, status, amount in (("/a", "200", 1.0), ("/a", "200", 2.5), ('/"b\\', "429", 1.0), ("/a", "500", 3.0)):
        counter.add(route, status, amount=amount)
        model.labels(route, status).inc(amount)
    for value in OBSERVED:
        histogram.observe(value, "encode")
        timed.labels("encode").observe(value)
    histogram.observe(0.3, "rank")
    timed.labels("rank").observe(0.3)
    assert page(ours) == page(theirs)
    assert 'seconds_bucket{le="0.005",stage="encode"} 2.0' in page(ours)


def test_what_was_never_told_is_shown_without_a_value() -> None:
    """As the library does where there are labels: no made-up zero."""
    registry = CollectorRegistry()
    Counter("asked", "How often.", ("route",), registry)
    Histogram("seconds", "How long.", BOUNDS, ("stage",), registry)
    assert [line for line in page(registry) if not line.startswith("#")] == []


def test_no_name_is_taken_twice() -> None:
    """Nor one that a histogram's parts would have."""
    registry = CollectorRegistry()
    Histogram("seconds", "How long.", BOUNDS, ("stage",), registry)
    with pytest.raises(ValueError, match="seconds"):
        Histogram("seconds", "Again.", BOUNDS, ("stage",), registry)
    with pytest.raises(ValueError, match="seconds_count"):
        prometheus_client.Gauge("seconds_count", "Another.", registry=registry)
