"""The handler threads: take, attempt, deliver, and take again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import structlog

from gigaoffice_worker.core.messages import last_values
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome
from gigaoffice_worker.core.trace import trace_fields
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.dispatcher import Dispatcher, Late
from gigaoffice_worker.engine.processor import Processor
from gigaoffice_worker.observe.failures import Failures
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# A handler call that took this long is worth a line of its own; quicker ones are told at DEBUG, or the log would cost
# more than the work.
TELL_FROM = 0.1


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
        died: Callable[[BaseException], None],
    ) -> None:
        self._size = size
        self._dispatcher = dispatcher
        self._processor = processor
        self._deliver = deliver
        self._metrics = metrics
        self._died = died
        self._lock = threading.Lock()
        self._started = 0
        self._busy: dict[threading.Thread, tuple[Work, int]] = {}
        self._threads: set[threading.Thread] = set()
        self._abandoned: set[threading.Thread] = set()
        self.failures = Failures()

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
    def abandoned(self) -> int:
        """How many abandoned threads are still alive."""
        with self._lock:
            self._abandoned = {thread for thread in self._abandoned if thread.is_alive()}
            return len(self._abandoned)

    @property
    def all_hanging(self) -> bool:
        """Whether more threads hang in abandoned calls than the pool has."""
        return self.abandoned > self._size

    def join(self, timeout: float) -> bool:
        """Wait for the threads that are not abandoned; False when one is still busy after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def abandon_overdue(self, limit: float) -> None:
        """Give up every attempt that has run for more than `limit` seconds: it failed, and its thread is replaced."""
        for work, run in self._dispatcher.running(longer_than=limit):
            number = work.attempt
            failure = Failure("AttemptTimeout", f"no answer from the handler within {limit:g} seconds")
            outcome = self._dispatcher.conclude(work, run, Attempt(AttemptEnd.TIMED_OUT, limit, failure=failure))
            if outcome is Late.ABANDONED:
                continue  # It came back in this very moment.
            self._replace(work, run)
            self._metrics.attempt_ended(AttemptEnd.TIMED_OUT, limit)
            if outcome is Late.LOST:
                continue  # Another member answers it.
            self._tell_failed(work, number, failure, outcome)
            if isinstance(outcome, Outcome) and self._deliver(work, outcome):
                self._dispatcher.free(work)

    def _replace(self, work: Work, run: int) -> None:
        with self._lock:
            # A copy, since the threads write to it without a lock. A thread that came back just now is not in it.
            for thread, busy_with in list(self._busy.items()):
                if busy_with == (work, run):
                    self._abandoned.add(thread)
                    self._threads.discard(thread)
        self._start_thread()

    def _run(self) -> None:
        try:
            self._serve(threading.current_thread())
        except BaseException as error:  # noqa: BLE001  # a thread of ours that dies takes the process down
            self._died(error)

    def _serve(self, me: threading.Thread) -> None:
        done: Work | None = None
        returning = False
        while (work := self._dispatcher.take(done, returning=returning)) is not None:
            done, returning = None, True
            number, run = work.attempt, work.run
            self._busy[me] = (work, run)
            if run == 1:
                self._metrics.queue_wait.observe(work.started_at - work.received_at)
            made = self._processor.attempt(work)
            outcome = self._dispatcher.conclude(work, run, made)
            del self._busy[me]
            if isinstance(outcome, Late):
                self._metrics.late_results_dropped.inc()
                log.warning(
                    "Late result dropped", reason=outcome.value, request_id=work.id, attempt=number, **where(work)
                )
                if outcome is Late.ABANDONED:
                    return
                continue
            if made.ended is not AttemptEnd.INVALID:
                self._metrics.attempt_ended(made.ended, made.seconds)
            if made.ended is AttemptEnd.ANSWERED:
                if made.seconds >= TELL_FROM or log.is_enabled_for(logging.DEBUG):
                    tell = log.info if made.seconds >= TELL_FROM else log.debug
                    tell("Request answered", **_facts(work, number, made))
            elif made.failure is not None:
                self._tell_failed(work, number, made.failure, outcome)
            if outcome is not None and self._deliver(work, outcome):
                done = work

    def _tell_failed(self, work: Work, number: int, failure: Failure, outcome: Outcome | None) -> None:
        """Log a failure without the handler's message, which may quote the request; the dead letter has it."""
        facts: dict[str, object] = {"request_id": work.id, "attempt": number, **where(work)}
        place = {"at": failure.at} if failure.at else {}
        if outcome is None:
            event = "Attempt failed, the request will be tried again"
        else:
            event = "Request goes to the dead letter queue"
            facts["reason"] = outcome.reason.value if outcome.reason else None
        self.failures.note(failure.type, failure.at, event=event, **facts)
        log.warning(event, error_type=failure.type, **place, **facts)


def where(work: Work) -> dict[str, object]:
    """Return the facts that say which record a log line is about, and which trace it belongs to."""
    record = work.record
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return {**place, **trace_fields(last_values(record.headers))}


def _facts(work: Work, number: int, made: Attempt) -> dict[str, object]:
    return {"request_id": work.id, "attempt": number, "seconds": round(made.seconds, 3), **where(work)}
