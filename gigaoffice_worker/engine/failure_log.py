"""What is told of attempts that failed: in the log, and as the newest failures of the status page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import structlog

from gigaoffice_worker.core.messages import last_values
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Reason
from gigaoffice_worker.core.results import UnusableResultError
from gigaoffice_worker.core.trace import trace_fields
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.observe.failures import Failures
from gigaoffice_worker.observe.log_lines import format_traceback

log = structlog.get_logger(__name__)

Tracebacks = Literal["frames", "full", "off"]

_RETRIED: Final = "Attempt failed, the request will be tried again"
_DEAD: Final = "Request goes to the dead letter queue"
_MAX_FRAMES = 20
_MAX_CAUSES = 5


class FailureLog:
    """Tells of failed attempts and of dead letters; called by several threads at once.

    The error's own text may quote the request, so the log does not have it unless `tracebacks` is "full"; the
    dead letter has. The log itself limits lines that repeat an event, an error's type and its place.
    """

    def __init__(self, max_attempts: int, tracebacks: Tracebacks = "frames") -> None:
        self._max_attempts = max_attempts
        self._tracebacks = tracebacks
        self.newest = Failures()

    def retried(self, work: Work, number: int, made: Attempt, retry_in: float) -> None:
        """Tell of attempt `number` of a request that is tried again after `retry_in` seconds."""
        self._tell(_RETRIED, work, number, made, retry_in=round(retry_in, 3))

    def dead(self, work: Work, number: int, made: Attempt, reason: Reason) -> None:
        """Tell of attempt `number` of a request, which was the last one."""
        self._tell(_DEAD, work, number, made, reason=reason.value)

    def _tell(self, event: str, work: Work, number: int, made: Attempt, **more: object) -> None:
        failure = made.failure
        if failure is None:
            return
        facts: dict[str, object] = {"request_id": work.id, "attempt": number, **more, **where(work)}
        if type(made.raised) is UnusableResultError:  # a handler's exception may fail when it is asked what it is
            facts |= {"type": made.raised.kind, "in_result": made.raised.place}
        self.newest.note(failure.type, failure.at, event=event, **facts)
        place = {"at": failure.at} if failure.at else {}
        shown = self._traceback(made.raised) if made.raised is not None else ""
        traceback = {"traceback": shown} if shown else {}
        log.warning(event, error_type=failure.type, **place, max_attempts=self._max_attempts, **facts, **traceback)

    def _traceback(self, error: BaseException) -> str:
        if self._tracebacks == "off" or type(error) is UnusableResultError:
            return ""
        try:
            return format_traceback(error) if self._tracebacks == "full" else "\n".join(_frames(error))
        except BaseException:  # noqa: BLE001  # an exception of the handler's own may fail in any way when looked at
            return ""


def tell_dead_without_attempt(work: Work, failure: Failure, reason: Reason) -> None:
    """Tell of a dead letter that no attempt has brought about."""
    facts = {"request_id": work.id, "attempt": work.attempt, "reason": reason.value, **where(work)}
    log.warning(_DEAD, error_type=failure.type, **facts)


def tell_without_call(work: Work, ended: AttemptEnd) -> None:
    """Tell of a request that needed neither a call nor a dead letter."""
    log.debug("Request ended without a call", ended=ended.value, request_id=work.id, **where(work))


def _frames(error: BaseException) -> Iterator[str]:
    """Yield where an error and its causes were raised, first cause first: file, line and function, never a value."""
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and not any(each is known for known in chain) and len(chain) < _MAX_CAUSES:
        chain.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    for cause in reversed(chain):
        places = []
        traceback = cause.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            places.append(f"  {code.co_filename}:{traceback.tb_lineno} {code.co_qualname}")
            traceback = traceback.tb_next
        yield type(cause).__name__
        yield from places[-_MAX_FRAMES:]


def where(work: Work) -> dict[str, object]:
    """Return the facts that say which record a log line is about, and which trace it belongs to."""
    record = work.record
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return {**place, **trace_fields(last_values(record.headers))} if record.headers else place
