"""One topic that outcomes are written to: what is on its way there, and how the topic recovers from a failed send.

Three states, and only they decide whether a new record is sent:

| state | new records | left when |
|---|---|---|
| OPEN | are sent at once | a send fails, a record may be too large for its topic, or the client is replaced |
| REPAIRING | wait behind what must be sent again | everything on its way has an answer and the delay is over |
| PROBING | wait | what was sent again is acknowledged (OPEN, or the next group), or fails (REPAIRING) |

While a topic is in trouble one record probes it; once that is acknowledged the others follow in their first order. A
record that its topic refuses for its size, and that nothing can take the place of, is set aside: it holds nobody back,
and the smallest of those is tried again now and then, as long as its partition is ours.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from copy import copy
from enum import Enum, auto

import msgspec
import structlog

from gigaoffice_worker.broker.error_table import SendFailure, describe, rule, send_failure
from gigaoffice_worker.core.records import Outcome, OutgoingRecord
from gigaoffice_worker.core.retry import Backoff
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.supervised_producer import SupervisedProducer

log = structlog.get_logger(__name__)

# What a record adds to its content on the wire, at most, apart from its headers.
_RECORD_OVERHEAD = 128
_HEADER_OVERHEAD = 10
# Seconds between tries. What waits for a topic is sent within two seconds of its return; what a topic refuses for its
# size is much to send in vain, and a change of the topic's limit is told by `learn`.
_BACKOFF, _MAX_BACKOFF, _MAX_BACKOFF_ASIDE = 0.2, 1.0, 10.0
# How often the log repeats a trouble that stays the same.
_TELL_EVERY = 10.0
# The limit of a topic that does not say its own.
_DEFAULT_MAX_MESSAGE_BYTES = 1_000_000


class State(Enum):
    """Whether a topic takes new records; see the table of this module."""

    OPEN = auto()
    REPAIRING = auto()
    PROBING = auto()


class PendingOutcome(msgspec.Struct, eq=False):
    """One outcome on its way, and what it is about; `unsent` are the records still to be handed over, in this order."""

    work: Work
    outcome: Outcome
    unsent: list[OutgoingRecord]
    # Whether the lane of the request was opened. A last record that is known to fit opens it when it is handed over;
    # any other only when it is acknowledged, since a refusal still changes the outcome.
    lane_opened: bool = False


class PendingSend(msgspec.Struct, eq=False):
    """One record in the hands of the client. Sent again, it is a new PendingSend under the old number.

    `first_sent_at` tells how long the outcome has been on its way, `sent_at` how long the client owes an answer.
    """

    topic: OutputTopic
    outcome: PendingOutcome
    record: OutgoingRecord
    size: int
    first_sent_at: float
    sent_at: float
    # One that is not known to fit gets a batch of its own: the client fails all of a batch for one record.
    alone: bool
    number: int = -1
    # The partition and the offset that it has got; -1 where nobody acknowledges.
    place: tuple[int, int] = (-1, -1)
    # The topic has refused it for good, and nothing can take its place.
    refused: bool = False
    # Whether it is to be written as small as any codec can.
    smallest: bool = False

    def again(self) -> PendingSend:
        """Return the same record for another try, so that a late answer to the first one is told apart."""
        return copy(self)

    def acknowledged(self, partition: int, offset: int) -> None:
        """Note where the record stands now; called on the client's thread."""
        self.place = (partition, offset)
        self.topic.answered(self, None)

    def failed(self, error: BaseException) -> None:
        """Note the failure; called on the client's thread, or by whoever tried to send."""
        self.topic.answered(self, error)


class OutputTopic:
    """The sends of one topic and the producer for them; mends itself when `mend` is called now and then by one thread.

    `on_acknowledged` is called on the client's thread, `wake` whenever there is something to mend. `replace` is asked
    about a record that its topic refuses for its size although it was sent alone: True when something else takes its
    place. Without it such a record is packed as small as possible, and at last set aside.
    """

    def __init__(
        self,
        name: str,
        producer: SupervisedProducer,
        *,
        on_acknowledged: Callable[[PendingSend], None],
        wake: Callable[[], None],
        replace: Callable[[PendingSend], bool] | None = None,
    ) -> None:
        self.name = name
        self.producer = producer
        self._on_acknowledged = on_acknowledged
        self._replace = replace
        self._wake = wake
        self.max_message_bytes = 1 << 62
        self.partitions = 0
        # Bytes of all records that were ever taken, less those that were dropped or that something took the place of.
        self.taken_bytes = 0
        self.state = State.OPEN
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # By number, in the order of sending; guarded by the lock like the lists below and the state.
        self._on_their_way: dict[int, PendingSend] = {}
        self._to_repeat: list[PendingSend] = []
        self._failures: list[tuple[PendingSend, BaseException]] = []
        self._set_aside: list[PendingSend] = []
        # What follows is for the thread of repairs alone.
        self._trouble: str | None = None
        self._retries = Backoff(_BACKOFF, _MAX_BACKOFF)
        self._retries_aside = Backoff(_BACKOFF, _MAX_BACKOFF_ASIDE)
        self._probing_aside = False
        # Bytes of the largest record that was set aside, 0 while there is none.
        self._refused = 0
        self._told: tuple[str | None, float] = (None, -_TELL_EVERY)

    def learn(self, *, max_message_bytes: int | None, partitions: int) -> None:
        """Note what the topic takes, as the last verification found it."""
        limit = _DEFAULT_MAX_MESSAGE_BYTES if max_message_bytes is None else max_message_bytes
        if limit > self.max_message_bytes:
            self._retries_aside.at_once()
        self.max_message_bytes = limit
        # A batch beyond the limit fails whole.
        self.producer.limit_batches(limit)
        self.partitions = partitions

    # Any thread

    def pending(self, outcome: PendingOutcome, record: OutgoingRecord, now: float) -> PendingSend:
        """Return a record of an outcome as one to be sent to this topic."""
        size = record.size
        alone = size + _RECORD_OVERHEAD + _HEADER_OVERHEAD * len(record.headers) > self.max_message_bytes
        return PendingSend(self, outcome, record, size, now, now, alone)

    def send(self, pending: PendingSend) -> None:
        """Take a new record: it is sent now, or behind what must be sent again."""
        with self._lock:
            self.taken_bytes += pending.size
            pending.number = next(self._numbers)
            sent_now = self.state is State.OPEN and not pending.alone
            if sent_now:
                self._on_their_way[pending.number] = pending
            else:
                if self.state is State.OPEN:
                    self.state = State.REPAIRING
                self._to_repeat.append(pending)
        if sent_now:
            self.producer.send(pending.record, pending.acknowledged, pending.failed)
        else:
            self._wake()

    def answered(self, pending: PendingSend, error: BaseException | None) -> None:
        """Take a record off what is on its way; after a failure nothing newer passes before it is mended."""
        with self._lock:
            if self._on_their_way.get(pending.number) is not pending:
                return  # A late answer: the record has been sent again since.
            del self._on_their_way[pending.number]
            if error is not None:
                if self.state is State.OPEN:
                    self.state = State.REPAIRING
                self._failures.append((pending, error))
        if error is None:
            self._on_acknowledged(pending)
        if self.state is not State.OPEN:
            self._wake()

    def oldest(self) -> float | None:
        """Return when the oldest undelivered record was first handed over."""
        with self._lock:
            # What is on its way is in its first order, so the first is the oldest.
            ages = [pending.first_sent_at for pending in itertools.islice(self._on_their_way.values(), 1)]
            ages += [pending.first_sent_at for pending in self._to_repeat]
            ages += [pending.first_sent_at for pending in self._set_aside]
            ages += [pending.first_sent_at for pending, _ in self._failures]
            return min(ages, default=None)

    @property
    def trouble(self) -> str:
        """Say why records are not delivered, as far as that is known."""
        refused = f"the topic refuses a record of {self._refused} bytes: raise its max.message.bytes"
        return (
            self._trouble
            or (refused if self._refused else None)
            or self.producer.doubt
            or "no acknowledgement from the cluster"
        )

    # The thread of repairs

    def sort_failures(self, now: float) -> int:
        """Decide what each failure means: again, alone, replaced, or a client in doubt. Returns how many there were."""
        with self._lock:
            failures, self._failures = self._failures, []
        if not failures:
            return 0
        again: list[PendingSend] = []
        held_back: list[PendingSend] = []
        at_once = True
        for pending, error in failures:
            match send_failure(error):
                case SendFailure.HELD_BACK:
                    held_back.append(pending.again())
                    continue
                case SendFailure.TOO_LARGE:
                    if pending.alone and self._give_way(pending, now):
                        continue
                    pending.alone = True
                    self._trouble = "the topic refuses a batch for its size: its records are sent one by one"
                case SendFailure.REFUSED:
                    at_once = False
                    self._trouble = f"{describe(error)}. {rule(error).hint}"
                case SendFailure.STUCK:
                    at_once = False
                    self.producer.suspect(f"{type(error).__name__}: {error}")
            again.append(pending.again())
        with self._lock:
            self._to_repeat += again + held_back
        if again:
            self._note_failure(now, len(again), at_once=at_once)
        return len(failures) - len(held_back)

    def _give_way(self, pending: PendingSend, now: float) -> bool:
        """Take a record out of the way that its topic refuses although it was sent alone; False to try it smaller."""
        if self._replace is not None:
            return self._replace(pending)
        if not pending.smallest:
            pending.smallest = True
            return False
        with self._lock:
            self._set_aside.append(pending.again())
        self._refused = max(self._refused, pending.size)
        self._retries_aside.failed(now)
        self._probing_aside = False
        self._tell(now, 1, self._retries_aside.due)
        return True

    def _note_failure(self, now: float, records: int, *, at_once: bool) -> None:
        self._retries.failed(now)
        if at_once:
            self._retries.at_once()
        self._probing_aside = False
        self.shut()
        self._tell(now, records, self._retries.due)

    def _tell(self, now: float, records: int, retry_at: float) -> None:
        """Log a trouble when it is new, and now and then while it lasts."""
        trouble = self.producer.doubt or self.trouble
        told, at = self._told
        if trouble == told and now - at < _TELL_EVERY:
            return
        self._told = (trouble, now)
        log.warning(
            "Outcomes were not acknowledged and will be sent again",
            topic=self.name,
            records=records,
            error=trouble,
            retry_in=round(max(0.0, retry_at - now), 3),
        )

    def mend(self, now: float) -> None:
        """Send again what is due, or open the topic when nothing is left."""
        if self._set_aside and not self._probing_aside:
            self._drop_lost()
        if self.state is State.OPEN:
            if not self._set_aside or now < self._retries_aside.due:
                return
            # A record that may be refused for its size must not share a batch.
            self.shut()
        if self._on_their_way or now < self._retries.due:
            return
        if not self.producer.knows(self.name):
            # To send would wait for the topic, and this thread looks after the other one, too.
            self._trouble = "the topic is missing, or we are not allowed to see it"
            self._retries.failed(now)
            self._tell(now, len(self._to_repeat), self._retries.due)
            return
        self.producer.go_on()
        for pending in self._next_group(now):
            self.producer.send(pending.record, pending.acknowledged, pending.failed, smallest=pending.smallest)

    def _next_group(self, now: float) -> list[PendingSend]:
        """Return what is to be sent again now, noted as on its way; opens the topic when nothing is left.

        Called when everything on its way has an answer. One record probes a topic that is in trouble; else all go up
        to one that needs a batch of its own.
        """
        with self._lock:
            if self._failures:
                return []
            if self.state is State.PROBING:
                # Everything that was sent again has been acknowledged, or taken out of the way.
                self._retries.succeeded()
                self._trouble = None
                if self._probing_aside:
                    self._retries_aside.succeeded()
                    self._refused = max((pending.size for pending in self._set_aside), default=0)
            self._to_repeat.sort(key=lambda pending: pending.number)
            group = self._first_to_repeat() or self._first_set_aside(now)
            if not group:
                self.state = State.OPEN
                return []
            for pending in group:
                pending.sent_at = now
                self._on_their_way[pending.number] = pending
            self.state = State.PROBING
            return group

    def _first_to_repeat(self) -> list[PendingSend]:
        if self._retries.failures or (self._to_repeat and self._to_repeat[0].alone):
            group = self._to_repeat[:1]
        else:
            group = list(itertools.takewhile(lambda pending: not pending.alone, self._to_repeat))
        del self._to_repeat[: len(group)]
        return group

    def _first_set_aside(self, now: float) -> list[PendingSend]:
        """Take the smallest of what was set aside, when it is worth a try: the others pass if it does."""
        self._probing_aside = bool(self._set_aside) and now >= self._retries_aside.due
        if not self._probing_aside:
            return []
        smallest = min(self._set_aside, key=lambda pending: pending.size)
        self._set_aside.remove(smallest)
        return [smallest]

    def _drop_lost(self) -> None:
        """Drop what was set aside of lost partitions: whoever owns them now writes dead letters of its own."""
        with self._lock:
            before = sum(pending.size for pending in self._set_aside)
            self._set_aside = [pending for pending in self._set_aside if not pending.outcome.work.assignment.lost]
            self.taken_bytes -= before - sum(pending.size for pending in self._set_aside)
        self._refused = max((pending.size for pending in self._set_aside), default=0)

    def forget_size(self, pending: PendingSend) -> None:
        """Count a record no more: something else takes its place."""
        with self._lock:
            self.taken_bytes -= pending.size

    # While the producer is replaced

    def check_producer(self, now: float) -> bool:
        """Say whether the producer is in doubt: nothing is mended before it is replaced."""
        with self._lock:
            owed_since = next((pending.sent_at for pending in self._on_their_way.values()), None)
        self.producer.check(now, owed_since)
        return self.producer.doubt is not None

    def shut(self) -> None:
        """Let nothing new through."""
        with self._lock:
            self.state = State.REPAIRING

    def replace_producer(self) -> bool:
        """Stop the client in doubt for good, take back what it held, and make a new one; False when that failed."""
        self.shut()
        self.producer.stop()
        with self._lock:
            self._to_repeat += [pending.again() for pending in self._on_their_way.values()]
            self._to_repeat += [pending.again() for pending, _ in self._failures]
            self._on_their_way.clear()
            self._failures.clear()
        self._probing_aside = False
        if not self.producer.begin_anew():
            return False
        self._retries.at_once()
        return True
