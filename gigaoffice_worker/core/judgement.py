"""What the end of an attempt means for its request: an outcome, or another attempt later."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from gigaoffice_worker.core.admission import Admission
from gigaoffice_worker.core.expiry import expired
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome, Reason
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.work import Work

# A call that hangs costs a thread until the process ends: a request gets no third one.
_MOST_OVERDUE = 2
FREE_REFUSALS = 10
"""So often the provider may refuse a request while it takes others: each further time counts as an attempt."""


# How often a request that waits for the answer to another one looks for it.
_LOOK_FOR_ANSWER = 0.1


class Retry(NamedTuple):
    """Another attempt, not before `due` (seconds of the monotonic clock), which is in `wait` seconds.

    With `behind` it takes its turn after what has come meanwhile.
    """

    due: float
    wait: float
    behind: bool = False


class Judgement:
    """Judges ends of attempts, and tells the admission what they say about the provider.

    Not thread-safe: the dispatcher's lock guards it.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        admission: Admission,
        *,
        expired_to_dlq: bool = False,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._expired_to_dlq = expired_to_dlq
        self._policy = policy
        self._admission = admission
        self._rng = rng

    def of(self, work: Work, made: Attempt, now: float, running: int) -> Outcome | Retry:
        """Say what `made` means for its request, and take back the attempt where it does not count.

        `running` is how many other attempts run now.
        """
        if self._admission.group.limited:
            self._admission.book(work, made, now)
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
            case AttemptEnd.EXPIRED | AttemptEnd.DUPLICATE | AttemptEnd.WAITS | AttemptEnd.RECOVERED:
                return self._without_call(work, made, now)
            case AttemptEnd.SHARED:
                return self._refused(work, made, now, running)
            case AttemptEnd.UNUSABLE:
                self._admission.let_through(work, now)
            case _:
                self._admission.failed(work)
        return self._failed(work, made, now)

    def _without_call(self, work: Work, made: Attempt, now: float) -> Outcome | Retry:
        work.attempt -= 1
        self._admission.without_call(work)
        if work.owed is not None:
            return work.owed
        match made.ended:
            case AttemptEnd.EXPIRED:
                return expired(to_dlq=self._expired_to_dlq)
            case AttemptEnd.DUPLICATE:
                return Outcome(copied=made.copied)
        return Retry(now + _LOOK_FOR_ANSWER, _LOOK_FOR_ANSWER)

    def _refused(self, work: Work, made: Attempt, now: float, running: int) -> Outcome | Retry:
        """Take a refusal for the provider's limit, which counts no attempt, unless the request alone is refused."""
        reason = made.failure.type if made.failure else "TransientError"
        until, times, alone = self._admission.refused(work, now, running, made.retry_after, reason)
        if alone and times > FREE_REFUSALS:
            return self._failed(work, made, now, behind=True)
        work.attempt -= 1
        if not times:
            return Retry(until, until - now)
        wait = max(until - now, self._policy.delay_after(times, self._rng, made.retry_after))
        return Retry(now + wait, wait, behind=True)

    def _failed(self, work: Work, made: Attempt, now: float, *, behind: bool = False) -> Outcome | Retry:
        if self._admission.probing:
            # While nearly everything fails, an attempt says nothing about its request, which stays unsettled.
            work.attempt -= 1
            failures = self._admission.probes.failures
            self._admission.probes.failed(work, now + self._policy.delay_after(failures + 1, self._rng))
            wait = self._policy.delay_after(max(failures, work.attempt) + 1, self._rng, made.retry_after)
            return Retry(now + wait, wait, behind)
        failure = made.failure or Failure("Unknown", "")
        if made.ended is AttemptEnd.UNUSABLE:
            # Another attempt is paid for as well, and most often returns the same.
            self._admission.guard.finished(now, failure.type)
            return Outcome(failure=failure, reason=Reason.UNUSABLE_RESULT)
        work.overdue += made.hung
        if not self._policy.exhausted(work.attempt) and work.overdue < _MOST_OVERDUE:
            wait = self._policy.delay_after(work.attempt, self._rng, made.retry_after)
            return Retry(now + wait, wait, behind)
        self._admission.guard.finished(now, failure.type)
        reason = Reason.TIMED_OUT if made.ended is AttemptEnd.TIMED_OUT else Reason.ATTEMPTS_EXHAUSTED
        return Outcome(failure=failure, reason=reason)
