"""Requests that are not worth a call any more: answered on time, also while nothing may run. Consumer thread only."""

from __future__ import annotations

import time
from collections.abc import Iterable

import structlog

from gigaoffice_worker.core.expiry import expired, worth
from gigaoffice_worker.core.messages import answerable_id
from gigaoffice_worker.core.records import AttemptEnd
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.delivery import Delivery
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.failure_log import tell_dead_without_attempt, tell_without_call
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)


class Expiry:
    """Notes until when requests are worth a call, `ttl` seconds at most, and answers those that are not any more.

    With `to_dlq` they become dead letters, too.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        delivery: Delivery,
        metrics: Metrics,
        *,
        ttl: float | None,
        to_dlq: bool,
        max_request_bytes: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._metrics = metrics
        self._ttl = ttl
        self._to_dlq = to_dlq
        self._max_request_bytes = max_request_bytes

    def note(self, works: Iterable[Work]) -> None:
        """Note until when requests that were received are worth a call."""
        for work in works:
            if self._ttl is None and not work.record.headers:
                continue
            work.worth_until, unreadable = worth(work.record, self._ttl)
            if unreadable:
                self._metrics.unreadable_headers.inc(unreadable)

    def answer_expired(self, assignments: Iterable[Assignment]) -> None:
        """Answer the requests of these partitions that wait and are not worth a call any more."""
        found = self._dispatcher.expire(assignments, time.time())
        for work in found:
            work.id = work.id or answerable_id(work.record, self._max_request_bytes)
            # One that nobody can be told of would otherwise leave no trace.
            outcome = expired(to_dlq=self._to_dlq or not work.id)
            if outcome.failure is not None and outcome.reason is not None:
                tell_dead_without_attempt(work, outcome.failure, outcome.reason)
            else:
                tell_without_call(work, AttemptEnd.EXPIRED)
            if self._delivery.deliver(work, outcome):
                self._dispatcher.free(work)
        if found:
            log.info("Requests expired before they were tried", requests=len(found))
