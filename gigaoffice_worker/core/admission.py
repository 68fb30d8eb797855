"""May an attempt start, and if not, when: holds, the lease, the shared gate and the storm guard."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.work import Work

_WINDOW = 60.0
_LET_IN_EVERY, _LET_IN_FOR = 5.0, 1.0


class Admission:
    """Says for every reason there is whether an attempt may start, and if not, when it is worth asking again.

    A *hold* says no until it is released (a rebalance, the drain, delivery that is stuck). The *lease* says no once the
    session may have lapsed, because another member may then own what is in hand. The *gate* says no after a handler
    said that every call would fail now. The *storm guard* lets one request at a time through, the probe.

    Not thread-safe: the dispatcher's lock guards it. What is replaced and never changed may be read without it.
    """

    def __init__(self, gate: Gate, guard: StormGuard) -> None:
        self.gate = gate
        self.guard = guard
        # Replaced and never changed, so that observers may read it without the lock.
        self._holds: frozenset[str] = frozenset()
        self._leased_until = math.inf
        self.probes = Probes()

    def opens_at(self, now: float) -> float:
        """Return when an attempt may start: at most `now` for at once, infinity where something must happen first."""
        if self._holds or now > self._leased_until:
            return math.inf
        if self.guard.reason is None:
            return self.gate.until
        return max(self.gate.until, self.probes.next_at)

    @property
    def preference(self) -> Callable[[Work], Any] | None:
        """How to choose what starts next, the least first; None for the usual order."""
        return self.probes.preference if self.guard.reason is not None else None

    @property
    def probing(self) -> bool:
        """Whether only a probe may start."""
        return self.guard.reason is not None

    def started(self, work: Work) -> None:
        """Note that an attempt of `work` begins."""
        if self.guard.reason is not None:
            self.probes.begin(work)

    def intake_stopped(self, now: float) -> str | None:
        """Return the error type for which the storm guard stops intake; None while it does not.

        For one second in five it lets some in: what is in hand may be what fails, and the others are still to be read.
        """
        if self.guard.reason is None or (now - self.guard.tripped_at) % _LET_IN_EVERY >= _LET_IN_EVERY - _LET_IN_FOR:
            return None
        return self.guard.reason

    # Holds and the lease

    def hold(self, reason: str) -> None:
        """Let no attempt start until `release` is called with the same reason."""
        self._holds |= {reason}

    def release(self, reason: str) -> bool:
        """End a hold; False when there was none."""
        held = reason in self._holds
        self._holds -= {reason}
        return held

    def lease(self, until: float, now: float) -> bool:
        """Let attempts start until `until`; True when the lease before had run out."""
        expired = now > self._leased_until
        self._leased_until = until
        return expired

    def held(self, now: float) -> frozenset[str]:
        """Return what lets no attempt start until something happens: holds, and "session" for a lease that ran out."""
        return self._holds | {"session"} if now > self._leased_until else self._holds

    # How attempts ended

    def passed(self, work: Work, now: float) -> None:
        """Note a request that was answered or rejected: the provider works."""
        self.gate.passed()
        if self.guard.reason is not None and work in self.probes:
            self.guard.open()
            self.probes = Probes()
        self.guard.finished(now, None)

    def invalid(self, work: Work, now: float) -> None:
        """Note a value that is no request: no handler was called, so it tells nothing of the provider."""
        self.forget(work)
        self.guard.finished(now, None)

    def failed_in_storm(self, work: Work, next_at: float) -> None:
        """Note an attempt that failed in a storm; if it was the probe, the next one begins at `next_at`."""
        self.probes.failed(work, next_at)

    def exhausted(self, now: float, error_type: str) -> None:
        """Note a request that our side has failed for good."""
        self.guard.finished(now, error_type)

    def forget(self, work: Work) -> None:
        """Let another request probe, if `work` does: it will tell nothing."""
        self.probes.forget(work)


class Probes:
    """The requests that try, one at a time, whether the provider works again: each time another one.

    A request that has not probed yet is preferred, then one of a key and then of a partition that has been tried less.
    Among equals chance decides: if most of what is in hand is good, a good one will soon be found, however many bad
    ones are older.
    """

    def __init__(self) -> None:
        self._running: Work | None = None
        self._next_at = 0.0
        self.failures = 0
        # How often each request, key and partition has been tried.
        self._tried: Counter[object] = Counter()

    def __contains__(self, work: Work) -> bool:
        """Say whether a request probes, or has done so: its answer may come late."""
        return work in self._tried

    @property
    def next_at(self) -> float:
        """When the next one may begin: infinity while one runs."""
        return self._next_at if self._running is None else math.inf

    def preference(self, work: Work) -> Any:
        tried = self._tried
        of_its_key = tried[work.lane] if work.lane is not None else 0
        return tried[work], of_its_key, tried[work.assignment], random.random()  # noqa: S311  # chance, not secrecy

    def begin(self, work: Work) -> None:
        self._running = work
        self._tried.update(kind for kind in (work, work.lane, work.assignment) if kind is not None)

    def failed(self, work: Work, next_at: float) -> None:
        if work is self._running:
            self._running = None
            self._next_at = next_at
            self.failures += 1

    def forget(self, work: Work) -> None:
        if work is self._running:
            self._running = None


class Gate:
    """One gate for all handler calls, closed when a handler says that every call would fail now (HTTP 429, 503)."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._until = 0.0
        self._series = 0
        self._shut_since = 0.0
        self._reason: str | None = None

    @property
    def until(self) -> float:
        """When the gate opens, in seconds of the monotonic clock; in the past when it is open."""
        return self._until

    def closed(self, now: float) -> bool:
        return now < self._until

    def shut_for(self, now: float) -> tuple[str, float] | None:
        """Return since how many seconds no call got through, and the error type why; None while calls do."""
        return (self._reason, now - self._shut_since) if self._reason is not None else None

    def close(self, now: float, reason: str, retry_after: float | None, random: Callable[[], float]) -> float:
        """Close the gate for `retry_after` seconds (without it: longer each time in a row) and return when it opens.

        `reason` is the type of the error. The opening is jittered, so that several workers don't return to a limited
        service in the same moment.
        """
        # Calls that were running when the gate closed fail for the same reason: they don't lengthen the series.
        if not self.closed(now):
            self._series += 1
        if self._reason is None:
            self._shut_since = now
        self._reason = reason
        wait = retry_after if retry_after is not None else self._policy.ceiling(self._series)
        wait = max(0.0, wait)
        self._until = max(self._until, now + wait + random() * min(1.0, 0.1 * wait + 0.05))
        return self._until

    def passed(self) -> None:
        """Note that a call got through: the next closing starts a new series."""
        self._series = 0
        self._reason = None


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
        self._reason: str | None = None
        self.tripped_at = 0.0

    @property
    def reason(self) -> str | None:
        """The error type that tripped the guard; None while intake is open."""
        return self._reason

    def finished(self, now: float, error_type: str | None) -> bool:
        """Note a finished request, with its error type if it ran out of attempts; True when that trips the guard."""
        if not self._limits.enabled:
            return False
        if now >= self._newest_ends:
            self._begin_second(now)
        self._buckets[-1].add(error_type)
        self._total += 1
        if error_type is None:
            return False
        self._errors[error_type] += 1
        if self._reason is not None or self._total < self._limits.min_requests:
            return False
        worst, count = self._errors.most_common(1)[0]
        # Divided, not multiplied: 0.55 of 20 would come out a little above 11.
        if count / self._total < self._limits.ratio:
            return False
        self._reason = worst
        self.tripped_at = now
        return True

    def open(self) -> None:
        """Open intake: a probing request was answered or rejected. What was seen before counts no more."""
        self._reason = None
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

    def add(self, error_type: str | None) -> None:
        self.total += 1
        if error_type is not None:
            self.errors[error_type] += 1
