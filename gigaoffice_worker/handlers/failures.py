"""What a service's refusals mean for a request. No message quotes a request, an answer, an address or a secret."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from gigaoffice_worker.core.errors import HandlerError, RejectedError, TransientError

# The service refuses us, not the request: user, payment, permission, and the same to a proxy on the way.
_ACCESS = frozenset({401, 402, 403, 407})
# A time-out of the server's own, and "too early", ask for another attempt although they are of the 400s.
_RETRIED = frozenset({408, 425})


class NoAnswerError(TransientError):
    """The answer was not there, whole, before the attempt's deadline."""


class ConnectionFailedError(TransientError):
    """The service could not be reached, or hung up.

    `shared`: no connection came about, so no request is to blame, and all calls wait.
    """

    def __init__(self, message: str = "", *, shared: bool = False) -> None:
        super().__init__(message, shared=shared)


class ServiceError(TransientError):
    """The service says that it failed (HTTP 5xx)."""


class UnusableAnswerError(TransientError):
    """The service claims success, but what it sent is no answer."""


class RateLimitedError(TransientError):
    """The service asks all callers to wait (HTTP 429, or 503 with a time)."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after, shared=True)


class AccessRefusedError(TransientError):
    """The service, or our trust in it, refuses the worker itself: no request is to blame, so all calls wait."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message, shared=True)


def from_status(status: int, headers: Mapping[str, str], *, access_hint: str) -> HandlerError:
    """Return the error for an answer that is no success; `access_hint` says what to mend when we are refused.

    `headers` has lower-case names or finds them in any case.
    """
    said = f"the service answered {_described(status)}"
    wait = retry_after(headers, time.time())
    if status in _ACCESS:
        return AccessRefusedError(f"{said}: {access_hint}")
    # A 503 without a time may be about this one request (a gateway whose upstream died of it), and must not hold up
    # the others for ever.
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and wait is not None):
        return RateLimitedError(said, retry_after=wait)
    if status in _RETRIED or status >= 500:
        return ServiceError(said, retry_after=wait)
    if 300 <= status < 400:
        return RejectedError(f"{said}: redirects are not followed")
    return RejectedError(said)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, given as seconds or as a date; None without any.

    A date is held against the service's own clock where it tells the time; `now` is ours, since the epoch.
    """
    asked = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", asked):
        return float(asked)
    until = moment(asked)
    if until is None:
        return None
    there = moment(headers.get("date", ""))
    return max(0.0, until - (there if there is not None else now))


def moment(text: str) -> float | None:
    """Return the seconds since the epoch that a header's date stands for; None where it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _described(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"
