"""When a failed request is tried again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter. `delay` and `max_delay` are in seconds; `max_attempts` counts the first."""

    max_attempts: int = 5
    delay: float = 1.0
    max_delay: float = 60.0

    def exhausted(self, attempt: int) -> bool:
        """Say whether attempt number `attempt` (from 1) was the last one."""
        return attempt >= self.max_attempts

    def ceiling(self, attempt: int) -> float:
        """Return the longest delay in seconds after attempt number `attempt`."""
        # 2**64 seconds is beyond any max_delay; the cap keeps the power of a long series from overflowing a float.
        return float(min(self.max_delay, self.delay * 2.0 ** min(attempt - 1, 64)))

    def delay_after(self, attempt: int, random: Callable[[], float], at_least: float | None = None) -> float:
        """Return the seconds to wait after attempt number `attempt`.

        `random` gives numbers in [0, 1). `at_least` is what the handler asked for; the jitter then comes on top,
        so that requests refused together don't come back together.
        """
        jitter = self.ceiling(attempt) * random()
        return jitter if at_least is None else max(0.0, at_least) + min(jitter, 0.1 * max(0.0, at_least) + self.delay)


class Backoff:
    """When the next try is due: later with each failure in a row, up to `most` seconds behind it."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self.failures = 0
        self.due = 0.0

    def failed(self, now: float) -> None:
        """Note a failed try."""
        self.failures += 1
        self.due = now + min(self._most, self._first * 2.0 ** min(self.failures - 1, 10))

    def succeeded(self) -> None:
        """Begin a new series."""
        self.failures = 0
        self.due = 0.0

    def at_once(self) -> None:
        """Wait no longer, in the same series."""
        self.due = 0.0
