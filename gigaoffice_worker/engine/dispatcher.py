"""The one lock: hands work to threads, and guards the scheduler, the admission and the offset trackers.

No I/O happens under the lock. Handler threads take work and conclude attempts; the consumer thread offers, settles and
asks what may be committed; `in_hand` answers the main thread, which gives up attempts that are overdue.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from gigaoffice_worker.core.admission import Admission
from gigaoffice_worker.core.dedupe import Answers
from gigaoffice_worker.core.judgement import Judgement, Retry
from gigaoffice_worker.core.parking import Sweep
from gigaoffice_worker.core.records import NO_CALL, Attempt, AttemptEnd, Outcome
from gigaoffice_worker.core.scheduler import Scheduler
from gigaoffice_worker.core.work import Assignment, Stage, Work
from gigaoffice_worker.engine.idle_threads import QUICK_CALL, IdleThreads
from gigaoffice_worker.engine.in_hand import InHand

# The ends of an attempt that settle its request for good, however late they come.
_WORTH_TAKING = frozenset({AttemptEnd.ANSWERED, AttemptEnd.REJECTED, AttemptEnd.UNUSABLE})
# A wait of the interpreter takes no more than some hundred years, and a retry may be configured to be due later.
_LONGEST_NAP = 600.0
_WAITING = (Stage.QUEUED, Stage.WAITING_RETRY)
_EXPIRE_AT_ONCE = 500


class Late(Enum):
    """Why the result of an attempt counts no more."""

    ABANDONED = "abandoned"
    LOST = "partition-lost"


class PassedOn(NamedTuple):
    """The result of a run whose partition was lost and has returned: it answers `heir`, the request received anew."""

    heir: Work
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Counts:
    """How many requests are at which stage.

    `starving_since` is since when (monotonic seconds) one has been ready although nothing holds it back and no thread
    is busy; None as it should be.
    """

    queued: int
    running: int
    waiting_retry: int
    delivering: int
    starving_since: float | None = field(default=None, compare=False)


class Dispatcher:
    """All decisions about requests in hand, made under one lock."""

    def __init__(
        self,
        scheduler: Scheduler,
        admission: Admission,
        judgement: Judgement,
        answers: Answers | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self.admission = admission
        self._judgement = judgement
        self._answers = answers
        self._clock = clock
        self._lock = threading.Lock()
        self._idle = IdleThreads(self._lock)
        self.in_hand = InHand(self._lock, clock, scheduler.old_runs.heir)
        self._running, self._delivering = self.in_hand.running, self.in_hand.delivering
        # When the first of what is in hand expires, at the earliest, in seconds since the epoch.
        self._next_expiry = math.inf
        self._stopped = False

    # Handler threads

    def take(self, done: Work | None = None, *, returning: bool = False) -> Work | None:
        """Wait for the next request to run; None when the pool shall end.

        `done` is the request that the calling thread has just published: its lane is opened first. `returning` says
        that the thread comes from a request, and goes on with what is ready at once.
        """
        me = threading.get_ident()
        idle, admission = self._idle, self.admission
        with self._lock:
            now = self._clock()
            if done is not None:
                self._scheduler.free(done, now)
            while not self._stopped:
                work = None
                if idle.may_take(me, now, returning=returning) and admission.opens_at(now, len(self._running)) <= now:
                    work = self._scheduler.take(now, admission.preference)
                if work is not None:
                    admission.started(work, now)
                    idle.took(me, now)
                    self._running[work] = work.run
                    # Promote a follower before leaving: one idle thread must wait with a time-out, or nobody wakes for
                    # what is due later. A leader that looks at once sees to the rest.
                    if not (idle.looks_soon and idle.calls_are_quick) and (
                        self._scheduler.ready or not idle.has_leader
                    ):
                        self._wake(now)
                    return work
                returning = False
                if self._scheduler.ready:
                    admission.waits(now)
                idle.wait(now, _nap(admission.opens_at(now, len(self._running)), self._scheduler, now))
                now = self._clock()
            return None

    def _wake(self, now: float) -> None:
        """See to it that idle threads look at what is ready: one, or as many as slow calls have work for."""
        admission, idle = self.admission, self._idle
        one = idle.calls_are_quick or admission.probing or admission.opens_at(now, len(self._running)) > now
        idle.wake(1 if one else max(1, self._scheduler.ready))

    def conclude(self, work: Work, run: int, made: Attempt) -> Outcome | Retry | Late | PassedOn:
        """Note what came of run number `run`: an outcome to deliver, a retry, or why it is too late."""
        with self._lock:
            if self._running.get(work) != run:
                return self._conclude_late(work, run, made)
            del self._running[work]
            if made.hung:
                work.overdue_run, work.overdue_seconds = run, made.seconds
            if self.in_hand.observed:
                self.in_hand.changed()
            now = self._clock()
            if self._scheduler.ended(work, None if made.ended in NO_CALL else made.seconds):
                self._wake(now)
            probing = self.admission.probing
            if work.assignment.lost:
                return self._conclude_lost(work, made, now)
            self._idle.ended(made.seconds)
            work.seconds += made.seconds
            work.failure = made.failure
            if made.used:
                work.used += made.used
            judged = self._judgement.of(work, made, now, len(self._running))
            if isinstance(judged, Retry):
                self._scheduler.retry(work, judged.due, behind=judged.behind)
                # The leader may wait for a later due time.
                self._wake(now)
                return judged
            if probing:
                self._wake(now)
            return self._delivered_next(work, judged)

    def _conclude_lost(self, work: Work, made: Attempt, now: float) -> Late | PassedOn:
        """Drop the result of a run whose partition was lost, unless that has returned and the same request waits."""
        self.admission.lost(work, made, now)
        heir = self._scheduler.old_runs.heir(work) if made.ended is AttemptEnd.ANSWERED else None
        self._scheduler.free(work, now)
        if heir is not None:
            # It is delivered and never taken: whatever lets no attempt start, the drain too, must not keep it waiting.
            self._scheduler.withdraw(heir)
        self._wake(now)
        if heir is None:
            return Late.LOST
        heir.id, heir.attempt = work.id, work.attempt
        heir.seconds, heir.used = work.seconds + made.seconds, work.used + made.used
        return PassedOn(heir, self._delivered_next(heir, Outcome(made.result, made.failure)))

    def _conclude_late(self, work: Work, run: int, made: Attempt) -> Outcome | Late:
        """Take the result of a run that was given up, if the next one has not begun: it is paid for."""
        waits = work.run == work.overdue_run == run and work.stage in _WAITING
        if not waits or made.ended not in _WORTH_TAKING:
            return Late.ABANDONED
        if work.assignment.lost:
            return Late.LOST
        now = self._clock()
        self._scheduler.withdraw(work)
        work.seconds += made.seconds - work.overdue_seconds
        work.failure = made.failure
        work.used += made.used
        judged = self._judgement.of(work, made, now, len(self._running))
        if isinstance(judged, Retry):  # The storm guard has tripped meanwhile, and wants nothing to end badly.
            self._scheduler.retry(work, judged.due, behind=judged.behind)
            return Late.ABANDONED
        self._wake(now)
        return self._delivered_next(work, judged)

    def _delivered_next(self, work: Work, outcome: Outcome) -> Outcome:
        work.stage = Stage.DELIVERING
        self._delivering.add(work)
        return outcome.telling(work.used) if work.used else outcome

    # Delivery

    def free(self, work: Work) -> None:
        """Open the lane of a request whose outcome was published later than by its own thread."""
        with self._lock:
            now = self._clock()
            self._scheduler.free(work, now)
            self._wake(now)

    # The consumer thread

    def offer(
        self,
        works: Iterable[Work],
        answered: Collection[Work] = frozenset(),
        *,
        sweep: Sweep | None = None,
    ) -> int:
        """Queue requests that were received, or found by a sweep, unless they are done already or better parked.

        Those in `answered` run no more: they are settled at once, unless they are done already. Returns how many were.
        """
        settled = 0
        with self._lock:
            now, wall = self._clock(), time.time()
            for work in works:
                assignment = work.assignment
                # One that has expired is answered at once, so it need not be parked either.
                ends = work.worth_until <= wall or work.owed is not None or (bool(answered) and work in answered)
                if not (assignment.resume(work, sweep) if sweep else assignment.receive(work, known=ends)):
                    continue
                self._next_expiry = min(self._next_expiry, work.worth_until)
                if answered and work in answered:
                    assignment.settle(work)
                    settled += 1
                else:
                    self._scheduler.add(work, now)
            if self._scheduler.ready:
                self._wake(now)
        return settled

    def settle(self, works: Iterable[Work]) -> None:
        """Note that the outcomes of these requests are durable."""
        with self._lock:
            for work in works:
                self._delivering.discard(work)
                if not work.assignment.lost:
                    work.assignment.settle(work)
            self.in_hand.changed()

    def hold(self, reason: str) -> None:
        """Start no attempt until `release` is called with the same reason."""
        with self._lock:
            self.admission.holds.hold(reason)

    def release(self, reason: str) -> None:
        with self._lock:
            if self.admission.holds.release(reason):
                self._idle.wake_leader()

    def lease(self, until: float) -> None:
        """Let attempts start until `until`: from then on another member may own what is in hand."""
        with self._lock:
            if self.admission.holds.lease(until, self._clock()):
                self._idle.wake_leader()

    def forget(self, assignment: Assignment) -> None:
        """Drop what is queued of a lost partition; results that are still to come will be dropped too.

        Nobody waits for its outcomes that are on their way: they may arrive, and settle nothing.
        """
        with self._lock:
            assignment.lost = True
            self._scheduler.forget(assignment, self._running)
            waited = [work for work in assignment.tracker if work.stage in _WAITING]
            self._delivering.difference_update(assignment.tracker)
            self.in_hand.changed()
        if self._answers is not None:
            self._answers.forget(waited)

    def expire(self, assignments: Iterable[Assignment], now: float) -> list[Work]:
        """Take back what waits and is not worth a call any more at `now` (seconds since the epoch), for delivery.

        No more than a batch at once: the rest follows with the next call.
        """
        found: list[Work] = []
        with self._lock:
            if now < self._next_expiry:
                return found
            self._next_expiry = math.inf
            for work in itertools.chain.from_iterable(held.tracker for held in assignments):
                if work.stage not in _WAITING or len(found) == _EXPIRE_AT_ONCE or work.worth_until > now:
                    # One that runs is not cut short, and looked at again when it waits for another attempt.
                    if work.stage is not Stage.DELIVERING:
                        self._next_expiry = min(self._next_expiry, work.worth_until)
                    continue
                work.stage = Stage.DELIVERING
                found.append(work)
            if found:
                self._scheduler.withdraw_all(found)
                self._delivering.update(found)
        return found

    def intake_stopped(self) -> str | None:
        """Return the error type for which the storm guard stops intake; None while it does not.

        With nothing in hand there is nothing to probe with: intake then goes on until there is.
        """
        with self._lock:
            in_hand = self._scheduler.queued or self._scheduler.waiting_retry or self._running
            return self.admission.intake_stopped(self._clock()) if in_hand else None

    def change(self, what: Callable[[Admission, float], object]) -> None:
        """Change what the admission knows (`what` is called with it and the time), and let idle threads look again."""
        with self._lock:
            now = self._clock()
            what(self.admission, now)
            self._wake(now)

    def stop(self) -> None:
        """Send every handler thread home as soon as it asks for work."""
        with self._lock:
            self._stopped = True
            self._idle.wake_all()

    # The observers

    def counts(self) -> Counts:
        scheduler, admission = self._scheduler, self.admission
        with self._lock:
            now, since = self._clock(), scheduler.ready_since
            if since is not None and (self._running or admission.probing or admission.opens_at(now, 0) > now):
                since = None
            if since is not None:
                since = max(since, self._idle.last_take, admission.limits.gate.until)
            return Counts(scheduler.queued, len(self._running), scheduler.waiting_retry, len(self._delivering), since)

    def locked(self) -> threading.Lock:
        """Return the lock itself, for a snapshot of several trackers at one moment."""
        return self._lock


def _nap(opens: float, scheduler: Scheduler, now: float) -> float | None:
    """Return how long the leader may wait unless it is woken, if an attempt may start from `opens` on."""
    due: float | None = opens
    if opens <= now:
        if scheduler.ready:
            return QUICK_CALL
        due = scheduler.next_due
    if due is None or due == math.inf:
        return None
    return min(max(0.0, due - now), _LONGEST_NAP)
