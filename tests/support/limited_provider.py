"""A provider over HTTP that takes so many calls at once, or in a time, and refuses the others as GigaChat does."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque

from tests.support.services import Exchange


class LimitedProvider:
    """Answers each call after `seconds`; give it to a Service as its answer. Thread-safe."""

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
        self.most_at_once = self.taken = self.refused = 0
        self.taken_of: Counter[str] = Counter()
        self._busy = 0
        self._lately: deque[float] = deque()
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.headers["X-Request-Id"]
        if not self._take(request):
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            exchange.reply(429, b"{}", headers)
            return
        try:
            exchange.pause(self.seconds)
            exchange.reply(200, json.dumps({"answered": request}).encode())
        finally:
            with self._lock:
                self._busy -= 1

    def _take(self, request: str) -> bool:
        now = time.monotonic()
        with self._lock:
            while self.per_time and self._lately and self._lately[0] <= now - self.per_time[1]:
                self._lately.popleft()
            full = self.streams is not None and self._busy >= self.streams
            used_up = self.per_time is not None and len(self._lately) >= self.per_time[0]
            if self.down or full or used_up or request in self.poisoned:
                self.refused += 1
                return False
            self._busy += 1
            self._lately.append(now)
            self.most_at_once = max(self.most_at_once, self._busy)
            self.taken += 1
            self.taken_of[request] += 1
            return True
