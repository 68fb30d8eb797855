"""Until when a request is worth a call, and what becomes of one that is not any more."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from gigaoffice_worker.core.records import Failure, Outcome, Reason, Record

EXPIRES_AT: Final = "expires-at"
"""Header of a request: milliseconds since the epoch."""
TTL: Final = "ttl-ms"
"""Header of a request: milliseconds after its timestamp."""

_LONGEST_NUMBER: Final = 18
_MESSAGE: Final = "the request waited for longer than it is worth a call; no call was made for it"


class Worth(NamedTuple):
    """Until when a request is worth a call, in seconds since the epoch, and how many headers could not be read."""

    until: float
    unreadable: int


_FOR_EVER: Final = Worth(math.inf, 0)


def worth(request: Record, ttl: float | None) -> Worth:
    """Return until when a request is worth a call: the earliest of its headers and `ttl` seconds after its timestamp.

    The last of a repeated header counts. What is after the timestamp of a record that has none is never.
    """
    if ttl is None and not request.headers:
        return _FOR_EVER
    written = request.timestamp or math.inf
    until, unreadable = written + ttl if ttl is not None else math.inf, 0
    said = dict(request.headers) if request.headers else {}
    for name, since in ((EXPIRES_AT, 0.0), (TTL, written)):
        if name not in said:
            continue
        number = said[name] or b""
        if number.isdigit() and len(number) <= _LONGEST_NUMBER:
            until = min(until, since + int(number) / 1000)
        else:
            unreadable += 1
    return Worth(until, unreadable)


def failure_of_expired() -> Failure:
    """Return what the requester is told."""
    return Failure("Expired", _MESSAGE)


def expired(*, to_dlq: bool) -> Outcome:
    """Return the outcome of a request that is not worth a call any more."""
    return Outcome(failure=failure_of_expired(), reason=Reason.EXPIRED if to_dlq else None)


def is_expired(outcome: Outcome) -> bool:
    """Say whether that is how a request ended: nothing else fails without a result and without a dead letter."""
    if outcome.reason is None:
        return outcome.failure is not None and outcome.result is None
    return outcome.reason is Reason.EXPIRED
