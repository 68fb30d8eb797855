"""A model of a provider: so many calls at once, or so many in a time, and 429 for what is beyond."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider allows: `streams` calls at once, `number` of them in `window` seconds; None: no such limit."""

    streams: int | None = None
    number: int | None = None
    window: float = 60.0
    retry_after: int | None = None

    def ideal_seconds(self, calls: int, seconds: float) -> float:
        """Return how long so many calls of so many seconds take at least."""
        least = calls * seconds / self.streams if self.streams else seconds
        if self.number:
            # All that a window allows come at its beginning, the last window's as well.
            least = max(least, (calls - 1) // self.number * self.window + seconds)
        return least


class Provider:
    """The model as a server on the loopback interface. It counts what it has taken and refused."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.taken = self.refused = 0
        self._busy = 0
        self._lately: deque[float] = deque()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="provider")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    @property
    def refusals_per_100(self) -> float:
        """How many calls were refused for each hundred that were taken."""
        return 100 * self.refused / max(1, self.taken)

    def begin(self, now: float) -> bool:
        """Take a call at `now`, in seconds of the monotonic clock, or refuse it."""
        with self._lock:
            while self._lately and self._lately[0] <= now - self.limits.window:
                self._lately.popleft()
            full = self.limits.streams is not None and self._busy >= self.limits.streams
            if full or (self.limits.number is not None and len(self._lately) >= self.limits.number):
                self.refused += 1
                return False
            self.taken += 1
            self._busy += 1
            self._lately.append(now)
            return True

    def end(self) -> None:
        """End a call that was taken."""
        with self._lock:
            self._busy -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a connection that finds the queue full tries again after a second
    provider: Provider


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /SECONDS after so many seconds."""

    server: _Server

    def do_GET(self) -> None:
        provider = self.server.provider
        if not provider.begin(time.monotonic()):
            self.send_response(429)
            if provider.limits.retry_after is not None:
                self.send_header("Retry-After", str(provider.limits.retry_after))
            self.end_headers()
            return
        try:
            time.sleep(float(self.path.removeprefix("/")))
        finally:
            provider.end()
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Say nothing: refusals are counted."""
