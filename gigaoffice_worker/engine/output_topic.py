"""One topic that outcomes are written to: what is on its way there, and how the topic recovers from a failed send.

Three states, and only they decide whether a new record is sent:

| state | new records | left when |
|---|---|---|
| OPEN | are sent at once | a send fails, a record may be too large for its topic, or the client is replaced |
| REPAIRING | wait behind what must be sent again | everything on its way has an answer and the delay is over |
| PROBING | wait | what was sent again is acknowledged (OPEN, or the next group), or fails (REPAIRING) |

While a topic is in trouble one record probes it; once that is acknowledged the others follow in their first order.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import structlog

from gigaoffice_worker.broker.error_table import SendFailure, send_failure
from gigaoffice_worker.core.records import Outcome, OutgoingRecord
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.supervised_producer import SupervisedProducer

log = structlog.get_logger(__name__)

# What a record adds to its content on the wire, at most, apart from its headers.
_RECORD_OVERHEAD = 128
_HEADER_OVERHEAD = 10
_BACKOFF, _MAX_BACKOFF = 0.2, 10.0
# The limit of a topic that does not say its own.
_DEFAULT_MAX_MESSAGE_BYTES = 1_000_000


class State(Enum):
    """Whether a topic takes new records; see the table of this module."""

    OPEN = auto()
    REPAIRING = auto()
    PROBING = auto()


@dataclass(eq=False, slots=True)
class PendingOutcome:
    """One outcome on its way, and what it is about; `unsent` are the records still to be handed over, in this order."""

    work: Work
    outcome: Outcome
    unsent: list[OutgoingRecord]
    # Whether the lane of the request was opened. A last record that is known to fit opens it when it is handed over;
    # any other only when it is acknowledged, since a refusal still changes the outcome.
    lane_opened: bool = False


class PendingSend:
    """One record in the hands of the client. Sent again, it is a new PendingSend under the old number.

    `first_sent_at` tells how long the outcome has been on its way, `sent_at` how long the client owes an answer.
    """

    __slots__ = ("alone", "first_sent_at", "number", "outcome", "record", "refused", "sent_at", "size", "topic")

    def __init__(self, topic: OutputTopic, outcome: PendingOutcome, record: OutgoingRecord, now: float) -> None:
        self.topic = topic
        self.outcome = outcome
        self.record = record
        self.number = -1
        # The topic has refused it for good, and nothing can take its place.
        self.refused = False
        self.size = record.size
        self.first_sent_at = self.sent_at = now
        # A record that is not known to fit gets a batch of its own: the client fails all of a batch for one record.
        self.alone = self.size + _RECORD_OVERHEAD + _HEADER_OVERHEAD * len(record.headers) > topic.max_message_bytes

    def again(self) -> PendingSend:
        """Return the same record for another try, so that a late answer to the first one is told apart."""
        copy = PendingSend(self.topic, self.outcome, self.record, self.first_sent_at)
        copy.number = self.number
        copy.alone = self.alone
        return copy

    def acknowledged(self, _partition: int, _offset: int) -> None:
        """Note where the record stands now; called on the client's thread."""
        self.topic.answered(self, None)

    def answered(self, error: BaseException | None) -> None:
        """Note the failure; called on the client's thread, or by whoever tried to send."""
        self.topic.answered(self, error)


class OutputTopic:
    """The sends of one topic; mends itself when `mend` is called now and then by the one thread of repairs.

    `on_acknowledged` is called on the client's thread, `wake` whenever there is something to mend. `replace` is asked
    about a record that its topic refuses for its size although it was sent alone: True when something else takes its
    place, False when it must be tried again.
    """

    def __init__(
        self,
        name: str,
        numbers: itertools.count[int],
        producer: SupervisedProducer,
        *,
        on_acknowledged: Callable[[PendingSend], None],
        replace: Callable[[PendingSend], bool],
        wake: Callable[[], None],
    ) -> None:
        self.name = name
        self._numbers = numbers
        self._producer = producer
        self._on_acknowledged = on_acknowledged
        self._replace = replace
        self._wake = wake
        self.max_message_bytes = 1 << 62
        self.partitions = 0
        # Bytes of all records that were ever taken, less those that something else took the place of.
        self.taken_bytes = 0
        self.state = State.OPEN
        self.trouble: str | None = None
        self._lock = threading.Lock()
        # By number, in the order of sending; guarded by the lock like the two lists below and the state.
        self._on_their_way: dict[int, PendingSend] = {}
        self._to_repeat: list[PendingSend] = []
        self._failures: list[tuple[PendingSend, BaseException]] = []
        # Failed tries in a row, and when the next one is due. Only the thread of repairs uses them.
        self._series = 0
        self._retry_at = 0.0

    def learn(self, *, max_message_bytes: int | None, partitions: int) -> None:
        """Note what the topic takes, as the last verification found it."""
        self.max_message_bytes = _DEFAULT_MAX_MESSAGE_BYTES if max_message_bytes is None else max_message_bytes
        self.partitions = partitions

    # Any thread

    def send(self, pending: PendingSend) -> None:
        """Take a new record: it is sent now, or behind what must be sent again."""
        with self._lock:
            self.taken_bytes += pending.size
            pending.number = next(self._numbers)
            if self.state is State.OPEN and not pending.alone:
                self._on_their_way[pending.number] = pending
                sent_now = True
            else:
                if self.state is State.OPEN:
                    self.state = State.REPAIRING
                self._to_repeat.append(pending)
                sent_now = False
        if sent_now:
            self._producer.send(pending.record, pending.acknowledged, pending.answered)
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
            ages += [pending.first_sent_at for pending, _ in self._failures]
            return min(ages, default=None)

    def owed_since(self) -> float | None:
        """Return since when the client owes an answer."""
        with self._lock:
            return next((pending.sent_at for pending in self._on_their_way.values()), None)

    # The thread of repairs

    def sort_failures(self, now: float) -> int:
        """Decide what each failure means: again, alone, replaced, or a client in doubt. Returns how many there were."""
        with self._lock:
            failures, self._failures = self._failures, []
        if not failures:
            return 0
        again: list[PendingSend] = []
        at_once = True
        for pending, error in failures:
            match send_failure(error):
                case SendFailure.TOO_LARGE:
                    if pending.alone and self._replace(pending):
                        continue
                    at_once = at_once and not pending.alone
                    pending.alone = True
                    self.trouble = f"the topic refuses a record of {pending.size} bytes: raise its max.message.bytes"
                case SendFailure.REFUSED:
                    at_once = False
                    self.trouble = f"{type(error).__name__}: {error}"
                case SendFailure.STUCK:
                    at_once = False
                    self._producer.suspect(f"{type(error).__name__}: {error}")
            again.append(pending.again())
        if again:
            self._repeat(again, now, at_once=at_once)
        return len(failures)

    def _repeat(self, again: list[PendingSend], now: float, *, at_once: bool) -> None:
        self._series += 1
        backoff = min(_MAX_BACKOFF, _BACKOFF * 2.0 ** min(self._series - 1, 10))
        self._retry_at = now if at_once else now + backoff
        with self._lock:
            self.state = State.REPAIRING
            self._to_repeat += again
        log.warning(
            "Outcomes were not acknowledged and will be sent again",
            topic=self.name,
            records=len(again),
            error=self._producer.doubt or self.trouble,
            retry_in=round(self._retry_at - now, 3),
        )

    def mend(self, now: float) -> None:
        """Send again what is due, or open the topic when nothing is left."""
        for pending in self._next_group(now):
            self._producer.send(pending.record, pending.acknowledged, pending.answered)

    def _next_group(self, now: float) -> list[PendingSend]:
        """Return what is to be sent again now, noted as on its way.

        Nothing is, before everything on its way has an answer. Then one record, to probe a topic that is in trouble;
        else all up to one that needs a batch of its own.
        """
        if self.state is State.OPEN or self._on_their_way or now < self._retry_at:
            return []
        with self._lock:
            if self._failures:
                return []
            if self.state is State.PROBING:
                # Everything that was sent again has been acknowledged, or replaced.
                self._series = 0
                self.trouble = None
            if not self._to_repeat:
                self.state = State.OPEN
                return []
            self._to_repeat.sort(key=lambda pending: pending.number)
            if self._series or self._to_repeat[0].alone:
                group = self._to_repeat[:1]
            else:
                group = list(itertools.takewhile(lambda pending: not pending.alone, self._to_repeat))
            del self._to_repeat[: len(group)]
            for pending in group:
                pending.sent_at = now
                self._on_their_way[pending.number] = pending
            self.state = State.PROBING
            return group

    def forget_size(self, pending: PendingSend) -> None:
        """Count a record no more: something else takes its place."""
        with self._lock:
            self.taken_bytes -= pending.size

    # While the client is replaced

    def shut(self) -> None:
        """Let nothing new through to a client that is about to be stopped."""
        with self._lock:
            self.state = State.REPAIRING

    def reclaim(self) -> None:
        """Take everything back from a client that was stopped, to be sent again."""
        with self._lock:
            self._to_repeat += [pending.again() for pending in self._on_their_way.values()]
            self._to_repeat += [pending.again() for pending, _ in self._failures]
            self._on_their_way.clear()
            self._failures.clear()

    def retry_at_once(self) -> None:
        """Wait no longer: there is a new client."""
        self._retry_at = 0.0
