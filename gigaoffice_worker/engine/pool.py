"""The handler threads: take, attempt, deliver, and take again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from gigaoffice_worker.core.judgement import Retry
from gigaoffice_worker.core.records import NO_CALL, Attempt, AttemptEnd, Outcome
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.call_stack import call_stack
from gigaoffice_worker.engine.dispatcher import Dispatcher, Late, PassedOn
from gigaoffice_worker.engine.failure_log import FailureLog, tell_without_call, where
from gigaoffice_worker.engine.processor import Processor, overdue
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# A handler call that took this long is worth a line of its own; quicker ones are told at DEBUG, or the log would cost
# more than the work.
TELL_FROM = 0.1
# So many calls are told with their stacks when the worker stops and has to wait for them.
_MAX_TOLD = 10

Judged = Outcome | Retry | Late | PassedOn
# What is not for the request that ran.
_NOT_ITS_OWN: Final = (Late, PassedOn)


class Pool:
    """A fixed number of threads that call the handler. A thread whose call is overdue is abandoned and replaced.

    `deliver` hands an outcome on and says whether the request's lane may be opened at once.
    """

    def __init__(
        self,
        size: int,
        dispatcher: Dispatcher,
        processor: Processor,
        deliver: Callable[[Work, Outcome], bool],
        metrics: Metrics,
        failures: FailureLog,
        died: Callable[[BaseException], None],
    ) -> None:
        self._size = self._largest = size
        self._dispatcher = dispatcher
        self._processor = processor
        self._deliver = deliver
        self._metrics = metrics
        self.failures = failures
        self._died = died
        self._lock = threading.Lock()
        self._started = 0
        self._busy: dict[threading.Thread, tuple[Work, int]] = {}
        self._threads: set[threading.Thread] = set()
        self._abandoned: set[threading.Thread] = set()

    def start(self) -> None:
        for _ in range(self._size):
            self._start_thread()

    def _start_thread(self) -> None:
        with self._lock:
            self._started += 1
            thread = threading.Thread(target=self._run, name=f"handler-{self._started}", daemon=True)
            self._threads.add(thread)
        thread.start()

    @property
    def size(self) -> int:
        """How many handler calls may run at once."""
        return self._size

    def resize(self, size: int) -> None:
        """Let `size` handler calls run at once. Threads are added, never taken away: idle ones cost next to nothing."""
        self._size, self._largest = size, max(size, self._largest)
        self._dispatcher.change(lambda admission, _: admission.limit_running(size))
        for _ in range(size - len(self._threads)):
            self._start_thread()

    @property
    def abandoned(self) -> int:
        """How many abandoned threads are still alive."""
        with self._lock:
            self._abandoned = {thread for thread in self._abandoned if thread.is_alive()}
            return len(self._abandoned)

    @property
    def too_many_hang(self) -> bool:
        """Whether more than twice as many threads hang in abandoned calls as the pool has, or had before it shrank."""
        return self.abandoned > 2 * self._largest

    def join(self, timeout: float) -> bool:
        """Wait for the threads that are not abandoned; False when one is still busy after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    # Calls that do not come back

    def abandon_overdue(self, limit: float) -> None:
        """Give up every attempt that has run for more than `limit` seconds: it failed, and its thread is replaced."""
        for work, run in self._dispatcher.in_hand.attempts(longer_than=limit):
            number, thread = work.attempt, self._thread_of(work, run)
            at, stack = call_stack(thread) if thread is not None else ("", "")
            made = overdue(limit, at)
            judged = self._dispatcher.conclude(work, run, made)
            if judged is Late.ABANDONED:
                continue  # It came back in this very moment.
            self._replace(thread)
            self._metrics.attempt_ended(AttemptEnd.TIMED_OUT, limit)
            if judged is Late.LOST:
                self._processor.forget(work)
                continue  # Another member answers it.
            if work.overdue == 1:
                facts = {"request_id": work.id, "attempt": number, "at": at, "seconds": limit, **where(work)}
                log.warning("Handler call hangs: given up, its thread replaced", **facts, stack=stack)
            self._tell_failed(work, number, made, judged)
            if isinstance(judged, Outcome) and self._deliver(work, judged):
                self._dispatcher.free(work)

    def tell_running(self, event: str) -> None:
        """Log each call that runs, with its request and its stack; of many, those that have run for longest."""
        running = sorted(self._dispatcher.in_hand.attempts(), key=lambda each: each[0].started_at)
        for work, run in running[:_MAX_TOLD]:
            thread = self._thread_of(work, run)
            at, stack = call_stack(thread) if thread is not None else ("", "")
            seconds = round(time.monotonic() - work.started_at, 3)
            facts = {"request_id": work.id, "attempt": work.attempt, "at": at, "seconds": seconds, **where(work)}
            log.warning(event, **facts, stack=stack, calls=len(running))

    def _thread_of(self, work: Work, run: int) -> threading.Thread | None:
        """Return the thread that is busy with a run; None when it has just come back."""
        # A copy, since the threads write to it without a lock.
        found = (thread for thread, busy_with in list(self._busy.items()) if busy_with == (work, run))
        return next(found, None)

    def _replace(self, thread: threading.Thread | None) -> None:
        """Start a thread in the place of one whose run was given up: that one ends when its call comes back."""
        if thread is not None:
            with self._lock:
                self._abandoned.add(thread)
                self._threads.discard(thread)
        self._start_thread()

    # The threads

    def _run(self) -> None:
        try:
            self._serve(threading.current_thread())
        except BaseException as error:  # noqa: BLE001  # a thread of ours that dies takes the process down
            self._died(error)

    def _serve(self, me: threading.Thread) -> None:
        done: Work | None = None
        returning = False
        bound = log.bind()  # what a module has is only on the way to a logger, with each look at its level
        while (work := self._dispatcher.take(done, returning=returning)) is not None:
            done, returning = None, True
            number, run = work.attempt, work.run
            self._busy[me] = (work, run)
            if run == 1:
                self._metrics.queue_wait.observe(work.started_at - work.received_at)
            made = self._processor.attempt(work)
            if made.used:
                self._metrics.used(made.used)
            judged = self._dispatcher.conclude(work, run, made)
            del self._busy[me]
            if judged is Late.ABANDONED or work.overdue_run == run:
                self._end_late(work, number, made, judged)
                return  # Another thread has taken its place.
            if isinstance(judged, _NOT_ITS_OWN):
                done = self._end_lost(work, number, made, judged)
                continue
            if made.ended not in NO_CALL:
                self._metrics.attempt_ended(made.ended, made.seconds)
            if made.ended is not AttemptEnd.ANSWERED:
                self._tell_failed(work, number, made, judged)
            elif made.seconds >= TELL_FROM or bound.is_enabled_for(logging.DEBUG):
                tell = log.info if made.seconds >= TELL_FROM else log.debug
                tell("Request answered", **_facts(work, number, made))
            if isinstance(judged, Outcome) and self._deliver(work, judged):
                done = work

    def _end_lost(self, work: Work, number: int, made: Attempt, judged: Late | PassedOn) -> Work | None:
        """Deliver what a run of a lost partition has brought for an heir; return that if its lane may be opened now."""
        if isinstance(judged, Late):
            self._processor.forget(work)
            self._drop(work, number, judged)
            return None
        log.info("Result kept: its partition was lost and has returned", **_facts(work, number, made))
        self._metrics.attempt_ended(made.ended, made.seconds)
        return judged.heir if self._deliver(judged.heir, judged.outcome) else None

    def _end_late(self, work: Work, number: int, made: Attempt, judged: Judged) -> None:
        """Deliver what an overdue call has brought after all, if it came in time for its request."""
        if isinstance(judged, Late):
            self._drop(work, number, judged)
            return
        log.info("Overdue call came back before its request was tried again", **_facts(work, number, made))
        self._tell_failed(work, number, made, judged)
        if isinstance(judged, Outcome) and self._deliver(work, judged):
            self._dispatcher.free(work)

    def _drop(self, work: Work, number: int, why: Late) -> None:
        self._metrics.late_results_dropped.inc()
        log.warning("Late result dropped", reason=why.value, request_id=work.id, attempt=number, **where(work))

    def _tell_failed(self, work: Work, number: int, made: Attempt, judged: Judged) -> None:
        if isinstance(judged, Retry):
            self.failures.retried(work, number, made, judged.wait)
        elif isinstance(judged, Outcome) and judged.reason is not None and made.failure is not None:
            self.failures.dead(work, number, made, judged.reason)
        elif made.ended in NO_CALL:
            tell_without_call(work, made.ended)


def _facts(work: Work, number: int, made: Attempt) -> dict[str, object]:
    return {"request_id": work.id, "attempt": number, "seconds": round(made.seconds, 3), **where(work)}
