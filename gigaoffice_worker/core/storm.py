"""The storm guard: when nearly everything fails alike, intake stops, and one request at a time tries."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

from gigaoffice_worker.core.work import Work

_WINDOW = 60.0
_MOST_REMEMBERED: Final = 10_000
"""So many requests, tenants, keys and partitions are known to have been tried: those of the last day, about."""


class Probes:
    """The requests that try, one at a time, whether the provider works again: each time another one.

    A request that has not probed yet is preferred, then one of a tenant, of a key and of a partition tried less often.
    Among equals chance decides: if most of what is in hand is good, a good one will soon be found, however many bad
    ones are older.
    """

    def __init__(self) -> None:
        self._running: Work | None = None
        self._next_at = 0.0
        self.failures = 0
        # How often each request, tenant, key and partition has been tried, the one tried last at the end. By hashes,
        # because these keep nothing in memory.
        self._tried: dict[int | None, int] = {}

    def __contains__(self, work: Work) -> bool:
        """Say whether a request probes, or has done so: its answer may come late."""
        return hash(work.record.source) in self._tried

    @property
    def next_at(self) -> float:
        """When the next one may begin: infinity while one runs."""
        return self._next_at if self._running is None else math.inf

    def preference(self, work: Work) -> Any:
        times = [self._tried.get(each, 0) for each in _hashes(work)]
        return times, random.random()  # noqa: S311  # no secret

    def begin(self, work: Work) -> None:
        self._running = work
        for each in _hashes(work):
            if each is not None:
                self._tried[each] = self._tried.pop(each, 0) + 1
        while len(self._tried) > _MOST_REMEMBERED:
            del self._tried[next(iter(self._tried))]

    def failed(self, work: Work, next_at: float) -> None:
        if work is self._running:
            self._running = None
            self._next_at = next_at
            self.failures += 1

    def forget(self, work: Work) -> None:
        if work is self._running:
            self._running = None


def _hashes(work: Work) -> tuple[int, int, int | None, int]:
    """Return what tells a request, its tenant, its key and its partition from others; None for no key."""
    record, lane = work.record, work.lane
    partition = (record.topic, record.partition)
    key = hash((partition, lane[1])) if lane is not None else None
    return hash(record.source), hash(work.tenant), key, hash(partition)


@dataclass(frozen=True, slots=True)
class StormLimits:
    """From how many finished requests on, and at which share of one error, the guard trips."""

    enabled: bool = True
    min_requests: int = 20
    ratio: float = 0.8


class StormGuard:
    """Notices that nearly everything ends in the dead letter queue for one reason, and stops intake.

    Without it a broken model would turn a whole backlog into dead letters. It trips when, of the requests finished in
    the last minute, at least `ratio` ran out of attempts with one error type. Then one request at a time probes; the
    first one that is answered or rejected opens intake again.
    """

    def __init__(self, limits: StormLimits) -> None:
        self._limits = limits
        # One bucket a second, so that a fast handler's minute costs no more memory than a slow one's.
        self._buckets: deque[_Bucket] = deque()
        self._newest_ends = -math.inf
        self._total = 0
        self._errors: Counter[str] = Counter()
        self.reason: str | None = None
        """The error type that tripped the guard; None while intake is open."""
        self.tripped_at = 0.0

    def finished(self, now: float, error_type: str | None) -> bool:
        """Note a finished request, with its error type if it ran out of attempts; True when that trips the guard."""
        if not self._limits.enabled:
            return False
        if now >= self._newest_ends:
            self._begin_second(now)
        newest = self._buckets[-1]
        newest.total += 1
        self._total += 1
        if error_type is None:
            return False
        newest.errors[error_type] += 1
        self._errors[error_type] += 1
        if self.reason is not None or self._total < self._limits.min_requests:
            return False
        worst, count = self._errors.most_common(1)[0]
        # Divided, not multiplied: 0.55 of 20 would come out a little above 11.
        if count / self._total < self._limits.ratio:
            return False
        self.reason = worst
        self.tripped_at = now
        return True

    def open(self) -> None:
        """Open intake: a probing request was answered or rejected. What was seen before counts no more."""
        self.reason = None
        self._buckets.clear()
        self._newest_ends = -math.inf
        self._total = 0
        self._errors.clear()

    def _begin_second(self, now: float) -> None:
        """Open a bucket for this second, and drop those that are older than a minute."""
        self._buckets.append(_Bucket(int(now)))
        self._newest_ends = int(now) + 1.0
        while self._buckets[0].second <= now - _WINDOW:
            bucket = self._buckets.popleft()
            self._total -= bucket.total
            self._errors -= bucket.errors


@dataclass(slots=True)
class _Bucket:
    second: int
    total: int = 0
    errors: Counter[str] = field(default_factory=Counter)
