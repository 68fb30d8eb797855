"""The newest failures by kind: what the status page shows of a storm without reading the log."""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

KINDS = 10


class Failures:
    """Remembers the ten kinds of failure that came last, each with its number and its newest request.

    A kind is an error's type and the place in the handler's code. Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()

    def note(self, error_type: str, place: str, *, event: str, **facts: object) -> None:
        """Count one failure; `facts` say which request it was: request_id, attempt, topic, partition, offset."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            former = self._kinds.pop((error_type, place), None)
            count = former["count"] + 1 if former else 1
            newest = {"at": at, "error_type": error_type, "place": place, "count": count, "event": event, **facts}
            self._kinds[error_type, place] = newest
            if len(self._kinds) > KINDS:
                self._kinds.popitem(last=False)

    def kinds(self) -> list[dict[str, Any]]:
        """Return the kinds, the newest first; `at` is when the newest of a kind was, in UTC."""
        with self._lock:
            return list(reversed(self._kinds.values()))
