"""What the end of an attempt means for its request: an outcome, or another attempt later."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from gigaoffice_worker.core.admission import Admission
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome, Reason
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.work import Work

# A call that hangs costs a thread until the process ends: a request gets no third one.
_MOST_OVERDUE = 2


class Retry(NamedTuple):
    """Another attempt, not before `due` (seconds of the monotonic clock), which is in `wait` seconds."""

    due: float
    wait: float


class Judgement:
    """Judges ends of attempts, and tells the admission what they say about the provider.

    Not thread-safe: the dispatcher's lock guards it.
    """

    def __init__(self, policy: RetryPolicy, admission: Admission, *, rng: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._admission = admission
        self._rng = rng

    def of(self, work: Work, made: Attempt, now: float) -> Outcome | Retry:
        """Say what `made` means for its request, and take back the attempt where it does not count."""
        match made.ended:
            case AttemptEnd.ANSWERED:
                self._admission.passed(work, now)
                return Outcome(made.result, made.failure)
            case AttemptEnd.REJECTED:
                self._admission.passed(work, now)
                return Outcome(failure=made.failure, reason=Reason.REJECTED)
            case AttemptEnd.INVALID:
                work.attempt -= 1  # No handler was called.
                self._admission.invalid(work, now)
                return Outcome(failure=made.failure, reason=Reason.INVALID_REQUEST)
            case AttemptEnd.SHARED:
                work.attempt -= 1
                self._admission.forget(work)
                reason = made.failure.type if made.failure else "TransientError"
                until = self._admission.gate.close(now, reason, made.retry_after, self._rng)
                return Retry(until, until - now)
        return self._failed(work, made, now)

    def _failed(self, work: Work, made: Attempt, now: float) -> Outcome | Retry:
        if self._admission.probing:
            # While nearly everything fails, an attempt says nothing about its request, which stays unsettled.
            work.attempt -= 1
            failures = self._admission.probes.failures
            self._admission.failed_in_storm(work, now + self._policy.delay_after(failures + 1, self._rng))
            wait = self._policy.delay_after(max(failures, work.attempt) + 1, self._rng, made.retry_after)
            return Retry(now + wait, wait)
        failure = made.failure or Failure("Unknown", "")
        if made.ended is AttemptEnd.UNUSABLE:
            # Another attempt is paid for as well, and most often returns the same.
            self._admission.gate.passed()
            self._admission.exhausted(now, failure.type)
            return Outcome(failure=failure, reason=Reason.UNUSABLE_RESULT)
        work.overdue += made.hung
        if not self._policy.exhausted(work.attempt) and work.overdue < _MOST_OVERDUE:
            wait = self._policy.delay_after(work.attempt, self._rng, made.retry_after)
            return Retry(now + wait, wait)
        self._admission.exhausted(now, failure.type)
        reason = Reason.TIMED_OUT if made.ended is AttemptEnd.TIMED_OUT else Reason.ATTEMPTS_EXHAUSTED
        return Outcome(failure=failure, reason=reason)
