"""Reading again what is parked, on the same consumer. Used by the consumer thread only.

A partition that is swept is read from its lowest due offset on instead of from the frontier, and goes back there when
its lots have what is due to them. One sweep at a time in a partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

import structlog

from gigaoffice_worker.broker.consumer import Consumer
from gigaoffice_worker.core.arrival import ArrivalClock
from gigaoffice_worker.core.parking import Parking, Sweep
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# How long a window must be full before its partition is read on past what it holds: quick calls make room sooner.
_FULL_FOR = 0.3
_LONGEST_FULL = 5.0
_LOOK_EVERY = 0.02
_ASK_WITHIN = 2.0
_FULL = frozenset({"records", "bytes"})
# Why a frontier waits while its partition may be swept; None while it is read.
_SWEPT_MEANWHILE = frozenset({None, "records", "parked", "commit map"})


ToWorks = Callable[[Assignment, list[Record], ArrivalClock], list[Work]]


class Sweeps:
    """The sweeps of all partitions. `to_works` makes requests of records, `map_limit` tells how long a map may be."""

    def __init__(
        self,
        consumer: Consumer,
        dispatcher: Dispatcher,
        metrics: Metrics,
        *,
        to_works: ToWorks,
        map_limit: Callable[[], int],
    ) -> None:
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._to_works = to_works
        self._map_limit = map_limit
        self._running: dict[int, tuple[Assignment, Sweep]] = {}
        # By partition: when a window that is full is looked at, and how long was waited for that.
        self._full: dict[int, tuple[float, float]] = {}
        self._next_look = 0.0

    @property
    def partitions(self) -> Collection[int]:
        """Which partitions are swept."""
        return self._running.keys()

    def of(self, partition: int) -> Sweep | None:
        """Return the sweep that runs in a partition."""
        found = self._running.get(partition)
        return found[1] if found is not None else None

    def look(self, assignments: Mapping[int, Assignment], paused: Mapping[int, str], window: int, now: float) -> None:
        """Begin to park where a window stays full, begin the sweeps that are due, and end those that are through.

        `paused` says why partitions are not read, and `window` how many units each may hold.
        """
        for partition, (assignment, sweep) in list(self._running.items()):
            if assignments.get(partition) is not assignment:
                del self._running[partition]
            elif (at := self._consumer.position(partition)) is not None and at >= sweep.end:
                self._end(partition, at)
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        for partition, assignment in assignments.items():
            reason = paused.get(partition)
            if assignment.parking is None:
                self._look_at_full(partition, assignment, reason, window, now)
            elif partition not in self._running and reason in _SWEPT_MEANWHILE:
                self._begin(partition, assignment, assignment.parking, window, now)

    def _look_at_full(
        self, partition: int, assignment: Assignment, reason: str | None, window: int, now: float
    ) -> None:
        if reason not in _FULL:
            self._full.pop(partition, None)
            return
        look_at, waited = self._full.setdefault(partition, (now + _FULL_FOR, _FULL_FOR))
        if now >= look_at:
            # Where it helps nobody it may later: nobody has much of the window now.
            waited = min(2 * waited, _LONGEST_FULL)
            self._full[partition] = (now + waited, waited)
            with self._dispatcher.locked():
                assignment.begin_parking(window)

    def _begin(self, partition: int, assignment: Assignment, parking: Parking, window: int, now: float) -> None:
        with self._dispatcher.locked():
            parking.resize(window)
            if parking.done:
                assignment.parking = None
                return
            due = parking.next_sweep(now, assignment.tracker.position)
        if due is not None:
            self._running[partition] = (assignment, due)
            self._consumer.seek(partition, due.start)

    def receive(self, partition: int, records: list[Record]) -> list[Record]:
        """Take what a sweep of the partition has found; return the records that are the frontier's."""
        found = self._running.get(partition)
        if found is None:
            return records
        assignment, sweep = found
        beyond = next((at for at, record in enumerate(records) if record.offset >= sweep.end), len(records))
        with self._dispatcher.locked():
            parked = [record for record in records[:beyond] if record.offset in assignment.tracker.parked]
            fits = parked
            while fits and not assignment.tracker.may_resume([record.offset for record in fits], self._map_limit()):
                fits = fits[: len(fits) // 2]
        works = self._to_works(assignment, fits, sweep.arrivals)
        self._dispatcher.offer(works, sweep=sweep)
        if len(fits) < len(parked):
            sweep.stop()
        rest = records[beyond:]
        if rest or not sweep.due:
            self._end(partition, records[-1].offset + 1, reading_on=bool(rest))
        return rest

    def _end(self, partition: int, at: int, *, reading_on: bool = False) -> None:
        """End a sweep that has read everything below `at`, and go back to the frontier unless that is being read."""
        assignment, sweep = self._running.pop(partition)
        with self._dispatcher.locked():
            for offset in sweep.passed(min(at, sweep.end)):
                assignment.tracker.gone(offset)
            sweep.ended(time.monotonic())
            frontier = assignment.tracker.position
        if not reading_on and self._consumer.position(partition) != frontier:
            self._consumer.seek(partition, frontier)

    def forget(self, but: int | None = None) -> None:
        """Give up all sweeps (`but` that of one partition): somebody else sets the positions."""
        self._running = {partition: found for partition, found in self._running.items() if partition == but}

    def removed(self, partition: int) -> bool:
        """Count what retention has removed before a sweep came to it, and end the sweep; False where none runs.

        The position is then still to be set.
        """
        found = self._running.pop(partition, None)
        if found is None:
            return False
        assignment, _ = found
        try:
            start = self._consumer.start_of_log(partition, _ASK_WITHIN)
        except Exception as error:  # noqa: BLE001  # no answer: the next sweep meets it again
            log.warning("Start of the log not known yet, asking again", partition=partition, error=str(error))
        else:
            self._drop(assignment, start)
        return True

    def _drop(self, assignment: Assignment, start: int) -> None:
        with self._dispatcher.locked():
            lost = assignment.parking.removed_below(start) if assignment.parking is not None else []
            for offset in lost:
                assignment.tracker.gone(offset)
        if lost:
            self._metrics.lost_by_retention.inc(len(lost))
            log.error(
                "Parked requests were removed by retention before their turn came",
                partition=assignment.partition,
                offset=lost[0],
                count=len(lost),
                hint="raise retention.ms or retention.bytes of the request topic above what its backlog takes",
            )
