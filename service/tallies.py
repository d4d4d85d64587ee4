"""Counters and histograms of the request path, on Prometheus's page by the library's own collector interface.

The library's take two microseconds and a lock an observation, of which a request makes ten. For one thread: these are told
by the event loop alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]
"""Values, in the order of the names"""


class Counter(Collector):
    """What only grows, by labels."""

    def __init__(self, name: str, text: str, labels: Labels, registry: CollectorRegistry) -> None:
        """``name`` without _total. Raises ValueError for one that the registry has."""
        self.name, self._text, self.label_names = name, text, labels
        self._values: dict[Labels, float] = {}
        registry.register(self)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """That much more."""
        self._values[labels] = self._values.get(labels, 0.0) + amount

    def describe(self) -> Iterator[Metric]:
        """For the registry, which takes no name twice."""
        yield CounterMetricFamily(self.name, self._text, labels=self.label_names)

    def collect(self) -> Iterator[Metric]:
        """For the page."""
        family = CounterMetricFamily(self.name, self._text, labels=self.label_names)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Histogram(Collector):
    """How many observations lie up to each bound, and their sum, by labels."""

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: Labels, registry: CollectorRegistry
    ) -> None:
        """``bounds`` ascending, +Inf left out. Raises ValueError for a name that the registry has."""
        self.name, self._text, self.label_names = name, text, labels
        self._bounds = tuple(float(bound) for bound in bounds)
        self._shown = [*map(floatToGoString, self._bounds), "+Inf"]
        self._counts: dict[Labels, list[int]] = {}
        """Of each interval, the last beyond all bounds"""
        self._sums: dict[Labels, float] = {}
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        """One more; a value on a bound lies up to it."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._shown)
            self._sums[labels] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def describe(self) -> Iterator[Metric]:
        """For the registry, which takes no name twice."""
        yield HistogramMetricFamily(self.name, self._text, labels=self.label_names)

    def collect(self) -> Iterator[Metric]:
        """For the page: each bound with all that lie up to it."""
        family = HistogramMetricFamily(self.name, self._text, labels=self.label_names)
        for labels, counts in self._counts.items():
            upto, buckets = 0, []
            for bound, count in zip(self._shown, counts, strict=True):
                upto += count
                buckets.append((bound, float(upto)))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family
