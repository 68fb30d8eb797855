"""The one place of shared state: a lock around scheduler and offset trackers, and the conditions to wait on.

No I/O happens under the lock. Handler threads take work and conclude attempts; the consumer thread offers, settles and
asks what may be committed; the supervisor looks for attempts that are overdue.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from gigaoffice_worker.core.admission import Gate, StormGuard
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome, Reason
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.scheduler import Scheduler
from gigaoffice_worker.core.work import Assignment, Stage, Work

# A call quicker than this is worth no thread of its own: threads that fight for the interpreter cost more than it.
# While one thread takes quick calls in a row, the others leave them to it; once it stays away longer, they take over.
QUICK_CALL = 0.002
# A wait of the interpreter takes no more than some hundred years, and a retry may be configured to be due later.
_LONGEST_NAP = 600.0


class Late(Enum):
    """Why the result of an attempt counts no more."""

    ABANDONED = "abandoned"
    LOST = "partition-lost"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many requests are at which stage."""

    queued: int
    running: int
    waiting_retry: int
    delivering: int


class Dispatcher:
    """All decisions about requests in hand, made under one lock."""

    def __init__(
        self,
        scheduler: Scheduler,
        policy: RetryPolicy,
        gate: Gate,
        guard: StormGuard,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._scheduler = scheduler
        self._policy = policy
        self.gate = gate
        self.guard = guard
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._standby = threading.Condition(self._lock)
        self._bench = threading.Condition(self._lock)
        self._changed = threading.Condition(self._lock)
        # Whether anybody waits for a change, which is seldom: to notify nobody takes longer than to look.
        self._observed = False
        self._has_standby = False
        self._alert = False
        self._benched = 0
        self._called = 0
        self._holds: set[str] = set()
        self._leased_until = math.inf
        self._running: dict[Work, int] = {}
        self._delivering: set[Work] = set()
        self._probe: Work | None = None
        self._probes = 0
        self._last_take = 0.0
        self._last_taker = 0
        # What a call takes, as a moving average in seconds: a single one may have waited for the interpreter.
        self._call_seconds = QUICK_CALL
        self._stopped = False

    # Handler threads

    def take(self, done: Work | None = None, *, hot: bool = False) -> Work | None:
        """Wait for the next request to run; None when the pool shall end.

        `done` is the request that the calling thread has just published: its lane is opened first. `hot` says that
        the thread comes from a request, and goes on with what is ready at once.
        """
        me = threading.get_ident()
        with self._lock:
            now = self._clock()
            if done is not None:
                self._scheduler.free(done, now)
            while not self._stopped:
                work = self._next(now) if (hot and self._last_taker == me) or self._worth_a_thread(now) else None
                if work is not None:
                    self._last_take, self._last_taker = now, me
                    self._running[work] = work.run
                    # Whoever leaves with work sees to it that a thread stands by while any is idle, or nobody would
                    # wake for what is due later.
                    if self._scheduler.ready or not self._has_standby:
                        self._wake_idle(now)
                    return work
                hot = False
                self._wait(now)
                now = self._clock()
            return None

    def _worth_a_thread(self, now: float) -> bool:
        """Say whether another thread should take work, beside the one that took some last."""
        return self._call_seconds >= QUICK_CALL or now - self._last_take >= QUICK_CALL

    def _next(self, now: float) -> Work | None:
        if self._barred(now) or self.gate.closed(now):
            return None
        if self.guard.reason is None:
            return self._scheduler.take(now)
        if self._probe is not None:
            return self._scheduler.take(now, only=self._probe)
        work = self._scheduler.take(now)
        if work is not None:
            self._probe = work
        return work

    def _barred(self, now: float) -> bool:
        return bool(self._holds) or now > self._leased_until

    def _wait(self, now: float) -> None:
        """Wait as the one standby thread, which wakes by itself for what is due, or on the bench until called."""
        if self._has_standby:
            self._benched += 1
            self._bench.wait()
            self._benched -= 1
            self._called = max(0, self._called - 1)
            return
        self._has_standby = True
        nap = self._nap(now)
        self._alert = nap is not None and nap <= QUICK_CALL
        self._standby.wait(nap)
        self._has_standby = self._alert = False

    def _nap(self, now: float) -> float | None:
        if self._barred(now):
            return None
        if self.gate.closed(now):
            return min(self.gate.until - now, _LONGEST_NAP)
        if self._scheduler.ready and self._probe is None:
            return QUICK_CALL
        due = self._scheduler.next_due
        return min(max(0.0, due - now), _LONGEST_NAP) if due is not None else None

    def _wake_idle(self, now: float) -> None:
        """See to it that idle threads look at what is ready; one that will by itself in a moment is left alone.

        One is enough where calls are quick. Where they are not, all that there is work for are called at once: to let
        each call the next one would have each wait for the interpreter first.
        """
        if self._alert and self._call_seconds < QUICK_CALL:
            return
        shut = self._barred(now) or self.gate.closed(now) or self.guard.reason is not None
        wanted = 1 if shut or self._call_seconds < QUICK_CALL else max(1, self._scheduler.ready)
        if self._has_standby:
            wanted -= 1
            if not self._alert:
                self._standby.notify()
        more = min(wanted, self._benched) - self._called
        if more > 0:
            self._called += more
            self._bench.notify(more)

    def conclude(self, work: Work, run: int, made: Attempt) -> Outcome | Late | None:
        """Note what came of run number `run`: a verdict to deliver, None for a retry, or why it is too late."""
        with self._lock:
            if self._running.get(work) != run:
                return Late.ABANDONED
            del self._running[work]
            if self._observed:
                self._changed.notify_all()
            if work.assignment.lost:
                self._look_for_another_probe(work)
                return Late.LOST
            self._call_seconds += 0.2 * (made.seconds - self._call_seconds)
            work.seconds += made.seconds
            work.failure = made.failure
            verdict = self._judge(work, made)
            if verdict is not None:
                work.stage = Stage.DELIVERING
                self._delivering.add(work)
            return verdict

    def _judge(self, work: Work, made: Attempt) -> Outcome | None:
        now = self._clock()
        match made.ended:
            case AttemptEnd.ANSWERED:
                self._got_through(work, now)
                return Outcome(made.result, made.failure)
            case AttemptEnd.REJECTED:
                self._got_through(work, now)
                return Outcome(failure=made.failure, reason=Reason.REJECTED)
            case AttemptEnd.UNUSABLE:
                # The provider answered, so the gate has nothing to do with it; the guard has, since most often every
                # other result would be as unusable.
                self.gate.passed()
                failure = made.failure or Failure("UnusableResult", "")
                self.guard.finished(now, failure.type)
                return Outcome(failure=failure, reason=Reason.UNUSABLE_RESULT)
            case AttemptEnd.INVALID:
                work.attempt -= 1  # No handler was called.
                self._look_for_another_probe(work)
                self.guard.finished(now, None)
                return Outcome(failure=made.failure, reason=Reason.INVALID_REQUEST)
            case AttemptEnd.SHARED:
                work.attempt -= 1
                reason = made.failure.type if made.failure else "TransientError"
                until = self.gate.close(now, reason, made.retry_after, self._rng)
                self._scheduler.retry(work, until)
                self._wake_idle(now)
                return None
        return self._failed(work, made, now)

    def _failed(self, work: Work, made: Attempt, now: float) -> Outcome | None:
        storm = self.guard.reason is not None
        if storm:
            # While nearly everything fails, an attempt says nothing about its request.
            work.attempt -= 1
            self._probes += work is self._probe
            series = max(self._probes, work.attempt + 1)
            self._retry(work, now + self._policy.delay_after(series, self._rng, made.retry_after))
            return None
        if not self._policy.exhausted(work.attempt):
            self._retry(work, now + self._policy.delay_after(work.attempt, self._rng, made.retry_after))
            return None
        failure = made.failure or Failure("Unknown", "")
        self.guard.finished(now, failure.type)
        reason = Reason.TIMED_OUT if made.ended is AttemptEnd.TIMED_OUT else Reason.ATTEMPTS_EXHAUSTED
        return Outcome(failure=failure, reason=reason)

    def _retry(self, work: Work, due: float) -> None:
        self._scheduler.retry(work, due)
        # The standby thread may sleep towards a later due time.
        self._wake_idle(self._clock())

    def _got_through(self, work: Work, now: float) -> None:
        self.gate.passed()
        if work is self._probe:
            self._probe = None
            self._probes = 0
            self.guard.probe_passed()
            self._standby.notify()
        self.guard.finished(now, None)

    def _look_for_another_probe(self, work: Work) -> None:
        """Let another request probe, if `work` did: it will tell nothing."""
        if self._probe is work:
            self._probe = None
            self._wake_idle(self._clock())

    # Delivery

    def free(self, work: Work) -> None:
        """Open the lane of a request whose outcome was published later than by its own thread."""
        with self._lock:
            now = self._clock()
            self._scheduler.free(work, now)
            self._wake_idle(now)

    # The consumer thread

    def offer(self, works: Iterable[Work]) -> None:
        """Queue requests that were received, unless their offset is done already."""
        with self._lock:
            now = self._clock()
            for work in works:
                assignment = work.assignment
                if assignment.tracker.start(work.record.offset, work):
                    assignment.held_records += 1
                    assignment.held_bytes += work.size
                    self._scheduler.add(work, now)
            if self._scheduler.ready:
                self._wake_idle(now)

    def settle(self, works: Iterable[Work]) -> None:
        """Note that the outcomes of these requests are durable."""
        with self._lock:
            for work in works:
                self._delivering.discard(work)
                assignment = work.assignment
                if assignment.lost:
                    continue
                assignment.tracker.settle(work.record.offset)
                assignment.held_records -= 1
                assignment.held_bytes -= work.size
            if self._observed:
                self._changed.notify_all()

    def hold(self, reason: str) -> None:
        """Start no attempt until `release` is called with the same reason."""
        with self._lock:
            self._holds.add(reason)

    def release(self, reason: str) -> None:
        with self._lock:
            if reason in self._holds:
                self._holds.discard(reason)
                self._standby.notify()

    def lease(self, until: float) -> None:
        """Let attempts start until `until`: from then on another member may own what is in hand.

        It is asked for with each start, because a process that was frozen wakes up in all of its threads at once.
        """
        with self._lock:
            expired = self._clock() > self._leased_until
            self._leased_until = until
            if expired:
                self._standby.notify()

    def forget(self, assignment: Assignment) -> None:
        """Drop what is queued of a lost partition; results that are still to come will be dropped too."""
        with self._lock:
            assignment.lost = True
            self._scheduler.forget(assignment)
            probe = self._probe
            if probe is not None and probe.assignment is assignment and probe not in self._running:
                self._look_for_another_probe(probe)
            self._changed.notify_all()

    def advance(self, assignment: Assignment, position: int) -> None:
        """Note that the client has read up to `position`."""
        with self._lock:
            assignment.tracker.advance(position)

    def wait_quiet(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a change; True when no attempt runs and no outcome is undelivered."""
        with self._lock:
            if self._running or self._delivering:
                self._observed = True
                self._changed.wait(timeout)
                self._observed = False
            return not self._running and not self._delivering

    # The supervisor and the observers

    def overdue(self, limit: float) -> list[tuple[Work, int]]:
        """Return the attempts that have run for more than `limit` seconds, as (request, number of its run)."""
        with self._lock:
            now = self._clock()
            return [(work, number) for work, number in self._running.items() if now - work.started_at > limit]

    def intake_stopped(self) -> str | None:
        """Return the error type for which the storm guard stops intake; None while it does not.

        With nothing in hand there is nothing to probe with: intake then goes on until there is.
        """
        with self._lock:
            in_hand = self._scheduler.queued or self._scheduler.waiting_retry or self._running
            return self.guard.reason if in_hand else None

    def starved_for(self, now: float) -> float:
        """Return for how long work has been ready although nothing holds it back and no thread is busy."""
        with self._lock:
            since = self._scheduler.ready_since
            if since is None or self._running or self._barred(now) or self.gate.closed(now) or self.guard.reason:
                return 0.0
            return now - max(since, self._last_take, self.gate.until)

    def stop(self) -> None:
        """Send every handler thread home as soon as it asks for work."""
        with self._lock:
            self._stopped = True
            self._standby.notify_all()
            self._bench.notify_all()

    def counts(self) -> Counts:
        with self._lock:
            return Counts(
                self._scheduler.queued, len(self._running), self._scheduler.waiting_retry, len(self._delivering)
            )

    def held(self) -> frozenset[str]:
        """Return why no attempt starts."""
        with self._lock:
            expired = self._clock() > self._leased_until
            return frozenset(self._holds | {"session"} if expired else self._holds)

    def running(self) -> list[Work]:
        with self._lock:
            return list(self._running)

    def locked(self) -> threading.Lock:
        """Return the lock itself, for a snapshot of several trackers at one moment."""
        return self._lock
