"""Readiness lost and regained, told once each: what an operator must know without reading the Kafka client's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import structlog

from gigaoffice_worker.observe.health import Trouble

# What begins or ends the worker, and what has lines of its own where it happens.
_TOLD_ELSEWHERE = frozenset(
    {
        *("starting", "joining", "draining", "paused"),
        *("authentication-lost", "storm-guard", "topic-missing", "topics-unverified"),
    }
)

log = structlog.get_logger(__name__)


class _Events(NamedTuple):
    lost: str
    back: str


_EVENTS = {
    "session-lost": _Events("Session lost", "Session regained"),
    "cluster-unreachable": _Events("Cluster out of reach", "Cluster within reach again"),
}
_OTHERS = _Events("Worker not ready", "Worker ready again")


class Announcer:
    """Compares the reasons for not being ready with those of the last look, and logs what came and what went."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def look(self, troubles: Sequence[Trouble], now: float) -> None:
        """Log what changed; `now` is monotonic, in seconds."""
        current = {trouble.code: trouble.text for trouble in troubles if trouble.code not in _TOLD_ELSEWHERE}
        for code, text in current.items():
            if code not in self._since:
                self._since[code] = now
                log.warning(_EVENTS.get(code, _OTHERS).lost, reason=code, detail=text)
        for code in self._since.keys() - current.keys():
            after = round(now - self._since.pop(code), 1)
            log.info(_EVENTS.get(code, _OTHERS).back, reason=code, after=after)
