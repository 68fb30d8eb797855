"""What may run next: order by key, and due times of retries."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from gigaoffice_worker.core.decoded_size import DecodedRoom
from gigaoffice_worker.core.old_runs import OldRuns
from gigaoffice_worker.core.ready import ByArrival, Ready
from gigaoffice_worker.core.work import Assignment, Lane, Stage, Work

Ordering = Literal["key", "partition", "none"]


@dataclass(order=True, slots=True)
class _Retry:
    due: float
    number: int
    work: Work = field(compare=False)


class Scheduler:
    """Decides which request runs next. Not thread-safe: the dispatcher's lock guards it.

    A *lane* is what must run one at a time and in order: the records of one key (`key`), of one partition
    (`partition`), or nothing (`none`, and records without a key under `key`). The first request of a lane is ready,
    running or waiting for its retry; the others wait behind it until `free` is called for it.

    Of what is ready, `ready` says what runs next: the request that was written first, unless it is told otherwise.
    """

    def __init__(self, ordering: Ordering, ready: Ready | None = None) -> None:
        self._ordering = ordering
        self._lanes: dict[Lane, deque[Work]] = {}
        self._ready = ready if ready is not None else ByArrival()
        self._retries: list[_Retry] = []
        # Ready, and too large to be decoded beside what runs.
        self._too_large: list[Work] = []
        self._decoded = DecodedRoom[Work]()
        self.old_runs = OldRuns()
        self._numbers = itertools.count()
        self._queued = 0
        self._newest = 0.0

    @property
    def queued(self) -> int:
        """How many requests have not begun an attempt and don't wait for a retry."""
        return self._queued

    @property
    def waiting_retry(self) -> int:
        """How many requests wait for the due time of their next attempt."""
        return len(self._retries)

    @property
    def ready(self) -> int:
        """How many requests could run now."""
        return len(self._ready)

    @property
    def ready_since(self) -> float | None:
        """When the request that runs next became ready."""
        work = self._ready.first()
        return work.ready_at if work is not None else None

    @property
    def next_due(self) -> float | None:
        """When the next retry is due."""
        return self._retries[0].due if self._retries else None

    def add(self, work: Work, now: float) -> None:
        """Queue a request that was just received."""
        self._queued += 1
        work.turn = work.written_at
        self._newest = max(self._newest, work.turn)
        work.stage = Stage.QUEUED
        work.number = next(self._numbers)
        work.lane = _lane_of(work, self._ordering)
        if work.lane is not None:
            lane = self._lanes.get(work.lane)
            if lane is not None:
                lane.append(work)
                return
        if self.old_runs.running and (behind := self.old_runs.lane_behind(work)) is not None:
            work.lane = behind
            self._lanes[behind] = deque([work])
            return
        if work.lane is not None:
            self._lanes[work.lane] = deque()
        work.ready_at = now
        self._ready.add(work, fresh=True)

    def take(self, now: float, preference: Callable[[Work], Any] | None = None) -> Work | None:
        """Return the request to run now, as begun at `now`; None when nothing is ready.

        It is the one for which `preference` gives the least, or the first in the usual order.
        """
        if self._retries:
            self._promote_due(now)
        work = self._pop_fitting(now) if preference is None else self._pop_preferred(preference, now)
        if work is None:
            return None
        if work.decoded:
            self._decoded.take(work, work.decoded)
        self._queued -= 1
        work.stage = Stage.RUNNING
        work.attempt += 1
        work.run += 1
        work.started_at = now
        if work.first_at is None:
            work.first_at = now
        return work

    def _pop_fitting(self, now: float) -> Work | None:
        """Take off what runs next, and set aside what is too large beside what runs: the others don't wait for it."""
        room = self._decoded
        if room.waiting:
            due = room.due(now)
            if due is not None and room.fits(due, due.decoded, now) and self._ready.remove(due):
                return due
        while (work := self._ready.pop()) is not None and work.decoded and not room.fits(work, work.decoded, now):
            self._ready.put_back(work)
            self._too_large.append(work)
            room.wait(work, now)
        return work

    def _pop_preferred(self, preference: Callable[[Work], Any], now: float) -> Work | None:
        fitting = [work for work in self._ready if self._decoded.fits(work, work.decoded, now)]
        if not fitting:
            return None
        work = min(fitting, key=preference)
        self._ready.remove(work)
        return work

    def ended(self, work: Work, seconds: float | None) -> bool:
        """Note that a run of a request is over, after so many seconds of a call (None: there was none).

        True when others become ready, because what it was decoded to is gone.
        """
        self._ready.ended(work, seconds)
        if not work.decoded:
            return False
        self._decoded.free(work.decoded)
        waiting, self._too_large = self._too_large, []
        for each in waiting:
            self._ready.add(each, fresh=False)
        return bool(waiting)

    def _promote_due(self, now: float) -> None:
        """Make ready what waited for its due time."""
        while self._retries and self._retries[0].due <= now:
            work = heapq.heappop(self._retries).work
            work.stage = Stage.QUEUED
            self._queued += 1
            self._make_ready(work, now)

    def retry(self, work: Work, due: float, *, behind: bool = False) -> None:
        """Let a request that ran wait until `due`, then its turn; its lane stays closed.

        Its turn is that of its age, or with `behind` that of what came last.
        """
        work.stage = Stage.WAITING_RETRY
        if behind:
            work.turn = max(work.turn, self._newest)
            work.number = next(self._numbers)
        heapq.heappush(self._retries, _Retry(due, work.number, work))

    def withdraw(self, work: Work) -> None:
        """Take back a request that waits for its next attempt, because it needs none; its lane stays closed."""
        self._decoded.waiting.pop(work, None)
        if self._ready.remove(work):
            self._ready.put_back(work)
            self._queued -= 1
            return
        if work in self._too_large:
            self._too_large.remove(work)
            self._queued -= 1
            return
        self._retries = [retry for retry in self._retries if retry.work is not work]
        heapq.heapify(self._retries)

    def withdraw_all(self, works: Iterable[Work]) -> None:
        """Take back requests that need no attempt any more, wherever they wait.

        The lane of one that was its first stays closed, as `withdraw` leaves it; one behind it belongs to no lane any
        more.
        """
        gone = set(works)
        for lane in {work.lane for work in gone if work.lane is not None}:
            queue = self._lanes.get(lane, deque())
            for work in gone.intersection(queue):
                work.lane = None
                queue.remove(work)
        self._keep(lambda work: work not in gone)

    def free(self, work: Work, now: float) -> Work | None:
        """Open the lane of a request that needs no further attempt, and return the next one in it, which may run now.

        Where the request's assignment is lost, that is the lane which waited for the run.
        """
        name = self.old_runs.ended(work) if work.assignment.lost else work.lane
        lane = self._lanes.get(name) if name is not None else None
        if name is None or lane is None:
            return None
        if not lane:
            del self._lanes[name]
            return None
        following = lane.popleft()
        self._make_ready(following, now)
        return following

    def forget(self, assignment: Assignment, running: Iterable[Work]) -> None:
        """Drop every request of a lost partition that is not running.

        Until `free` is called for those that are, nothing runs beside them in their lanes, should the partition return.
        """
        self.old_runs.add(work for work in running if work.assignment is assignment)
        self._lanes = {lane: queue for lane, queue in self._lanes.items() if lane[0] is not assignment}
        self._keep(lambda work: work.assignment is not assignment)

    def _keep(self, wanted: Callable[[Work], bool]) -> None:
        """Drop all that is not `wanted` and waits for a thread or for its time; the lanes are the caller's."""
        self._ready.keep(wanted)
        self._too_large = list(filter(wanted, self._too_large))
        self._decoded.keep(wanted)
        self._retries = [retry for retry in self._retries if wanted(retry.work)]
        heapq.heapify(self._retries)
        self._queued = self.ready + len(self._too_large) + sum(map(len, self._lanes.values()))

    def retries(self) -> Iterator[tuple[float, Work]]:
        """Walk over what waits for a retry, as (due, request), in no order."""
        return ((retry.due, retry.work) for retry in self._retries)

    def _make_ready(self, work: Work, now: float) -> None:
        work.ready_at = now
        self._ready.add(work, fresh=False)


def _lane_of(work: Work, ordering: Ordering) -> Lane | None:
    if ordering == "none":
        return None
    if ordering == "partition":
        return (work.assignment, None)
    key = work.record.key
    # An empty key is a key; records without one are in no order.
    return None if key is None else (work.assignment, key)
