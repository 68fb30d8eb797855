"""One topic that outcomes are written to, and what is on its way there."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from gigaoffice_worker.core.records import Outcome, OutgoingRecord
from gigaoffice_worker.core.work import Work

# What a record adds to its content on the wire, at most, apart from its headers.
_RECORD_OVERHEAD = 128
_HEADER_OVERHEAD = 10


@dataclass(eq=False, slots=True)
class PendingOutcome:
    """One outcome on its way: `letters` are still to be sent, in this order."""

    work: Work
    verdict: Outcome
    letters: list[OutgoingRecord]
    # Whether the lane of the request was opened. A letter known to fit opens it when it is handed over; any other only
    # when it is acknowledged, since a refusal still changes the outcome.
    freed: bool = False


class PendingSend:
    """One letter in the hands of the client. A letter that is sent again is a new parcel under the old number.

    `first_sent_at` tells how long the outcome has been on its way, `sent_at` how long the client owes an answer.
    """

    __slots__ = ("alone", "first_sent_at", "letter", "number", "outlet", "refused", "sent_at", "shipment", "size")

    def __init__(self, outlet: OutputTopic, shipment: PendingOutcome, letter: OutgoingRecord, now: float) -> None:
        self.outlet = outlet
        self.shipment = shipment
        self.letter = letter
        self.number = -1
        # Its topic has refused it for good, and nothing can take its place.
        self.refused = False
        self.size = letter.size
        self.first_sent_at = self.sent_at = now
        # A letter that is not known to fit goes in a batch of its own: the client fails all of a batch for one.
        self.alone = self.size + _RECORD_OVERHEAD + _HEADER_OVERHEAD * len(letter.headers) > outlet.max_message_bytes

    def again(self) -> PendingSend:
        """Return the same letter for another try, so that a late answer to the first one is told apart."""
        parcel = PendingSend(self.outlet, self.shipment, self.letter, self.first_sent_at)
        parcel.number = self.number
        parcel.alone = self.alone
        return parcel

    def acknowledged(self, _partition: int, _offset: int) -> None:
        """Note the acknowledgement; called on the client's thread."""
        if self.outlet.answered(self):
            self.outlet.on_acknowledged(self)

    def failed(self, error: BaseException) -> None:
        """Note the failure; called on the client's thread, or by whoever tried to send."""
        if self.outlet.failed(self, error):
            self.outlet.on_trouble()


@dataclass(eq=False, slots=True)
class OutputTopic:
    """The parcels of one topic. While `repairing`, newer ones wait behind those that must be sent again."""

    topic: str
    numbers: itertools.count[int]
    on_acknowledged: Callable[[PendingSend], None]
    on_trouble: Callable[[], None]
    max_message_bytes: int = 1 << 62
    partitions: int = 0
    posted_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    unacknowledged: dict[int, PendingSend] = field(default_factory=dict)
    repairing: bool = False
    waiting: list[PendingSend] = field(default_factory=list)
    failures: list[tuple[PendingSend, BaseException]] = field(default_factory=list)
    trouble: str | None = None
    series: int = 0
    trying: bool = False
    retry_at: float = 0.0

    def admit(self, parcel: PendingSend) -> bool:
        """Take a new parcel; True when it is to be sent now, else it waits for the repair."""
        with self.lock:
            self.posted_bytes += parcel.size
            parcel.number = next(self.numbers)
            if self.repairing or parcel.alone:
                self.repairing = True
                self.waiting.append(parcel)
                return False
            self.unacknowledged[parcel.number] = parcel
            return True

    def answered(self, parcel: PendingSend) -> bool:
        """Take a parcel off what is on its way; False when its answer is late and counts for nothing."""
        with self.lock:
            if self.unacknowledged.get(parcel.number) is not parcel:
                return False
            del self.unacknowledged[parcel.number]
            return True

    def failed(self, parcel: PendingSend, error: BaseException) -> bool:
        """Note a failure, and let nothing newer pass before it is mended; False when the answer is late."""
        with self.lock:
            if self.unacknowledged.get(parcel.number) is not parcel:
                return False
            del self.unacknowledged[parcel.number]
            self.repairing = True
            self.failures.append((parcel, error))
            return True

    def drop(self, parcel: PendingSend) -> None:
        """Count a parcel no more: something else takes its place."""
        with self.lock:
            self.posted_bytes -= parcel.size

    def reclaim(self) -> None:
        """Take everything back from a client that was stopped, to be sent again."""
        with self.lock:
            self.repairing = True
            self.trying = False
            self.waiting += [parcel.again() for parcel in self.unacknowledged.values()]
            self.waiting += [parcel.again() for parcel, _ in self.failures]
            self.unacknowledged.clear()
            self.failures.clear()

    def next_group(self, now: float) -> list[PendingSend]:
        """Return what is to be sent again now, as on its way; opens the outlet when nothing is left.

        Nothing is, before everything that is on its way has an answer: one letter to try the topic with while it is in
        trouble, else all up to one that must go alone.
        """
        if not self.repairing or self.unacknowledged or now < self.retry_at:
            return []
        with self.lock:
            if self.failures:
                return []
            if self.trying:
                # Everything that was sent again has been acknowledged.
                self.trying = False
                self.series = 0
                self.trouble = None
            if not self.waiting:
                self.repairing = False
                return []
            self.waiting.sort(key=lambda parcel: parcel.number)
            if self.series or self.waiting[0].alone:
                group = self.waiting[:1]
            else:
                group = list(itertools.takewhile(lambda parcel: not parcel.alone, self.waiting))
            del self.waiting[: len(group)]
            for parcel in group:
                parcel.sent_at = now
                self.unacknowledged[parcel.number] = parcel
            self.trying = True
            return group

    def oldest(self) -> float | None:
        """Return when the oldest undelivered letter was first handed over."""
        with self.lock:
            # What is on its way is in its first order, so the first is the oldest.
            ages = [parcel.first_sent_at for parcel in itertools.islice(self.unacknowledged.values(), 1)]
            ages += [parcel.first_sent_at for parcel in self.waiting]
            ages += [parcel.first_sent_at for parcel, _ in self.failures]
            return min(ages, default=None)

    def owed_since(self) -> float | None:
        """Return since when the client owes an answer."""
        with self.lock:
            return next((parcel.sent_at for parcel in self.unacknowledged.values()), None)
