"""A histogram of durations that is cheap to count in."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 180, 300)
# So many durations are sorted into their buckets at once.
_SORT_FROM = 256


class Durations(Collector):
    """A histogram of seconds, at a fifth of what the library's own costs: several are counted for each request.

    What is observed is only laid down, without a lock, and sorted into the buckets by and by or when somebody asks.
    """

    def __init__(self, name: str, meaning: str, bounds: Sequence[float] = _SECONDS) -> None:
        self._name = name
        self._meaning = meaning
        self._bounds = bounds
        self._observed: deque[float] = deque()
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._observed.append(seconds)
        if len(self._observed) >= _SORT_FROM:
            self.sorted()

    def observe_all(self, seconds: Iterable[float]) -> None:
        """Count several durations."""
        self._observed.extend(seconds)
        self.sorted()

    def sorted(self) -> tuple[list[int], float]:
        """Return how many durations are in each bucket, and the sum of all."""
        bounds, counts, observed = self._bounds, self._counts, self._observed
        with self._lock:
            for _ in range(len(observed)):
                each = observed.popleft()
                counts[bisect_left(bounds, each)] += 1
                self._sum += each
            return list(counts), self._sum

    def count_and_sum(self) -> tuple[int, float]:
        """Return how many durations were counted, and their sum in seconds."""
        counts, total_seconds = self.sorted()
        return sum(counts), total_seconds

    def describe(self) -> Iterable[Metric]:
        """Name the metric, so that a second one of its name is refused."""
        yield HistogramMetricFamily(self._name, self._meaning)

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram as it is now."""
        yield _histogram(self._name, self._meaning, [self.sorted()], self._bounds)


class LabelledDurations(Collector):
    """A histogram of seconds, and a counter that tells apart by a label what was counted in it."""

    def __init__(self, histogram: tuple[str, str], counter: tuple[str, str], label: str, values: Iterable[str]) -> None:
        """`histogram` and `counter` are name and meaning."""
        self._histogram = histogram
        self._counter = counter
        self._label = label
        self._parts = {value: Durations(*histogram) for value in values}

    def observe(self, value: str, seconds: float) -> None:
        """Count one duration under a value of the label."""
        self._parts[value].observe(seconds)

    def count_and_sum(self) -> tuple[int, float]:
        """Return how many durations were counted, and their sum in seconds."""
        counts, seconds = zip(*(part.count_and_sum() for part in self._parts.values()), strict=True)
        return sum(counts), sum(seconds)

    def describe(self) -> Iterable[Metric]:
        """Name both metrics, so that a second one of their names is refused."""
        yield HistogramMetricFamily(*self._histogram)
        yield CounterMetricFamily(*self._counter)

    def collect(self) -> Iterator[Metric]:
        """Yield both as they are now."""
        sorted_parts = {value: part.sorted() for value, part in self._parts.items()}
        counter = CounterMetricFamily(*self._counter, labels=[self._label])
        for value, (counts, _) in sorted_parts.items():
            counter.add_metric([value], sum(counts))
        yield counter
        yield _histogram(*self._histogram, sorted_parts.values())


def _histogram(
    name: str, meaning: str, parts: Iterable[tuple[list[int], float]], bounds: Sequence[float] = _SECONDS
) -> Metric:
    """Return one histogram of what was sorted in several parts."""
    every_counts, every_seconds = zip(*parts, strict=True)
    counts = map(sum, zip(*every_counts, strict=True))
    edges = [*(str(float(bound)) for bound in bounds), "+Inf"]
    buckets = list(zip(edges, accumulate(counts), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=sum(every_seconds))
