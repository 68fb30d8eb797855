"""The client's producer as delivery sees it: one that can be doubted, and is then replaced by a new one."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from gigaoffice_worker.broker.producer import Acknowledged, Failed, Producer
from gigaoffice_worker.core.records import OutgoingRecord
from gigaoffice_worker.core.retry import Backoff

log = structlog.get_logger(__name__)

# A send without an answer for longer than the client's own delivery time-out plus this is abandoned, with the client.
ABANDON_AFTER = 10.0
_BACKOFF, _MAX_BACKOFF = 0.5, 10.0
# How long the cluster may take to say whether a topic is there.
_ASK_WITHIN = 0.25
# Rebuild at most once in this time, so that a record that every client fails over cannot cause a rebuild loop.
_REBUILD_EVERY = 1.0
_STOP_SENDER_WITHIN = 5.0


class SupervisedProducer:
    """Any thread may send; only delivery's own thread doubts and replaces the client. Times in seconds."""

    def __init__(
        self, make: Callable[[], Producer], *, delivery_timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._delivery_timeout = delivery_timeout
        self._clock = clock
        self._client: Producer | None = None
        self._batch_limit: int | None = None
        # A client whose sender would not end is kept, or its finaliser would block whoever runs the collector.
        self._retired: list[Producer] = []
        # Since when the client gets no answer about a topic; None while it gets one, or need not ask.
        self._silent_since: float | None = None
        # Why the client is not trusted any more; None while it is.
        self.doubt: str | None = None
        self._rebuilds = Backoff(_BACKOFF, _MAX_BACKOFF)

    def start(self) -> None:
        """Make the first client; its errors are the caller's."""
        self._client = self._made()

    def _made(self) -> Producer:
        client = self._make()
        if self._batch_limit is not None:
            client.limit_batches(self._batch_limit)
        return client

    def close(self, timeout: float) -> None:
        """End the client's thread."""
        if self._client is not None:
            self._client.force_stop(timeout)

    def send(
        self, record: OutgoingRecord, acknowledged: Acknowledged, failed: Failed, *, smallest: bool = False
    ) -> None:
        """Hand a record to the client, packed as small as can be if asked to; what the client raises is its failure."""
        client = self._client
        try:
            if client is None:
                message = "no producer"
                raise RuntimeError(message)  # noqa: TRY301  # one way for every failure
            client.send(record, acknowledged, failed, smallest=smallest)
        except Exception as error:  # noqa: BLE001  # the record is sent again
            failed(error)

    def knows(self, topic: str) -> bool:
        """Say whether the cluster has the topic, as far as the client knows; asks it where the client knows nothing."""
        known = self._client is None or self._client.knows(topic, _ASK_WITHIN)
        if known is not None:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = self._clock()
        return bool(known)

    def go_on(self) -> None:
        """Send again after a failure; nothing may be on its way."""
        if self._client is not None:
            self._client.go_on()

    def limit_batches(self, size: int) -> None:
        """Keep the batches of this client, and of all behind it, within `size` bytes."""
        self._batch_limit = size
        if self._client is not None:
            self._client.limit_batches(size)

    def suspect(self, cause: str) -> None:
        """Trust the client no more: a send failed in a way that only a new client mends."""
        self.doubt = cause

    def check(self, now: float, owed_since: float | None) -> None:
        """Doubt a client that cannot send any more, or owes an answer for too long: to a send, or about a topic."""
        if self.doubt is not None:
            return
        since = min((each for each in (owed_since, self._silent_since) if each is not None), default=now)
        if self._client is None or self._client.broken:
            self.suspect("the producer cannot send any more")
        elif now - since > self._delivery_timeout + ABANDON_AFTER:
            self.suspect(f"no answer for {now - since:.0f} seconds")

    def rebuild_due(self, now: float) -> bool:
        """Say whether a client in doubt is to be replaced now."""
        return self.doubt is not None and now >= self._rebuilds.due

    def stop(self) -> None:
        """Stop the client for good: from now on no answer of its is trusted."""
        if self._client is not None:
            if not self._client.force_stop(_STOP_SENDER_WITHIN):
                self._retired.append(self._client)
            self._client = None
        self._silent_since = None

    def begin_anew(self) -> bool:
        """Make a new client behind a stopped one; False when that failed and will be tried again later."""
        try:
            self._client = self._made()
        except Exception as error:  # noqa: BLE001  # an outage; tried again until it is over
            self._rebuilds.failed(self._clock())
            log.warning("Producer could not be rebuilt", error=str(error), cause=self.doubt)
            return False
        self._rebuilds.succeeded()
        self._rebuilds.due = self._clock() + _REBUILD_EVERY
        log.warning("Producer rebuilt", cause=self.doubt)
        self.doubt = None
        return True
