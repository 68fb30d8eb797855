"""A request in hand and the partition that it came from."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from gigaoffice_worker.core.arrival import ArrivalClock
from gigaoffice_worker.core.journal import Findings, Floor
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.parking import Lot, Parking, Sweep
from gigaoffice_worker.core.records import Failure, Outcome, Record
from gigaoffice_worker.core.usage import Usage


class Stage(StrEnum):
    """Where a request is between being received and being settled."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_RETRY = "waiting-retry"
    DELIVERING = "delivering"


@dataclass(eq=False, slots=True)
class Assignment:
    """One partition from the moment it is assigned until it is forgotten: its offsets and what it holds in memory.

    `epoch` counts assignments. An adopted partition keeps its Assignment under a new epoch; a forgotten one is `lost`,
    and what still refers to it is dropped, never settled or committed.
    """

    topic: str
    partition: int
    epoch: int
    tracker: OffsetTracker[Work]
    # What the last acknowledged commit said: position and metadata.
    committed: int
    committed_text: str = ""
    watermark: int | None = None
    lost: bool = False
    arrivals: ArrivalClock = field(default_factory=ArrivalClock)
    held_records: int = 0
    held_bytes: int = 0
    # What the journal has found of it, as long as not all of that was received, and the mark that it was found from.
    findings: Findings | None = None
    mark: str = ""
    # What is held and what is parked, from the moment on in which its window stayed full.
    parking: Parking | None = None

    def receive(self, work: Work, *, known: bool = False) -> bool:
        """Note that the next request at the frontier was received; False where it is done already, or parked.

        One whose outcome is `known` is never parked.
        """
        record, parking = work.record, self.parking
        if parking is not None and not known and not parking.holds(work.sharing, record.key, work.size):
            if self.tracker.park(record.offset):
                parking.park(work.sharing, record.key, record.offset)
            return False
        if not self.tracker.start(record.offset, work):
            return False
        self._hold(work)
        return True

    def resume(self, work: Work, sweep: Sweep) -> bool:
        """Note that a parked request was found by a sweep; True when it is to be queued."""
        record = work.record
        if not sweep.takes(work.sharing, record.key, work.size):
            return False
        for offset in sweep.take(work.sharing, record.key, record.offset):
            self.tracker.gone(offset)
        self.tracker.resume(record.offset, work)
        self._hold(work)
        return True

    def settle(self, work: Work) -> None:
        """Note that the outcome of a request is durable."""
        self.tracker.settle(work.record.offset)
        self.held_records -= 1
        self.held_bytes -= work.size
        if work.lot is not None and self.parking is not None:
            self.parking.settled(work.lot, work.record.key, work.size)

    def begin_parking(self, window: int) -> bool:
        """Tell apart from now on what is held and what is parked; False where that would help nobody."""
        parking = Parking(window)
        for work in self.tracker:
            work.lot = parking.hold(work.sharing, work.record.key, work.size)
        if not parking.crowded:
            return False
        parking.window = max(window, parking.held * 8 // 7)
        self.parking = parking
        return True

    def _hold(self, work: Work) -> None:
        self.held_records += 1
        self.held_bytes += work.size
        if self.parking is not None:
            work.lot = self.parking.hold(work.sharing, work.record.key, work.size)


Lane = tuple[Assignment, bytes | int | None]
"""A key of an assignment, None where the whole is one lane. An offset is a request that shares its lane with nobody."""


class Work(msgspec.Struct, eq=False):
    """One request on its way. Times are seconds of the monotonic clock; `attempt` counts attempts begun."""

    record: Record
    assignment: Assignment
    size: int
    received_at: float
    # When the record arrived in its partition, in seconds since the epoch, as far as its timestamp can be believed.
    written_at: float = 0.0
    # Its place in time among what is ready: when it arrived, or when the newest did that it was put behind.
    turn: float = 0.0
    # Known from the first attempt on, when the value is decoded; empty if no response can be addressed.
    id: str = ""
    stage: Stage = Stage.QUEUED
    attempt: int = 0
    # Counts how often a thread took it. An attempt that did not count is a run all the same, so that the late result
    # of one run is never mistaken for the next one's.
    run: int = 0
    # How often a run of it was given up because it was overdue, the last such run, and its seconds until then.
    overdue: int = 0
    overdue_run: int = 0
    overdue_seconds: float = 0.0
    ready_at: float = 0.0
    first_at: float | None = None
    started_at: float = 0.0
    seconds: float = 0.0
    failure: Failure | None = None
    lane: Lane | None = None
    # Bytes that its value takes once it is decoded, about; 0 for one that is not large, or not to be decoded.
    decoded: int = 0
    # Whom it is for and how urgent it is, higher first, as far as that is told apart.
    tenant: str = ""
    priority: float = 0.0
    # Who it shares the window of its partition as (None: nobody), and what it is counted in where that parks.
    sharing: Hashable = None
    lot: Lot | None = None
    # Counts requests in the order in which they were received.
    number: int = 0
    # How many calls had been answered when the provider refused this one last (-1: it never did).
    refused_after: int = -1
    # How often it has refused this one since the last of those answers, times when it refused this one alone left out.
    refusals_since: int = 0
    # How often others were answered between two of its refusals.
    lone_refusals: int = 0
    # What its calls have used so far.
    used: tuple[Usage, ...] = ()
    # Tokens that the group's budget has set aside for the call that runs.
    reserved_tokens: float = 0.0
    # Until when it is worth a call, in seconds since the epoch.
    worth_until: float = math.inf
    # How it ended before this worker took it over: its dead letter is written, its response is not.
    owed: Outcome | None = None
    # Where its outcome can stand at the lowest; None before that is sent.
    floor: Floor | None = None
