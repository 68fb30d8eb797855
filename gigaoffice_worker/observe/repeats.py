"""Lines that repeat one cause: the first ones are written, then one every few seconds, and always their number."""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

LEFT_OUT = "Repeated messages left out"

_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
_LEVELS = {"warning": logging.WARNING, "error": logging.ERROR}

Cause = tuple[str, ...]


class Suppressed(NamedTuple):
    """Lines of one cause that were left out; without a cause they are of many. `level` is that of the newest one."""

    cause: Cause
    lines: int
    level: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float  # when, in the caller's seconds
    suppressed: int = 0
    level: int = logging.INFO

    def take(self, now: float, *, burst: float, per_second: float) -> bool:
        self.tokens = min(burst, self.tokens + max(0.0, now - self.filled) * per_second)
        self.filled = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def leave_out(self, level: int) -> None:
        self.suppressed += 1
        self.level = level


class RateLimiter:
    """A token bucket for each cause: `burst` lines at once, then one every `interval` seconds.

    The first line of a cause always passes, unless dozens of causes are new: then they are data in disguise (a message
    put together before it was logged) and share one bucket. At most `size` causes are remembered.
    """

    def __init__(self, *, burst: int = 3, interval: float = 10.0, new_burst: int = 50, size: int = 256) -> None:
        self._burst = float(burst)
        self._per_second = 1.0 / interval
        self._new_burst = float(new_burst)
        self._new = _Bucket(tokens=float(new_burst), filled=0.0)
        self._size = size
        self._buckets: OrderedDict[Cause, _Bucket] = OrderedDict()
        self._forgotten: list[Suppressed] = []
        self._swept = 0.0

    def admit(self, cause: Cause, now: float, level: int = logging.INFO) -> int | None:
        """Return how many lines like this one were left out before it, or None when it is to be left out itself."""
        bucket = self._buckets.get(cause)
        if bucket is None:
            if not self._new.take(now, burst=self._new_burst, per_second=1.0):
                self._new.leave_out(level)
                return None
            bucket = self._remember(cause, now)
        self._buckets.move_to_end(cause)
        if not bucket.take(now, burst=self._burst, per_second=self._per_second):
            bucket.leave_out(level)
            return None
        suppressed, bucket.suppressed = bucket.suppressed, 0
        return suppressed

    def sweep(self, now: float, *, idle: float = 60.0) -> list[Suppressed]:
        """Return, at most every `idle` seconds, what was left out of causes that did not come again."""
        if now - self._swept < idle:
            return []
        self._swept = now
        found, self._forgotten = self._forgotten, []
        for cause, bucket in list(self._buckets.items()):
            if bucket.suppressed and now - bucket.filled >= idle:
                found.append(Suppressed(cause, bucket.suppressed, bucket.level))
                bucket.suppressed = 0
        if self._new.suppressed:
            found.append(Suppressed((), self._new.suppressed, self._new.level))
            self._new.suppressed = 0
        return found

    def _remember(self, cause: Cause, now: float) -> _Bucket:
        if len(self._buckets) >= self._size:
            forgotten, oldest = self._buckets.popitem(last=False)
            if oldest.suppressed and len(self._forgotten) < self._size:
                self._forgotten.append(Suppressed(forgotten, oldest.suppressed, oldest.level))
        return self._buckets.setdefault(cause, _Bucket(tokens=self._burst, filled=now))


def template(message: str) -> str:
    """Return a message without what differs from one of its kind to the next: its numbers."""
    return _NUMBERS.sub("#", message[:300])


class OwnRepeats:
    """Our own warnings and errors, limited by (event, error type, place), or by topic and partition without an error.

    2,000 records that fail alike are one cause, a hundred partitions that each lost their position are a hundred.
    Lines with a stack are never left out: there is one for each thread.
    """

    def __init__(self, emit: Callable[[str, str, Mapping[str, object], float], None]) -> None:
        self._emit = emit
        self._limiter = RateLimiter(burst=10, interval=10.0, new_burst=500, size=1024)
        # Re-entrant, because the garbage collector can run a finalizer that logs while this very lock is held.
        self._lock = threading.RLock()

    def admit(self, level: str, event: object, facts: Mapping[str, object], now: float) -> int | None:
        """Return how many lines of this cause were left out before this one, None when it is to be left out itself."""
        number = _LEVELS.get(level)
        if number is None or "stack" in facts:
            return 0
        with self._lock:
            self.tell(now)
            return self._limiter.admit(_cause(event, facts), now, number)

    def tell(self, now: float, *, idle: float = 60.0) -> None:
        """Say what was left out of causes that did not come again for `idle` seconds, at most so often."""
        with self._lock:
            for old in self._limiter.sweep(now, idle=idle):
                event, error_type, at, topic, partition = old.cause or ("", "", "", "", "")
                known = {"of": event, "error_type": error_type, "at": at, "topic": topic, "partition": partition}
                facts = {name: value for name, value in known.items() if value}
                level = "error" if old.level >= logging.ERROR else "warning"
                self._emit(level, LEFT_OUT, {**facts, "suppressed": old.lines}, now)


def _cause(event: object, facts: Mapping[str, object]) -> Cause:
    raised = facts.get("exc_info")
    error_type = facts.get("error_type") or (type(raised).__name__ if isinstance(raised, BaseException) else None)
    at = facts.get("at")
    named = error_type is not None or at is not None
    topic, partition = (None, None) if named else (facts.get("topic"), facts.get("partition"))
    return tuple("" if each is None else str(each)[:200] for each in (event, error_type, at, topic, partition))
