"""A provider over HTTP that takes so many calls at once, or in a time, and refuses the others as GigaChat does."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from itertools import accumulate
from typing import NamedTuple

from tests.support.services import Exchange


class Call(NamedTuple):
    """A call that was taken: when it began and ended, in seconds of the monotonic clock."""

    began: float
    ended: float


class LimitedProvider:
    """Answers each call after `seconds`; give it to a Service as its answer. Thread-safe.

    `streams`, `retry_after`, `down` (every call is refused) and `refuses_with` may be changed at any time.
    """

    def __init__(
        self,
        *,
        streams: int | None = None,
        per_time: tuple[int, float] | None = None,
        seconds: float = 0.2,
        retry_after: str | None = None,
        poisoned: frozenset[str] = frozenset(),
    ) -> None:
        self.streams = streams
        self.per_time = per_time
        self.seconds = seconds
        self.retry_after = retry_after
        self.poisoned = poisoned
        self.down = False
        self.refuses_with = 429
        self.most_at_once = self.taken = 0
        self.calls: list[Call] = []
        self.refusals: list[float] = []
        self.taken_of: Counter[str] = Counter()
        self._busy = 0
        self._lately: deque[float] = deque()
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.headers["X-Request-Id"]
        if not self._take(request):
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            exchange.reply(self.refuses_with, b"{}", headers)
            return
        began = time.monotonic()
        try:
            exchange.pause(self.seconds)
            exchange.reply(200, json.dumps({"answered": request}).encode())
        finally:
            with self._lock:
                self._busy -= 1
                self.calls.append(Call(began, time.monotonic()))

    @property
    def refused(self) -> int:
        """How many calls were refused."""
        return len(self.refusals)

    @property
    def began(self) -> float:
        """When the first call came that was taken."""
        return min(call.began for call in self.calls)

    @property
    def seconds_taken(self) -> float:
        """Seconds from the first call that was taken to the end of the last one."""
        return max(call.ended for call in self.calls) - self.began

    def busy_seconds(self, since: float, until: float) -> float:
        """Return the seconds of all calls together between two moments."""
        return sum(max(0.0, min(call.ended, until) - max(call.began, since)) for call in self.calls)

    def longest_above(self, limit: int) -> float:
        """Return the longest time, in seconds, for which more than `limit` calls ran at once."""
        changes = sorted([(call.began, 1) for call in self.calls] + [(call.ended, -1) for call in self.calls])
        running = accumulate(change for _, change in changes)
        longest, since = 0.0, None
        for (at, _), count in zip(changes, running, strict=True):
            if count > limit:
                since = at if since is None else since
                longest = max(longest, at - since)
            elif since is not None:
                longest, since = max(longest, at - since), None
        return longest

    def _take(self, request: str) -> bool:
        now = time.monotonic()
        with self._lock:
            while self.per_time and self._lately and self._lately[0] <= now - self.per_time[1]:
                self._lately.popleft()
            full = self.streams is not None and self._busy >= self.streams
            used_up = self.per_time is not None and len(self._lately) >= self.per_time[0]
            if self.down or full or used_up or request in self.poisoned:
                self.refusals.append(now)
                return False
            self._busy += 1
            self._lately.append(now)
            self.most_at_once = max(self.most_at_once, self._busy)
            self.taken += 1
            self.taken_of[request] += 1
            return True
