"""May an attempt start, and if not, when: holds, the lease, the limits of provider and group, and the storm guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gigaoffice_worker.core.group_share import GroupLimits
from gigaoffice_worker.core.limits import ProviderLimits
from gigaoffice_worker.core.records import NO_CALL, NOT_COUNTED, Attempt
from gigaoffice_worker.core.storm import Probes, StormGuard
from gigaoffice_worker.core.usage import summed
from gigaoffice_worker.core.work import Work

_LET_IN_EVERY, _LET_IN_FOR = 5.0, 1.0
_SUSPECT = 2
"""From so many lone refusals on, the provider seems to refuse the request, not the call."""
_LONE_IN_A_ROW = 5
"""With more refusals and no answer between them, and behind a gate with two, it is not these requests alone."""


class Refusal(NamedTuple):
    """When the refused request may be tried again, how often it was refused alone, and whether this was such a time."""

    until: float
    times_alone: int
    alone: bool


class LimitsSeen(NamedTuple):
    """What bounds the calls at once, and how often it did. None: there is no such limit.

    `adapted` is what the provider takes as far as it has refused more (`refused_at` says when), `share` what this
    process may use of the `group`'s calls; `pace` is in calls a minute.
    """

    configured: int = 1
    adapted: int | None = None
    refused_at: int | None = None
    share: int | None = None
    group: int | None = None
    pace: float | None = None
    refusals: int = 0
    held_back: float = 0.0
    """Seconds for which a limit held back work that was ready."""

    @property
    def calls(self) -> int:
        """How many calls may run at once now."""
        return min(each for each in (self.configured, self.adapted, self.share) if each is not None)

    def in_words(self) -> str:
        """Say what holds, and why, as in "3 at once (refused at 11), no pace; share 3 of 10"."""
        found = f"{self.calls} at once"
        if self.refused_at is not None:
            found += f" (refused at {self.refused_at})"
        found += f", {self.pace:.0f} a minute" if self.pace is not None else ", no pace"
        return f"{found}; share {self.share} of {self.group}" if self.group is not None else found


class Holds:
    """What lets no attempt start whatever the provider takes: reasons that are held, and a lease that has run out.

    The lease is asked with each start, because a process that was frozen wakes up in all of its threads at once.
    """

    def __init__(self) -> None:
        # Replaced and never changed, so that observers may read it without the lock.
        self.reasons: frozenset[str] = frozenset()
        self.leased_until = math.inf

    def any(self, now: float) -> bool:
        """Say whether anything holds."""
        return bool(self.reasons) or now > self.leased_until

    def hold(self, reason: str) -> None:
        """Let no attempt start until `release` is called with the same reason."""
        self.reasons |= {reason}

    def release(self, reason: str) -> bool:
        """End a hold; False when there was none."""
        held = reason in self.reasons
        self.reasons -= {reason}
        return held

    def lease(self, until: float, now: float) -> bool:
        """Let attempts start until `until`; True when the lease before had run out."""
        expired = now > self.leased_until
        self.leased_until = until
        return expired

    def held(self, now: float) -> frozenset[str]:
        """Return the reasons that hold, "session" for a lease that ran out among them."""
        return self.reasons | {"session"} if now > self.leased_until else self.reasons


class Admission:
    """Says for every reason there is whether an attempt may start, and if not, when it is worth asking again.

    A *hold* says no until it is released (a rebalance, the drain, delivery that is stuck). The *lease* says no once the
    session may have lapsed, because another member may then own what is in hand. The *limits* say no when the provider
    would refuse the call, or when the group's share is used up. The *storm guard* lets one request at a time through,
    the probe.

    Not thread-safe: the dispatcher's lock guards it. What is replaced and never changed may be read without it.
    """

    def __init__(self, limits: ProviderLimits, group: GroupLimits, guard: StormGuard) -> None:
        self.limits = limits
        self.group = group
        self.guard = guard
        self.holds = Holds()
        self._most_running: float = math.inf
        self.probes = Probes()
        # How many calls were answered: between two refusals of one request, it tells whether others passed.
        self._answered = 0
        # For how many seconds a limit has held something back, and since when it does so now.
        self._held_back = 0.0
        self._held_back_since: float | None = None
        # So many refusals came in a row, with no answer between them; those of suspects don't count.
        self._in_a_row = 0
        # The request whose refusal alone has cut the calls at once last.
        self._cut_by: Work | None = None
        # Whether a request was refused since a call was answered, and not alone. How often, each carries itself: kept
        # here, those that expire in an outage would stay in memory until it is over.
        self._refused = False

    def opens_at(self, now: float, running: int) -> float:
        """Return when an attempt may start beside `running` ones: at most `now` for at once.

        Infinity where something must happen first.
        """
        holds = self.holds
        if holds.reasons or now > holds.leased_until or running >= self._most_running:
            return math.inf
        begins = self.limits.begins_at(now, running) if self.limits.refusals else now
        if self.guard.reason is not None:
            begins = max(begins, self.probes.next_at)
        if begins <= now and self.group.limited:
            return self.group.begins_at(now, running, self.limits.call_seconds)
        return begins

    def waits(self, now: float) -> None:
        """Note that something is ready and nobody takes it: if a limit is why, that time is counted."""
        limited = bool(self.limits.refusals) or self.group.limited
        if self._held_back_since is None and limited and not self.holds.any(now):
            self._held_back_since = now

    def seen(self, now: float, configured: int) -> LimitsSeen:
        """Return what bounds the calls at once of a pool that has `configured` threads."""
        limits, group = self.limits, self.group
        since = self._held_back_since
        adapted = limits.adaptive and bool(limits.refusals)
        return LimitsSeen(
            configured=configured,
            adapted=limits.concurrency.whole if adapted else None,
            refused_at=int(limits.concurrency.level) + 1 if adapted else None,
            share=group.share(now, limits.call_seconds),
            group=group.calls,
            pace=limits.pace.per_minute if limits.pace.known else None,
            refusals=limits.refusals,
            held_back=self._held_back + (now - since if since is not None else 0.0),
        )

    @property
    def preference(self) -> Callable[[Work], Any] | None:
        """How to choose what starts next, the least first; None for the usual order."""
        if self.guard.reason is not None:
            return self.probes.preference
        gate = self.limits.gate
        if gate.half_open and gate.probe_at is None:
            return self._refused_least
        return None

    def _refused_least(self, work: Work) -> Any:
        refusals = work.refusals_since if work.refused_after == self._answered else 0
        return refusals, work.turn, work.number

    @property
    def probing(self) -> bool:
        """Whether only a probe may start."""
        return self.guard.reason is not None

    def started(self, work: Work, now: float) -> None:
        """Note that an attempt of `work` begins."""
        if self._held_back_since is not None:
            self._held_back += now - self._held_back_since
            self._held_back_since = None
        self.limits.started(now)
        if self.group.limited:
            work.reserved_tokens = self.group.started(now)
        if self.guard.reason is not None:
            self.probes.begin(work)

    def intake_stopped(self, now: float) -> str | None:
        """Return the error type for which the storm guard stops intake; None while it does not.

        For one second in five it lets some in: what is in hand may be what fails, and the others are still to be read.
        """
        if self.guard.reason is None or (now - self.guard.tripped_at) % _LET_IN_EVERY >= _LET_IN_EVERY - _LET_IN_FOR:
            return None
        return self.guard.reason

    def limit_running(self, most: int) -> None:
        """Let at most so many attempts run at once from now on; those that run already are not cut short."""
        self._most_running = most
        self.limits.concurrency.resize(most)

    def owns(self, now: float, *, owned: Iterable[int] | None = None, partitions: int | None = None) -> None:
        """Note which partitions are ours, or how many there are: that decides our share of the group's limits."""
        self.group.owns(now, self.limits.call_seconds, owned=owned, partitions=partitions)

    # How attempts ended

    def passed(self, work: Work, now: float) -> None:
        """Note a request that was answered or rejected: the provider works."""
        self.let_through(work, now)
        if self.guard.reason is not None and work in self.probes:
            self.guard.open()
            self.probes = Probes()
        self.guard.finished(now, None)

    def invalid(self, work: Work, now: float) -> None:
        """Note a value that is no request."""
        self.without_call(work)
        self.guard.finished(now, None)

    def without_call(self, work: Work) -> None:
        """Note an attempt for which no handler was called: it tells nothing of the provider, and used up nothing."""
        self.limits.ended(work.started_at, counts=False)
        self.forget(work)

    def let_through(self, work: Work, now: float) -> None:
        """Note a call that the provider has taken, whatever became of it then."""
        self._answered += 1
        self._in_a_row = 0
        self._refused = False
        self.limits.passed(now, work.started_at)

    def failed(self, work: Work) -> None:
        """Note an attempt that failed for a reason of its own."""
        self.limits.ended(work.started_at)

    def refused(self, work: Work, now: float, running: int, retry_after: float | None, reason: str) -> Refusal:
        """Note that the provider refused a call with `running` others left; `reason` is the type of the error.

        A request that is refused again although another call was answered meanwhile is refused alone: its wait holds
        for it alone, and next to nothing is learnt from it. (Were the limits learnt from them, five such requests at
        the start would leave one call in twenty seconds to all others.) So is one to which that has happened before,
        where nothing else was refused since the last answer: what is left when all others are done would be tried for
        ever.
        """
        self.forget(work)
        suspect = work.lone_refusals >= _SUSPECT and not self._refused
        self._in_a_row += not suspect
        few = self._in_a_row <= (1 if self.limits.gate.half_open else _LONE_IN_A_ROW)
        alone = suspect or (few and 0 <= work.refused_after < self._answered)
        if work.refused_after != self._answered:
            work.refused_after, work.refusals_since = self._answered, 0
        work.lone_refusals += alone
        if suspect or (few and work.lone_refusals):
            cut = work is self._cut_by
            self.limits.refused_alone(work.started_at, running, cut=cut)
            if cut:
                self._cut_by = None
            return Refusal(now, work.lone_refusals, alone)
        self._refused = True
        work.refusals_since += 1
        cuts = self.limits.cuts
        until = self.limits.refused(now, work.started_at, running, retry_after, reason)
        self._cut_by = work if self.limits.cuts > cuts else None
        return Refusal(until, 0, alone=False)

    def lost(self, work: Work, made: Attempt, now: float) -> None:
        """Note an attempt of which nothing is learnt: its partition is lost."""
        self.limits.ended(work.started_at, counts=made.ended not in NO_CALL)
        self.book(work, made, now)
        self.forget(work)

    def book(self, work: Work, made: Attempt, now: float) -> None:
        """Charge the group's budgets with what an attempt used."""
        if self.group.limited:
            used = summed(made.used) if made.used else None
            tokens, counts = used.tokens if used else None, made.ended not in NOT_COUNTED
            self.group.ended(now, work.started_at, work.reserved_tokens, tokens, counts=counts)
            work.reserved_tokens = 0.0  # the late end of a call that was given up is booked again

    def forget(self, work: Work) -> None:
        """Let another request probe, if `work` does: it will tell nothing."""
        self.probes.forget(work)
