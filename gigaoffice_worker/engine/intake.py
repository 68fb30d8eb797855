"""Reading the request topic: poll, offer, and pause what holds enough already. Used by the consumer thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from gigaoffice_worker.broker.consumer import Consumer
from gigaoffice_worker.broker.error_table import is_fatal, to_worker_error
from gigaoffice_worker.broker.errors import FencedError, OutOfRangeError, UndecodableError
from gigaoffice_worker.core.arrival import ArrivalClock
from gigaoffice_worker.core.backpressure import UNDECODABLE, HoldingLimits
from gigaoffice_worker.core.commit_map import reach
from gigaoffice_worker.core.decoded_size import decoded_size
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.core.tenancy import step
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.delivery import Delivery
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.expiry import Expiry
from gigaoffice_worker.engine.journal import Journal
from gigaoffice_worker.engine.ownership import Ownership
from gigaoffice_worker.engine.quarantine import Quarantine, Undecodable
from gigaoffice_worker.engine.stalls import StallWatch
from gigaoffice_worker.engine.sweeps import Sweeps
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# What is held of all partitions together until it is settled.
MAX_RECORDS = 8192
MAX_BYTES = 32 * 1024 * 1024
_HOLDING = HoldingLimits(MAX_RECORDS, MAX_BYTES)
_WATERMARKS_EVERY = 5.0
# How often a partition that waits for room in its commit map is looked at.
_ROOM_EVERY = 0.1
# Python's own objects around a record's content.
_RECORD_COST = 512
_HOLD_BYTES = "bytes"


class Intake:
    """Hands what the assigned partitions hold to the dispatcher, at most as much as may be held at once."""

    def __init__(
        self,
        consumer: Consumer,
        dispatcher: Dispatcher,
        delivery: Delivery,
        ownership: Ownership,
        journal: Journal,
        expiry: Expiry,
        metrics: Metrics,
        *,
        topic: str,
        max_poll_records: int,
        map_limit: Callable[[], int],
        parks: bool,
        read_urgency: Callable[[Record], tuple[str, float]] | None,
    ) -> None:
        """`map_limit` tells how many characters a commit map may have.

        `parks` says whether what one key or tenant has too much of is parked, and `read_urgency` whom a record is for
        and how urgent it is.
        """
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._ownership = ownership
        self._journal = journal
        self._expiry = expiry
        self._metrics = metrics
        self._max_poll_records = max_poll_records
        self._map_limit = map_limit
        self._parks = parks
        self._read_urgency = read_urgency
        self._quarantine = Quarantine(topic)
        self._sweeps = Sweeps(consumer, dispatcher, metrics, to_works=self._to_works, map_limit=map_limit)
        # Partitions with more to read than their commit map could tell finished from unfinished.
        self._crowded: set[int] = set()
        self._next_room = 0.0
        # Replaced and never changed, so that observers may read it without a lock.
        self.paused: Mapping[int, str] = {}
        self.trouble: str | None = None
        self.stopped_by_operator = False
        self.stalls = StallWatch(consumer)
        self._failures = 0
        self._next_watermarks = 0.0

    @property
    def quarantined(self) -> Mapping[int, Undecodable]:
        """What cannot be decoded, by partition."""
        return self._quarantine.held

    # Receiving

    def receive(self, timeout: float) -> None:
        """Poll for up to `timeout` seconds, queue what comes. Raises FencedError, and what is fatal before joining."""
        try:
            batches = self._consumer.poll(timeout, self._max_poll_records)
        except OutOfRangeError as error:
            swept = {partition for partition in error.positions if self._sweeps.removed(partition)}
            self._read_again()
            self._go_on_elsewhere({p: position for p, position in error.positions.items() if p not in swept})
        except UndecodableError as error:
            self._read_again(but=error.partition)
            self._quarantine.admit(error, time.monotonic())
        except FencedError:
            raise
        except Exception as error:  # noqa: BLE001  # no outage ends the worker once it has joined
            self._read_again()
            self._poll_failed(error)
        else:
            self._failures = 0
            if self._ownership.stable:
                self.trouble = None
            for partition, records in batches.items():
                self._offer(partition, records)
        self._metrics.last_poll.set_to_current_time()

    def _offer(self, partition: int, records: list[Record]) -> None:
        assignment = self._ownership.assignments.get(partition)
        if assignment is None:
            return
        if partition in self._sweeps.partitions:
            records = self._sweeps.receive(partition, records)
        records = self._that_fit(assignment, records)
        self._metrics.messages_received.inc(len(records))
        works = self._to_works(assignment, records, assignment.arrivals)
        if assignment.findings is None:
            self._dispatcher.offer(works)
        elif works:
            self._offer_unless_known(works)

    def _to_works(self, assignment: Assignment, records: list[Record], arrivals: ArrivalClock) -> list[Work]:
        """Return requests of records; `arrivals` has seen those before them."""
        if not records:
            return []
        now = time.monotonic()
        arrived = arrivals.times([record.timestamp for record in records], time.time())
        works = [
            Work(
                record,
                assignment,
                record.size + _RECORD_COST,
                now,
                at,
                decoded=decoded_size(record.value),
                sharing=record.key,
            )
            for record, at in zip(records, arrived, strict=True)
        ]
        self._expiry.note(works)
        if self._read_urgency is not None:
            for work in works:
                work.tenant, work.priority = self._read_urgency(work.record)
                work.sharing = (work.tenant, step(work.priority))
        return works

    def _offer_unless_known(self, works: list[Work]) -> None:
        """Queue requests, but for those that the journal knows the outcome of."""
        known = self._journal.look_up(works)
        answered = {work for work, outcome in known.items() if outcome is None}
        settled = self._dispatcher.offer(works, answered)
        self._metrics.journal_recovered.inc(settled + len(known) - len(answered))

    def _that_fit(self, assignment: Assignment, records: list[Record]) -> list[Record]:
        """Return the records whose ends the commit map has room for; the others are read again when it has."""
        with self._dispatcher.locked():
            fit = assignment.tracker.receivable([record.offset for record in records], self._map_limit())
        if fit < len(records):
            self._crowded.add(assignment.partition)
            self._consumer.seek(assignment.partition, records[fit].offset)
        return records[:fit]

    def _look_for_room(self, now: float) -> None:
        """Read on where the commit map has room for a good many requests again."""
        if not self._crowded or now < self._next_room:
            return
        self._next_room = now + _ROOM_EVERY
        for partition in list(self._crowded):
            assignment = self._ownership.assignments.get(partition)
            if assignment is None or self._has_room(assignment):
                self._crowded.discard(partition)

    def _has_room(self, assignment: Assignment) -> bool:
        limit, tracker = self._map_limit(), assignment.tracker
        with self._dispatcher.locked():
            # Each pause costs a fetch, so half of what a map always has room for should be free.
            many = min(self._max_poll_records, (reach(0, limit) + 1) // 2) or 1
            return tracker.receivable(range(tracker.position, tracker.position + many), limit) == many

    def _read_again(self, but: int | None = None) -> None:
        """Put each partition (`but` one) back to where we know it was read: an error may have lost what came behind."""
        self._sweeps.forget(but)
        for partition, assignment in self._ownership.assignments.items():
            position = assignment.tracker.position
            if partition != but and self._consumer.position(partition) != position:
                self._consumer.seek(partition, position)

    def _go_on_elsewhere(self, positions: Mapping[int, int]) -> None:
        for partition, position in positions.items():
            try:
                self._ownership.out_of_range(partition, position)
            except Exception as error:  # noqa: BLE001  # no answer: the next fetch finds it out of range again
                self._poll_failed(error)

    def _poll_failed(self, error: Exception) -> None:
        told = to_worker_error(error, during="reading the request topic")
        if not self._ownership.joined and is_fatal(error):
            raise told from error
        self._failures += 1
        self.trouble = str(told)
        wait = min(1.0, 0.05 * 2.0 ** min(self._failures, 10))
        log.warning("Polling failed and will be tried again", error=str(told), hint=told.hint, retry_in=wait)
        # The client's own thread goes on with the heartbeats.
        time.sleep(wait)

    def note_assigned(self) -> None:
        """Begin with the partitions that a rebalance gave us: the client has forgotten what was paused."""
        self.paused = {}
        self._sweeps.forget()
        self._quarantine.keep(self._ownership.assignments)

    # Pausing and resuming

    def pace(self, *, full: frozenset[int], draining: bool) -> None:
        """Pause what holds its share already, or is in `full`; resume what has room again."""
        now = time.monotonic()
        self._look_for_room(now)
        over = self._delivery.unsettled_bytes > MAX_BYTES
        (self._dispatcher.hold if over else self._dispatcher.release)(_HOLD_BYTES)
        everywhere = "bytes" if over else None
        if draining:
            everywhere = "draining"
        elif self.stopped_by_operator:
            everywhere = "operator"
        elif self._dispatcher.intake_stopped() is not None:
            everywhere = "storm-guard"
        assignments = self._ownership.assignments
        if self._parks and everywhere is None:
            reasons = {p: why for p, why in self.paused.items() if why != UNDECODABLE or not self._stops_frontier(p)}
            self._sweeps.look(assignments, reasons, _HOLDING.quota(len(assignments)).window, now)
        sweeping = self._sweeps.partitions
        wanted = _HOLDING.reasons(
            assignments,
            self.paused,
            everywhere=everywhere,
            unpositioned=self._ownership.unpositioned,
            sweeping=sweeping,
            undecodable=lambda partition: self._quarantine.shuts_in(partition, now) and not self._behind(partition),
            map_full=full | self._crowded,
        )
        wanted |= {
            partition: "journal" for partition, held in self._ownership.assignments.items() if self._journal.waits(held)
        }
        # Also where only the reason is another: a partition that has just got its position was resumed with it.
        pause = {partition for partition, reason in wanted.items() if self.paused.get(partition) != reason}
        resume = self.paused.keys() - wanted.keys()
        known = self._ownership.assignments.keys() | self._ownership.unpositioned
        if pause:
            self._consumer.pause(pause & known)
        if resume:
            self._consumer.resume(resume & known)
        self.paused = wanted

    def _stops_frontier(self, partition: int) -> bool:
        """Say whether what cannot be decoded stops nothing but the frontier, so that what is parked may be swept."""
        assignment, found = self._ownership.assignments.get(partition), self._quarantine.held.get(partition)
        return assignment is not None and found is not None and found.offset >= assignment.tracker.position

    def _behind(self, partition: int) -> bool:
        """Say whether a partition is swept in front of what cannot be decoded."""
        sweep = self._sweeps.of(partition)
        return sweep is not None and self._quarantine.held[partition].offset >= sweep.end

    # How far the log reaches

    def watch_log(self, now: float) -> None:
        """Note how far each partition was read and how far its log reaches; ask for that where nothing is read."""
        for partition, assignment in self._ownership.assignments.items():
            assignment.watermark = self._consumer.watermark(partition)
            if (position := self._consumer.position(partition)) is not None:
                with self._dispatcher.locked():
                    assignment.tracker.advance(position)
        self._quarantine.let_out(
            lambda partition: None if self._behind(partition) else self._consumer.position(partition)
        )
        self.stalls.look(self._ownership.assignments, self.paused)
        if now >= self._next_watermarks:
            self._next_watermarks = now + _WATERMARKS_EVERY
            asked = {*self.paused, *self.stalls.to_ask_about()}
            self._consumer.request_watermarks(asked & self._ownership.assignments.keys())
