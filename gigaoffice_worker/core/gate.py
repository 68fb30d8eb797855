"""The gate that is shut for all handler calls while the provider refuses everything.

Times are seconds of the monotonic clock and arguments. Not thread-safe: the dispatcher's lock guards it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

_LONGEST_WAIT: Final = 8.0
"""The longest that the gate stays shut by our own choice: an outage is noticed to be over that soon."""
_LONGEST_PAUSE: Final = 15.0
"""The longest that a slow pace of the provider's makes it stay shut."""


class Gate:
    """One gate for all handler calls, shut while the provider refuses everything (HTTP 429, 503).

    It opens for one call; the others follow once that was let through. `ceiling` gives the longest wait in seconds
    after so many closings in a row.
    """

    def __init__(self, ceiling: Callable[[int], float]) -> None:
        self._ceiling = ceiling
        self._until = 0.0
        self._series = 0
        self._shut_since = 0.0
        self._reason: str | None = None
        self.half_open = False
        self.probe_at: float | None = None

    @property
    def until(self) -> float:
        """When the gate opens, in seconds of the monotonic clock; in the past when it is open."""
        return self._until

    @property
    def series(self) -> int:
        """How often it was closed in a row."""
        return self._series

    def closed(self, now: float) -> bool:
        return now < self._until

    def shut_for(self, now: float) -> tuple[str, float] | None:
        """Return since how many seconds no call got through, and the error type why; None while calls do."""
        return (self._reason, now - self._shut_since) if self._reason is not None else None

    def close(
        self,
        now: float,
        reason: str,
        retry_after: float | None,
        random: Callable[[], float],
        *,
        at_least: float = 0.0,
    ) -> float:
        """Close the gate for `retry_after` seconds (without it: longer each time in a row) and return when it opens.

        Where what the provider asked for was too short already, it is shut for up to as long again as it was so far.
        `reason` is the type of the error. The opening is jittered, so that several workers don't return to a limited
        service in the same moment.
        """
        # Calls that were running when the gate closed fail for the same reason: they don't lengthen the series.
        if not self.closed(now):
            self._series += 1
            self.half_open, self.probe_at = True, None
        if self._reason is None:
            self._shut_since = now
        self._reason = reason
        own = max(min(_LONGEST_WAIT, self._ceiling(self._series)), min(_LONGEST_PAUSE, at_least))
        wait = own if retry_after is None else max(retry_after, min(own, now - self._shut_since))
        self._until = max(self._until, now + wait + random() * min(1.0, 0.1 * wait + 0.05))
        return self._until

    def started(self, now: float) -> None:
        """Note a call: the first one after the opening is the probe."""
        if self.half_open and self.probe_at is None:
            self.probe_at = now

    def passed(self, began: float = math.inf) -> None:
        """Note that the call that began at `began` got through: the next closing starts a new series."""
        self._series = 0
        self._reason = None
        if self.half_open and self.probe_at is not None and began >= self.probe_at:
            self.half_open, self.probe_at = False, None
