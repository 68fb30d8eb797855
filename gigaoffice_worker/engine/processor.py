"""One attempt at one request: decode it, call the handler, and say in plain terms what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import structlog

from gigaoffice_worker.core.dedupe import Answers, Verdict
from gigaoffice_worker.core.errors import RejectedError, TransientError
from gigaoffice_worker.core.expiry import failure_of_expired
from gigaoffice_worker.core.frames import own_frame
from gigaoffice_worker.core.messages import (
    MAX_REQUEST_BYTES,
    REPLAYS,
    InvalidRequestError,
    decode_request,
    digest,
    last_values,
)
from gigaoffice_worker.core.records import Answer, Attempt, AttemptEnd, Deadline, Failure, Request
from gigaoffice_worker.core.results import UnusableResultError, encode_result, failure_told
from gigaoffice_worker.core.trace import trace_fields
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.failure_log import where

Handler = Callable[[Request], Any]

# A response must not outgrow its topic by an error's text.
LONGEST_MESSAGE = 10_000
# Timers of handlers that keep their deadline are not exact.
_EARLY = 0.01

log = structlog.get_logger(__name__)


def _context_variable(name: str) -> ContextVar[Any]:
    """Return the variable behind a name of structlog's context: set directly, it costs a tenth."""
    token = structlog.contextvars.bind_contextvars(**{name: None})[name]
    token.var.reset(token)
    return token.var


_REQUEST_ID: Final = _context_variable("request_id")


class Processor:
    """Runs attempts; called by several handler threads at once.

    An attempt may take `attempt_timeout` seconds, and what a handler's error asks for is cut at `retry_after_max`.
    Values of more than `max_request_bytes` are not decoded.
    """

    def __init__(
        self,
        handler: Handler,
        attempt_timeout: float,
        retry_after_max: float = 300.0,
        *,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        answers: Answers | None = None,
    ) -> None:
        self._answers = answers
        self._handler = handler
        self._max_request_bytes = max_request_bytes
        self._attempt_timeout = attempt_timeout
        self._retry_after_max = retry_after_max

    def attempt(self, work: Work) -> Attempt:
        """Run one attempt to its end, whatever the handler raises. Fills in the request's id."""
        record = work.record
        if work.owed is not None:
            return Attempt(AttemptEnd.RECOVERED, 0.0)
        try:
            work.id, payload = decode_request(record, self._max_request_bytes)
        except InvalidRequestError as error:
            work.id = error.answerable_id or ""
            return Attempt(AttemptEnd.INVALID, 0.0, failure=Failure("InvalidRequest", str(error)))
        if time.time() >= work.worth_until:
            return Attempt(AttemptEnd.EXPIRED, 0.0, failure=failure_of_expired())
        if self._answers is not None and (known := _answered_before(self._answers, work)):
            return known
        started = time.monotonic()
        request = Request(
            payload,
            work.id,
            record.key,
            last_values(record.headers) if record.headers else {},
            work.attempt,
            Deadline(started + self._attempt_timeout),
            record.topic,
            record.partition,
            record.offset,
            record.timestamp,
        )
        trace = trace_fields(request.headers) if request.headers else {}
        if trace:
            structlog.contextvars.bind_contextvars(**trace)
        bound = _REQUEST_ID.set(work.id)
        try:
            result = self._handler(request)
        except BaseException as error:  # noqa: BLE001  # also SystemExit: a handler must not end its thread
            seconds = time.monotonic() - started
            overdue = seconds > self._attempt_timeout - _EARLY
            made = _failed(error, seconds, self._retry_after_max, overdue=overdue)
        else:
            made = _answered(result, time.monotonic() - started)
        finally:
            _REQUEST_ID.reset(bound)
            if trace:
                structlog.contextvars.unbind_contextvars(*trace)
        return made._replace(used=request.used) if request.used else made

    def forget(self, work: Work) -> None:
        """Let nobody wait for the answer to a request whose run is over and whose partition is lost."""
        if self._answers is not None:
            self._answers.forget((work,))


def overdue(limit: float, at: str) -> Attempt:
    """Return what came of a call that hangs: it was given up after `limit` seconds, in the frame `at`."""
    failure = Failure("AttemptTimeout", f"no answer from the handler within {limit:g} seconds", at)
    return Attempt(AttemptEnd.TIMED_OUT, limit, failure=failure, hung=True)


def _answered_before(answers: Answers, work: Work) -> Attempt | None:
    """Return the end of an attempt without a call: its request was answered, or another one of its id runs."""
    replayed = any(name == REPLAYS for name, _ in work.record.headers)
    known = answers.begin(work, digest(work.record.value), replayed=replayed)
    if isinstance(known, Answer):
        return Attempt(AttemptEnd.DUPLICATE, 0.0, copied=known)
    if known is Verdict.WAIT:
        return Attempt(AttemptEnd.WAITS, 0.0)
    if known is Verdict.RUN_OTHER_VALUE:
        log.warning("Request has the id of another one, and another value: it runs", request_id=work.id, **where(work))
    return None


def _answered(result: object, seconds: float) -> Attempt:
    """Say what a handler's result means; one that cannot be written is no better the second time, but paid for."""
    try:
        encoded = encode_result(result)
    except UnusableResultError as error:
        return Attempt(AttemptEnd.UNUSABLE, seconds, failure=Failure("UnusableResult", str(error)), raised=error)
    return Attempt(AttemptEnd.ANSWERED, seconds, encoded, failure_told(encoded))


def _failed(error: BaseException, seconds: float, longest_wait: float, *, overdue: bool) -> Attempt:
    """Say what an error means; one that comes when the time is used up is a time-out, whatever its handler calls it.

    Whatever the error does when it is looked at (a property that raises, a text that is none) is its request's failure.
    """
    failed = AttemptEnd.TIMED_OUT if overdue else AttemptEnd.FAILED
    name = _readable(lambda: type(error).__name__, "Exception")
    failure = Failure(name, _readable(lambda: str(error)), _place(error))
    try:
        if isinstance(error, InvalidRequestError):
            # The payload did not convert to the type that the handler names: it did not run.
            return Attempt(AttemptEnd.INVALID, 0.0, failure=failure._replace(type="InvalidRequest", at=""))
        if isinstance(error, RejectedError):
            return Attempt(AttemptEnd.REJECTED, seconds, failure=failure, raised=error)
        if isinstance(error, TransientError):
            # A class of the handler's own may have skipped the constructor.
            ended = AttemptEnd.SHARED if getattr(error, "shared", False) else failed
            wait = _delay(getattr(error, "retry_after", None), longest_wait)
            return Attempt(ended, seconds, failure=failure, retry_after=wait, raised=error)
    except BaseException as broken:  # noqa: BLE001  # code of the handler's own runs here
        log.warning("Error of the handler cannot be read", error_type=failure.type, cause=type(broken).__name__)
    return Attempt(failed, seconds, failure=failure, raised=error)


def _readable(text: Callable[[], str], otherwise: str = "(the error has no readable message)") -> str:
    try:
        # By the plain type's own method: a subclass may do anything.
        return str.__getitem__(text(), slice(LONGEST_MESSAGE))
    except BaseException:  # noqa: BLE001  # code of the handler's own runs here
        return otherwise


def _place(error: BaseException) -> str:
    try:
        _forget_earlier_raises(error)
        return str(own_frame(error.__traceback__) or "")
    except BaseException:  # noqa: BLE001  # code of the handler's own runs here
        return ""


def _forget_earlier_raises(error: BaseException) -> None:
    """Cut the traceback of an object that was raised before: it would grow with each call, with all that they held."""
    each = error.__traceback__
    while each is not None and each.tb_next is not None:
        if each.tb_next.tb_frame.f_code is Processor.attempt.__code__:
            each.tb_next = None
        each = each.tb_next


def _delay(asked_for: object, longest: float) -> float | None:
    """Return the seconds that a handler asked for, if they are some: its mistake must not stop the worker."""
    if not isinstance(asked_for, int | float) or not asked_for >= 0:  # NaN is not
        return None
    return float(min(asked_for, longest))
