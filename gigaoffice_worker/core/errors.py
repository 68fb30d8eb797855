"""The worker's own exceptions: what ends the process, and what a handler may raise."""

from __future__ import annotations


class WorkerError(Exception):
    """An expected failure that ends a command: one message, one exit code, no traceback.

    `hint` says what the operator can do about it, `exit_code` is the process's (sysexits.h where one fits).
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigurationError(WorkerError):
    """What was configured cannot work: a wrong value, a taken port, a refused topic setting. Restarting won't help."""

    exit_code = 78


class UnreachableError(WorkerError):
    """The cluster or its group coordinator did not answer within the configured retries."""

    exit_code = 69


class AccessError(WorkerError):
    """The cluster refused who we are (authentication) or what we asked (authorization)."""

    exit_code = 77


class HandlerError(Exception):
    """Root of what a handler raises on purpose; anything else it raises is retried as an unexpected error."""


class TransientError(HandlerError):
    """Raised by a handler when another attempt may succeed.

    `retry_after` is the least delay in seconds before this request's next attempt. `shared=True` says that every
    other call would fail for the same reason (HTTP 429 or 503): all handler calls wait, and no attempt is counted.
    """

    def __init__(self, message: str = "", *, retry_after: float | None = None, shared: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.shared = shared


class RejectedError(HandlerError):
    """Raised by a handler when no attempt can ever succeed: the request goes to the dead letter queue at once."""
