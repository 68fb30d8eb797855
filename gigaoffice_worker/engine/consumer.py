"""The consumer thread: poll, settle, commit, take part in rebalances, and drain.

It alone touches the Kafka consumer. It never waits for a handler, except in a rebalance, and there for a bounded time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import structlog

from gigaoffice_worker.broker.consumer import Consumer
from gigaoffice_worker.broker.errors import FencedError
from gigaoffice_worker.core.arrival import age
from gigaoffice_worker.core.errors import ConfigurationError, UnreachableError
from gigaoffice_worker.core.scheduler import Ordering
from gigaoffice_worker.core.tenancy import Urgency
from gigaoffice_worker.core.work import Assignment, Stage
from gigaoffice_worker.engine.commits import Committer
from gigaoffice_worker.engine.delivery import Delivery
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.expiry import Expiry
from gigaoffice_worker.engine.intake import Intake
from gigaoffice_worker.engine.journal import Journal
from gigaoffice_worker.engine.ownership import COMMIT_WITHIN, Ownership
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# How long a poll waits for records: while something is in hand it must not keep what ends from being committed.
_POLL, _POLL_IN_HAND, _DRAIN_POLL = 0.1, 0.04, 0.02
# What ended is committed so soon after the last commit, unless commits take longer than this part of the time; and
# that is the longest.
_COMMIT_AFTER, _COMMIT_SHARE, _COMMIT_AT_LEAST_EVERY = 0.05, 0.05, 1.0
_IN_FLIGHT = {Stage.RUNNING, Stage.DELIVERING}
# With nothing settled, what is committed may change all the same: offsets that do not exist were passed.
_COMMIT_ANYHOW = 0.5
# How often a rebalance that waits for running calls settles what has ended.
_STEP = 0.02


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """What the consumer thread needs of the configuration. Times in seconds."""

    topic: str
    max_poll_records: int
    auto_offset_reset: Literal["earliest", "latest"]
    rebalance_wait: float
    # How long the group's coordinator may take to be found at start-up.
    join_within: float
    # How many characters of metadata the cluster takes with a commit.
    map_limit: int
    ordering: Ordering
    urgency: Urgency


class ConsumerThread:
    """The loop around the consumer."""

    def __init__(
        self,
        consumer: Consumer,
        dispatcher: Dispatcher,
        delivery: Delivery,
        journal: Journal,
        expiry: Expiry,
        settings: ConsumerSettings,
        metrics: Metrics,
        died: Callable[[BaseException], None],
    ) -> None:
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._journal = journal
        self._expiry = expiry
        self._settings = settings
        self._metrics = metrics
        self._died = died
        self.committer = Committer(
            consumer,
            dispatcher,
            metrics,
            settings.map_limit,
            lambda ours: journal.marks(ours, dispatcher.in_hand.oldest_floors()),
        )
        topic, reset = settings.topic, settings.auto_offset_reset
        self.ownership = Ownership(consumer, dispatcher, journal, metrics, topic=topic, auto_offset_reset=reset)
        self.intake = Intake(
            consumer,
            dispatcher,
            delivery,
            self.ownership,
            journal,
            expiry,
            metrics,
            topic=topic,
            max_poll_records=settings.max_poll_records,
            map_limit=lambda: self.committer.map_limit,
            # In the order of a partition there is nobody who could be let past.
            parks=settings.ordering != "partition",
            read_urgency=settings.urgency.reader() if settings.urgency.known else None,
        )
        self.clean = False
        # Whether a partition was lost while draining, before what had ended of it was committed.
        self._progress_lost = False
        self._settled = False
        self._commit_at = self._commit_anyhow_at = 0.0
        self._drain_until: float | None = None
        self._raised: Exception | None = None
        self._last_turn = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    # Life

    def start(self) -> None:
        self.thread.start()

    def drain(self, deadline: float) -> None:
        """Settle what is in flight, commit and leave, until `deadline` (monotonic seconds). Takes no lock."""
        self._drain_until = deadline

    def join(self, timeout: float) -> bool:
        self.thread.join(timeout)
        return not self.thread.is_alive()

    @property
    def last_turn(self) -> float:
        """When the loop last showed progress, in seconds of the monotonic clock."""
        return max(self._last_turn, self.ownership.last_step)

    @property
    def unreachable_for(self) -> float:
        """For how many seconds no broker, or not the group's coordinator, has answered; 0 while they do."""
        contact = self._consumer.contact
        return max(contact.coordinator_silent_for() if self.ownership.stable else 0.0, contact.silent_for())

    @property
    def session_lost_for(self) -> float:
        """For how many seconds the coordinator may have given our partitions away; not positive while it keeps us."""
        return -self._consumer.contact.session_left() if self.ownership.stable else 0.0

    def _run(self) -> None:
        try:
            self._consumer.subscribe(self._on_revoked, self._on_assigned)
            join_until = time.monotonic() + self._settings.join_within
            while self._drain_until is None:
                self._turn()
                if not self.ownership.joined and time.monotonic() > join_until:
                    self._require_a_coordinator()
            self._drain(self._drain_until)
        except FencedError:
            message = "another member of the consumer group uses the same KAFKA_CONSUMER_GROUP_INSTANCE_ID"
            self._died(ConfigurationError(message, hint="give each worker an instance id of its own"))
        except BaseException as error:  # noqa: BLE001  # a thread of ours that dies takes the process down
            self._died(error)

    def _require_a_coordinator(self) -> None:
        if not self._consumer.contact.coordinator_known():
            message = f"no group coordinator answered within {self._settings.join_within:.0f} seconds"
            raise UnreachableError(message, hint="check the brokers and the topic __consumer_offsets")

    def _turn(self) -> None:
        self._last_turn = time.monotonic()
        self._dispatcher.lease(self._last_turn + self._consumer.contact.session_left())
        self.ownership.position_new()
        if self._journal.hear():
            # With its mark, before anything of it is received: the next one shall know where to begin.
            self._commit(COMMIT_WITHIN)
        self._pace()
        self._receive(_POLL_IN_HAND if self.ownership.has_work else _POLL)
        self._expiry.answer_expired(self.ownership.assignments.values())
        self._settle()
        now = time.monotonic()
        if now >= (self._commit_at if self._settled else self._commit_anyhow_at):
            self._commit(COMMIT_WITHIN)
        self.intake.watch_log(now)

    def _drain(self, deadline: float) -> None:
        """Keep polling with everything paused, so that a running rebalance completes and the last commit lands."""
        quiet = committed = False
        # At least one turn, however late it is: what is finished by now is no abandoned work.
        while True:
            self._last_turn = time.monotonic()
            self._pace()
            self._receive(_DRAIN_POLL)
            self._settle()
            quiet = self._dispatcher.in_hand.wait_quiet(_DRAIN_POLL)
            # What ended of partitions that a rebalance has set aside can be committed when they come back.
            if quiet and not self.committer.is_behind(self.ownership.aside):
                self._settle()
                committed = self._commit(2.0, handing_over=True)
            if committed or time.monotonic() >= self._deadline(deadline):
                break
        if not quiet:
            # What is finished so far need not be repeated, even if the rest must be.
            self._settle()
            self._commit(1.0)
        self.clean = quiet and committed and not self._progress_lost
        self._consumer.close(max(1.0, min(3.0, deadline - time.monotonic())))

    def _deadline(self, otherwise: float) -> float:
        """Return when draining ends: a second signal moves it to now."""
        return min(otherwise, self._drain_until if self._drain_until is not None else otherwise)

    # The steps of a turn

    def _pace(self) -> None:
        self.intake.pace(full=self.committer.full, draining=self._drain_until is not None)

    def _receive(self, timeout: float) -> None:
        self.intake.receive(timeout)
        if self._raised is not None:
            raise self._raised

    def _settle(self) -> None:
        delivered = self._delivery.collect()
        if delivered:
            self._settled = True
            self._dispatcher.settle([each.work for each in delivered])
            now = time.time()
            ages = [age(each.work.written_at, now) for each in delivered]
            self._metrics.requests_finished([each.outcome for each in delivered], ages)

    def _commit(self, within: float, *, handing_over: bool = False) -> bool:
        """Commit what is due within so many seconds; False when not all of it landed."""
        began = time.monotonic()
        self._settled = False
        made = self.committer.commit(self.ownership.assignments, within, handing_over=handing_over)
        now = time.monotonic()
        self._commit_at = now + min(_COMMIT_AT_LEAST_EVERY, max(_COMMIT_AFTER, (now - began) / _COMMIT_SHARE))
        self._commit_anyhow_at = now + _COMMIT_ANYHOW
        for partition in made.gone:
            self.ownership.reposition(partition)
        return made.landed

    # The rebalance listener: what it raises would be swallowed by the client, so it is kept and raised after the poll.

    def _on_revoked(self) -> None:
        try:
            self._give_up_partitions()
        except Exception as error:  # noqa: BLE001
            self._raised = error

    def _on_assigned(self, partitions: frozenset[int]) -> None:
        try:
            self._settle()
            forgotten = self.ownership.assign(partitions)
            self._dispatcher.change(lambda admission, now: admission.owns(now, owned=partitions))
            if self._drain_until is not None and self._is_to_be_repeated(forgotten):
                self._progress_lost = True
            if self._drain_until is None:
                self.ownership.position_new()
            self.intake.note_assigned()
            self._pace()
            # With their marks, which may have been left out when the partitions were given up.
            self._commit_anyhow_at = 0.0
        except Exception as error:  # noqa: BLE001
            self._raised = error

    def _is_to_be_repeated(self, forgotten: list[Assignment]) -> bool:
        """Say whether a new owner of these partitions repeats calls: what ended is not committed, or has not ended."""
        with self._dispatcher.locked():
            in_flight = any(work.stage in _IN_FLIGHT for held in forgotten for work in held.tracker)
        return in_flight or self.committer.is_behind(forgotten)

    def _give_up_partitions(self) -> None:
        """Wait for running calls as long as a rebalance may (or the drain, if that ends earlier), and commit."""
        self.ownership.begin_rebalance()
        if not self.ownership.assignments:
            return
        limit = self._deadline(time.monotonic() + self._settings.rebalance_wait)
        while not (quiet := self._dispatcher.in_hand.wait_quiet(_STEP)) and time.monotonic() < limit:
            self._last_turn = time.monotonic()
            self._settle()
        self._settle()
        self._commit(COMMIT_WITHIN, handing_over=quiet)
        log.info("Partitions revoked", partitions=sorted(self.ownership.assignments), quiet=quiet)
        self.ownership.set_aside()
