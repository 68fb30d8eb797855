"""What flows through the worker: records in, requests to the handler, outcomes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from gigaoffice_worker.core.usage import Usage, summed

Headers = Sequence[tuple[str, bytes | None]]


class Source(NamedTuple):
    """Where a record stands in Kafka: the identity of a delivery."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}"


class Record(NamedTuple):
    """A record of the request topic as Kafka holds it. `timestamp` is in seconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: float
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def source(self) -> Source:
        return Source(self.topic, self.partition, self.offset)

    @property
    def size(self) -> int:
        """Bytes that the record's content takes: key, value and headers."""
        size = len(self.key or b"") + len(self.value or b"")
        if self.headers:
            size += sum(len(name) + len(value or b"") for name, value in self.headers)
        return size


class Deadline:
    """The moment at which an attempt is given up, asked by its handler."""

    __slots__ = ("_at",)

    def __init__(self, at: float) -> None:
        """Set the deadline to `at`, in seconds of the monotonic clock."""
        self._at = at

    def remaining(self) -> float:
        """Return the seconds left, never less than zero."""
        return max(0.0, self._at - time.monotonic())

    def __repr__(self) -> str:
        return f"Deadline(remaining={self.remaining():.3f})"


ATTEMPT_TIMEOUT = 120.0
"""Seconds that one handler call may take, unless WORKER_ATTEMPT_TIMEOUT says otherwise."""


@dataclass(slots=True)
class Request:
    """What a handler is called with; its own copy, to keep or change.

    `headers` has the last value of a repeated name, and `b""` for a header without a value. `attempt` counts from 1.
    `timestamp` is the record's, in seconds since the epoch. The defaults are for tests: `Request({"query": "…"})`.
    """

    payload: dict[str, Any]
    id: str = "request"
    key: bytes | None = None
    headers: dict[str, bytes] = field(default_factory=dict)
    attempt: int = 1
    deadline: Deadline = field(default_factory=lambda: Deadline(time.monotonic() + ATTEMPT_TIMEOUT))
    topic: str = "requests"
    partition: int = 0
    offset: int = 0
    timestamp: float = field(default_factory=time.time)
    # What the handler has reported in this attempt, in order.
    _used: tuple[Usage, ...] = field(default=(), init=False, repr=False, compare=False)

    @property
    def used(self) -> tuple[Usage, ...]:
        """What was reported by `usage`; a handler cannot put something else in its place by mistake."""
        return self._used

    def usage(
        self,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        model: str | None = None,
        cost: float | None = None,
    ) -> None:
        """Report what a call used; several reports of one attempt add up. `cost` is in the handler's own currency.

        Raises TypeError or ValueError for what is no number, below zero, or above 10**15.
        """
        self._used = (*self._used, Usage.reported(input_tokens, output_tokens, model, cost))


class Reason(StrEnum):
    """Why a request ended in the dead letter queue."""

    INVALID_REQUEST = "invalid-request"
    REJECTED = "rejected"
    UNUSABLE_RESULT = "unusable-result"
    ATTEMPTS_EXHAUSTED = "attempts-exhausted"
    TIMED_OUT = "timed-out"
    RESPONSE_TOO_LARGE = "response-too-large"
    EXPIRED = "expired"


class Failure(NamedTuple):
    """Why an attempt or a request failed: the error's type, its message in plain text, and where it was raised.

    `at` is the innermost frame of the handler's own code, such as `answers.py:7 handle`; empty where there is none.
    """

    type: str
    message: str
    at: str = ""


class Answer(NamedTuple):
    """A completed response that was given: its value, the request that it was given to, and the digest of that."""

    value: bytes
    source: Source
    digest: bytes


class Outcome(NamedTuple):
    """How a request ended.

    With `reason` it goes to the dead letter queue, without it is answered with `result`, which is JSON (`failure` is
    then set where the handler itself answered `"success": false`). `usage` is what its calls used, as JSON.
    """

    result: bytes | None = None
    failure: Failure | None = None
    reason: Reason | None = None
    usage: bytes | None = None
    # The response to another request, which is this one's as well.
    copied: Answer | None = None

    def telling(self, reports: Sequence[Usage]) -> Outcome:
        """Return this outcome with the sum of what its request's calls reported."""
        used = summed(reports) if reports else None
        return self._replace(usage=used.encode()) if used else self


class OutgoingRecord(NamedTuple):
    """One record to be written: a response or a dead letter, encoded. `partition` None lets the client choose."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int | None = None

    @property
    def size(self) -> int:
        """Bytes of content, as `Record.size` counts them."""
        size = len(self.key or b"") + len(self.value or b"")
        for name, value in self.headers:
            size += len(name) + len(value)
        return size


class AttemptEnd(StrEnum):
    """How an attempt ended."""

    ANSWERED = "answered"
    INVALID = "invalid"
    EXPIRED = "expired"
    # A request of its id and value was answered, or runs.
    DUPLICATE = "duplicate"
    WAITS = "waits"
    # Its dead letter stands in the cluster already, and only its response is missing.
    RECOVERED = "recovered"
    REJECTED = "rejected"
    UNUSABLE = "unusable"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    SHARED = "shared"


NO_CALL: Final = frozenset(
    {AttemptEnd.INVALID, AttemptEnd.EXPIRED, AttemptEnd.DUPLICATE, AttemptEnd.WAITS, AttemptEnd.RECOVERED}
)
"""Ends of an attempt for which no handler was called."""
NOT_COUNTED: Final = NO_CALL | {AttemptEnd.SHARED}
"""Ends of an attempt that the provider does not count among the calls in a time: it refused the call, or got none."""


class Attempt(NamedTuple):
    """What came of one handler call of `seconds`: a `result` as JSON, or a failure.

    `retry_after` is what the handler asked for, in seconds; `raised` is its exception, for the log. A `hung` one has
    not come back yet and was given up.
    """

    ended: AttemptEnd
    seconds: float
    result: bytes | None = None
    failure: Failure | None = None
    retry_after: float | None = None
    raised: BaseException | None = None
    used: tuple[Usage, ...] = ()
    hung: bool = False
    copied: Answer | None = None
