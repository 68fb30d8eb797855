"""The consumer thread: poll, offer, pause and resume, settle, commit; and what happens in a rebalance.

It alone touches the Kafka consumer. It never waits for a handler, except in a rebalance, and there for a bounded time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog

from gigaoffice_worker.broker.consumer import Consumer
from gigaoffice_worker.broker.error_table import is_fatal, to_worker_error
from gigaoffice_worker.broker.errors import FencedError, OutOfRangeError, UndecodableError
from gigaoffice_worker.core.backpressure import PartitionQuota
from gigaoffice_worker.core.errors import ConfigurationError, UnreachableError
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.commits import Committer
from gigaoffice_worker.engine.delivery import Delivery
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.ownership import COMMIT_WITHIN, Ownership
from gigaoffice_worker.engine.quarantine import Quarantine, Undecodable
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# What is held of all partitions together until it is settled.
MAX_RECORDS = 8192
MAX_BYTES = 32 * 1024 * 1024
_POLL = 0.1
_DRAIN_POLL = 0.02
_COMMIT_EVERY = 0.5
_WATERMARKS_EVERY = 5.0
# Python's own objects around a record's content.
_RECORD_COST = 512
_HOLD_BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """What the consumer thread needs of the configuration. Times in seconds."""

    topic: str
    max_poll_records: int
    auto_offset_reset: Literal["earliest", "latest"]
    rebalance_wait: float
    # How long the group's coordinator may take to be found at start-up.
    join_within: float


class ConsumerThread:
    """The loop around the consumer."""

    def __init__(
        self,
        consumer: Consumer,
        dispatcher: Dispatcher,
        delivery: Delivery,
        intake: ConsumerSettings,
        metrics: Metrics,
        died: Callable[[BaseException], None],
    ) -> None:
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._intake = intake
        self._metrics = metrics
        self._died = died
        # The committer tells the ownership, which needs the committer: the name is looked up when it is called.
        self.committer = Committer(consumer, dispatcher, metrics, gone=lambda gone: self.ownership.reposition(gone))  # noqa: PLW0108
        self.ownership = Ownership(
            consumer,
            dispatcher,
            self.committer,
            self._settle,
            metrics,
            topic=intake.topic,
            auto_offset_reset=intake.auto_offset_reset,
            rebalance_wait=intake.rebalance_wait,
        )
        self._quarantine = Quarantine(intake.topic)
        # Replaced and never changed, so that observers may read it without a lock.
        self.paused: Mapping[int, str] = {}
        self.trouble: str | None = None
        self.clean = False
        self._failures = 0
        self._next_commit = 0.0
        self._next_watermarks = 0.0
        self._drain_until: float | None = None
        self._raised: Exception | None = None
        self._last_turn = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    # Life

    def start(self) -> None:
        self.thread.start()

    def drain(self, deadline: float) -> None:
        """Settle what is in flight, commit and leave, until `deadline` (monotonic seconds)."""
        self._drain_until = deadline

    def join(self, timeout: float) -> bool:
        self.thread.join(timeout)
        return not self.thread.is_alive()

    @property
    def last_turn(self) -> float:
        """When the loop last showed progress, in seconds of the monotonic clock."""
        return max(self._last_turn, self.ownership.last_step)

    @property
    def joined(self) -> bool:
        return self.ownership.joined_at is not None

    @property
    def quarantined(self) -> Mapping[int, Undecodable]:
        """What cannot be decoded, by partition."""
        return self._quarantine.held

    def _run(self) -> None:
        try:
            self._consumer.subscribe(self._on_revoked, self._on_assigned)
            join_until = time.monotonic() + self._intake.join_within
            while self._drain_until is None:
                self._turn(_POLL)
                if not self.joined and time.monotonic() > join_until and not self._consumer.coordinator_known():
                    message = f"no group coordinator answered within {self._intake.join_within:.0f} seconds"
                    raise UnreachableError(message, hint="check the brokers and the topic __consumer_offsets")  # noqa: TRY301
            self._drain(self._drain_until)
        except FencedError:
            message = "another member of the consumer group uses the same KAFKA_CONSUMER_GROUP_INSTANCE_ID"
            self._died(ConfigurationError(message, hint="give each worker an instance id of its own"))
        except BaseException as error:  # noqa: BLE001  # a thread of ours that dies takes the process down
            self._died(error)

    def _turn(self, poll: float) -> None:
        self._last_turn = time.monotonic()
        self._renew_lease()
        self.ownership.position_new()
        self._pace()
        self._receive(poll)
        self._settle()
        now = time.monotonic()
        if now >= self._next_commit:
            self._next_commit = now + _COMMIT_EVERY
            self.committer.commit(self.ownership.assignments, COMMIT_WITHIN)
        self._watch_watermarks(now)

    def _drain(self, deadline: float) -> None:
        """Keep polling with everything paused, so that a running rebalance completes and the last commit lands."""
        quiet = committed = False
        # At least one turn, however late it is: what is finished by now is no abandoned work.
        while True:
            self._last_turn = time.monotonic()
            self._pace()
            self._receive(_DRAIN_POLL)
            self._settle()
            quiet = self._dispatcher.wait_quiet(_DRAIN_POLL)
            committed = quiet and self._last_commit()
            if committed or time.monotonic() >= self._deadline(deadline):
                break
        if not quiet:
            # What is finished so far need not be repeated, even if the rest must be.
            self._settle()
            self.committer.commit(self.ownership.assignments, 1.0)
        self.clean = quiet and committed
        self._consumer.close(max(1.0, min(3.0, deadline - time.monotonic())))

    def _renew_lease(self) -> None:
        self._dispatcher.lease(time.monotonic() + self._consumer.session_left())

    def _deadline(self, deadline: float) -> float:
        """Return the earliest deadline: a second signal moves it to now."""
        return min(deadline, self._drain_until if self._drain_until is not None else deadline)

    def _last_commit(self) -> bool:
        self._settle()
        return self.committer.commit(self.ownership.assignments, 2.0)

    # Receiving

    def _receive(self, poll: float) -> None:
        try:
            batches = self._consumer.poll(poll, self._intake.max_poll_records)
        except OutOfRangeError as error:
            for partition, position in error.positions.items():
                self._start_over(partition, position)
        except UndecodableError as error:
            self._quarantine.admit(error, time.monotonic())
        except FencedError:
            raise
        except Exception as error:  # noqa: BLE001  # no outage ends the worker once it has joined
            self._poll_failed(error)
        else:
            self._failures = 0
            if self.joined and self.ownership.rebalancing_since is None:
                self.trouble = None
            for partition, records in batches.items():
                self._offer(partition, records)
        self._metrics.last_poll.set_to_current_time()
        if self._raised is not None:
            raise self._raised

    def _offer(self, partition: int, records: list[Record]) -> None:
        assignment = self.ownership.assignments.get(partition)
        if assignment is None:
            return
        self._metrics.messages_received.inc(len(records))
        now, latest = time.monotonic(), time.time()
        self._dispatcher.offer(
            [
                Work(record, assignment, record.size + _RECORD_COST, now, min(record.timestamp, latest))
                for record in records
            ]
        )

    def _forget(self, partition: int) -> None:
        self.ownership.reposition(partition)

    def _start_over(self, partition: int, position: int) -> None:
        log.error(
            "Offset out of range: the log does not hold the position, beginning anew",
            topic=self._intake.topic,
            partition=partition,
            offset=position,
            reset_to=self._intake.auto_offset_reset,
            hint="retention removed the records, or the topic was deleted and created again",
        )
        self._metrics.offset_resets.inc()
        self.ownership.begin_anew(partition)

    def _poll_failed(self, error: Exception) -> None:
        told = to_worker_error(error, during="reading the request topic")
        if not self.joined and is_fatal(error):
            raise told from error
        self._failures += 1
        self.trouble = str(told)
        wait = min(1.0, 0.05 * 2.0 ** min(self._failures, 10))
        log.warning("Polling failed and will be tried again", error=str(told), hint=told.hint, retry_in=wait)
        # Heartbeats go on by the client's own thread.
        time.sleep(wait)

    # The rebalance listener: what it raises would be swallowed by the client, so it is kept and raised after the poll.

    def _on_revoked(self) -> None:
        try:
            self.ownership.revoke(self._drain_until)
        except Exception as error:  # noqa: BLE001
            self._raised = error

    def _on_assigned(self, partitions: frozenset[int]) -> None:
        try:
            self.ownership.assign(partitions)
            # The client has forgotten what was paused.
            self.paused = {}
            self._quarantine.keep(self.ownership.assignments)
            self._pace()
        except Exception as error:  # noqa: BLE001
            self._raised = error

    # Pausing and resuming

    def _pace(self) -> None:
        """Pause what holds its share already, resume what has room again."""
        full = self._delivery.unsettled_bytes > MAX_BYTES
        (self._dispatcher.hold if full else self._dispatcher.release)(_HOLD_BYTES)
        wanted = self._reasons("bytes" if full else None)
        # Also where only the reason is another: a partition that has just got its position was resumed with it.
        pause = {partition for partition, reason in wanted.items() if self.paused.get(partition) != reason}
        resume = self.paused.keys() - wanted.keys()
        known = self.ownership.assignments.keys() | self.ownership.unpositioned
        if pause:
            self._consumer.pause(pause & known)
        if resume:
            self._consumer.resume(resume & known)
        self.paused = wanted

    def _reasons(self, everywhere: str | None) -> dict[int, str]:
        if self._drain_until is not None:
            everywhere = "draining"
        elif self._dispatcher.intake_stopped() is not None:
            everywhere = "storm-guard"
        assignments = self.ownership.assignments
        share = PartitionQuota.of(len(assignments), MAX_RECORDS, MAX_BYTES)
        now = time.monotonic()
        reasons = dict.fromkeys(self.ownership.unpositioned, "position unknown")
        for partition, held in assignments.items():
            paused = partition in self.paused
            if self._quarantine.shuts_in(partition, now):
                reasons[partition] = "undecodable record"
            elif everywhere is not None:
                reasons[partition] = everywhere
            elif partition in self.committer.full:
                reasons[partition] = "commit map"
            elif reason := share.full(held.held_records, held.held_bytes, paused=paused):
                reasons[partition] = reason
        return reasons

    # Settling

    def _settle(self) -> None:
        delivered = self._delivery.collect()
        if delivered:
            self._dispatcher.settle([outcome.work for outcome in delivered])
            now = time.time()
            written = (outcome.work.record.timestamp for outcome in delivered)
            ages = (max(0.0, now - timestamp) if timestamp else 0.0 for timestamp in written)
            self._metrics.requests_finished((outcome.verdict for outcome in delivered), ages)

    def _watch_watermarks(self, now: float) -> None:
        for partition, assignment in self.ownership.assignments.items():
            assignment.watermark = self._consumer.watermark(partition)
            if (position := self._consumer.position(partition)) is not None:
                self._dispatcher.advance(assignment, position)
        self._quarantine.let_out(self._consumer.position)
        if now >= self._next_watermarks:
            self._next_watermarks = now + _WATERMARKS_EVERY
            self._consumer.request_watermarks(p for p in self.paused if p in self.ownership.assignments)
