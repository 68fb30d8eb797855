"""For whoever writes a handler: try it with the worker's own decisions, without Kafka and without waiting.

    from gigaoffice_worker.testing import run

    def test_sums_are_answered():
        assert run(handle, {"query": "1 + 1"}).result == {"answer": 2}

`run` takes a request through everything that the worker would do with it: decoding, attempts with their deadline,
retries (whose delays pass at once), the outcome and how it is written. The worker is one without any setting.
"""

from __future__ import annotations

import contextvars
import itertools
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gigaoffice_worker.config import Config
from gigaoffice_worker.config import load as load_config
from gigaoffice_worker.core.admission import Admission
from gigaoffice_worker.core.documents import Response, read_response
from gigaoffice_worker.core.group_share import GroupLimits
from gigaoffice_worker.core.judgement import Judgement
from gigaoffice_worker.core.limits import ProviderLimits
from gigaoffice_worker.core.messages import RecordEncoder
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.records import ATTEMPT_TIMEOUT, Attempt, Deadline, Headers, Outcome, Record, Request
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.storm import StormGuard, StormLimits
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.call_stack import call_stack
from gigaoffice_worker.engine.encoding import record_encoder
from gigaoffice_worker.engine.processor import Processor, overdue
from gigaoffice_worker.handlers.loading import load, prepare

__all__ = ["DeadLetter", "NoOutcomeError", "Response", "Trial", "request", "run", "trial"]

_MOST_CALLS: Final = 1000
# A call that ends in the very moment of its time-out has ended by itself.
_GRACE: Final = 0.05


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as its reader gets it: why the request is there, and its own headers with those added.

    `at` is the innermost frame of the handler's own code, empty where there is none. `response` is the failed response
    that goes with it, None where no response can be addressed.
    """

    reason: str
    error_type: str
    error_message: str
    at: str
    attempts: int
    headers: dict[str, bytes]
    response: Response | None


class NoOutcomeError(AssertionError):
    """There is no outcome to return.

    The request would wait for ever, or nearly, since its handler says again and again that all calls must wait; or its
    response is nested so deeply that Python, called from where the test is, cannot read it.
    """


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt of a trial: its number, and what came of it."""

    number: int
    made: Attempt


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a request, and every attempt on the way."""

    outcome: Response | DeadLetter
    attempts: list[Tried]


def request(
    payload: dict[str, Any],
    *,
    id: str = "request",  # noqa: A002  # the field's name
    key: bytes | None = None,
    headers: Mapping[str, bytes] | None = None,
    attempt: int = 1,
    timeout: float = ATTEMPT_TIMEOUT,
    topic: str = "gigaoffice-requests",
    partition: int = 0,
    offset: int = 0,
    timestamp: float | None = None,
) -> Request:
    """Return a Request for a handler to be called with directly; its deadline is `timeout` seconds from now."""
    at = time.time() if timestamp is None else timestamp
    deadline = Deadline(time.monotonic() + timeout)
    return Request(payload, id, key, dict(headers or {}), attempt, deadline, topic, partition, offset, at)


def run(
    handler: Any,
    payload: dict[str, Any] | bytes | None,
    *,
    key: bytes | None = None,
    headers: Mapping[str, bytes | None] | None = None,
    max_attempts: int = 5,
    attempt_timeout: float = ATTEMPT_TIMEOUT,
) -> Response | DeadLetter:
    """Return what the worker would write for a request: its response, or its dead letter.

    `handler` is a function, a class or an object as a module would hold it, or a name as WORKER_HANDLER has it.
    `payload` is a request, or the bytes (or None) of a record's value. `attempt_timeout` is in seconds; a call that
    takes longer is left behind in a thread of its own. Raises ConfigurationError for what cannot be a handler, and
    NoOutcomeError where no outcome comes.
    """
    tried = trial(
        handler, payload, key=key, headers=headers, max_attempts=max_attempts, attempt_timeout=attempt_timeout
    )
    return tried.outcome


def trial(
    handler: Any,
    payload: dict[str, Any] | bytes | None,
    *,
    key: bytes | None = None,
    headers: Mapping[str, bytes | None] | None = None,
    max_attempts: int = 5,
    attempt_timeout: float = ATTEMPT_TIMEOUT,
    config: Config | None = None,
) -> Trial:
    """Do what `run` does, and return the attempts with their exceptions too.

    `config` has the settings of the worker that is played, but for the arguments beside it; by default each is its own.
    """
    config = config or load_config({})
    loaded = load(handler) if isinstance(handler, str) else prepare(handler)
    value = msgspec.json.encode(payload) if isinstance(payload, dict) else payload
    record = Record(config.topics.requests.name, 0, 0, time.time(), key, value, list((headers or {}).items()))
    work = Work(record, Assignment(record.topic, 0, 1, OffsetTracker(0), 0), record.size, 0.0)
    processor = Processor(
        loaded.call,
        attempt_timeout,
        config.worker.retry_after_max,
        max_request_bytes=config.worker.max_request_bytes,
    )
    attempts: list[Tried] = []
    try:
        for made, judged in _attempts(processor, work, RetryPolicy(max_attempts), attempt_timeout, attempts):
            if isinstance(judged, Outcome):
                return Trial(_written(work, judged.telling(work.used), record_encoder(config)), attempts)
            last = made
    finally:
        loaded.close()
    told = last.failure.type if last.failure else "no reason"
    raise NoOutcomeError(f"no outcome after {_MOST_CALLS} calls: the last one ended with {told}, shared by all calls")


def _attempts(
    processor: Processor, work: Work, policy: RetryPolicy, limit: float, attempts: list[Tried]
) -> Iterator[tuple[Attempt, object]]:
    """Run one attempt after the other, each judged as the worker judges it at the time at which it would begin."""
    # One call at once, and no other request: nothing else can be refused, fail or wait.
    limits = ProviderLimits(1, policy.ceiling, random.random, adaptive=False)
    admission = Admission(limits, GroupLimits(time.time), StormGuard(StormLimits(enabled=False)))
    judgement = Judgement(policy, admission)
    now = 0.0
    for run in itertools.count(1):
        if run > _MOST_CALLS:
            return
        work.attempt, work.run, number = work.attempt + 1, run, work.attempt + 1
        admission.started(work, now)
        made = _made_within(processor, work, limit)
        work.seconds += made.seconds
        work.failure = made.failure
        work.used += made.used
        attempts.append(Tried(number, made))
        judged = judgement.of(work, made, now, 0)
        yield made, judged
        # The clock does not wait.
        now = max(now + made.seconds, getattr(judged, "due", now), admission.opens_at(now, 0))


def _made_within(processor: Processor, work: Work, limit: float) -> Attempt:
    """Run an attempt in a thread of its own, which a call that hangs keeps."""
    made: list[Attempt] = []
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=context.run, args=(lambda: made.append(processor.attempt(work)),), name="handler-trial", daemon=True
    )
    thread.start()
    thread.join(limit + _GRACE)
    return made[0] if made else overdue(limit, call_stack(thread).at)


def _written(work: Work, outcome: Outcome, encoder: RecordEncoder) -> Response | DeadLetter:
    records = encoder.outgoing(
        work.record, work.id, outcome, seconds=work.seconds, attempts=work.attempt, at=time.time()
    )
    by_topic = {record.topic: record for record in records}
    answer = by_topic.get(encoder.responses)
    response = read_response(answer.value, answer.headers) if answer is not None else None
    if encoder.dlq in by_topic:
        return read_dead_letter(by_topic[encoder.dlq].headers, response)
    if response is None:
        message = "the response is nested too deeply to be read here"
        raise NoOutcomeError(message)
    return response


def read_dead_letter(headers: Headers, response: Response | None) -> DeadLetter:
    """Return a dead letter out of its record's headers, with the response that went with it."""
    found = {name: value or b"" for name, value in headers}
    names = ("reason", "error-type", "error-message", "error-at")
    reason, kind, message, at = (found.get(f"dlq-{name}", b"").decode("utf-8", "replace") for name in names)
    return DeadLetter(reason, kind, message, at, int(found.get("dlq-attempts", b"0")), found, response)
