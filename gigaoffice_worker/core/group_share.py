"""This process's part of what the whole consumer group may use: calls at once, calls in a time, tokens in a time.

Each limit is split over the partitions of the request topic, so that who owns a partition owns its share, and no
other service has to count. Within a process the shares of its partitions are one pool: a slot that served only its
own partition would stand idle whenever that one has nothing to do.

Times are seconds and arguments: `now` of the monotonic clock, `wall` since the epoch, by which all members of the
group take turns. Not thread-safe: the dispatcher's lock guards it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

_LEAST_TURN: Final = 60.0
_CALLS_A_TURN: Final = 15
"""Mean calls in one turn: calls that a turn leaves running overlap with the next owner's, so turns must be long."""
_CALLS_TO_WAIT: Final = 2.0
"""Mean calls for which gained slots stay idle: the old owner's calls run on, and nobody else knows of them."""
TOKEN_BURST: Final = 1 / 12
"""The part of a budget of tokens that may be used at once."""
TOKEN_REFILL: Final = 0.9
"""The part of a budget that is spent on estimates, so that costs above them stay within it."""
_SMOOTHING: Final = 0.1
_DELAY: Final = 0.01
_LONGEST_DELAY: Final = 0.5
"""By this part of its time, and so many seconds, two calls may come nearer to each other on their way."""
_PARTS: Final = 128
"""So many parts of a rate's time are told apart."""


class Rate(NamedTuple):
    """So many of something in so many seconds."""

    number: int
    seconds: int


def slots(partition: int, partitions: int, limit: int) -> int:
    """Return how many of `limit` calls belong to a partition: they differ by one at most, and add up to the limit."""
    return (partition + 1) * limit // partitions - partition * limit // partitions


def useful_workers(partitions: int, limit: int) -> int:
    """Return how many workers can make a call at the same time: each needs a partition, and a slot."""
    return min(partitions, limit)


def turn_seconds(call_seconds: float) -> float:
    """Return how long a turn lasts in which some partitions have a slot and the others none."""
    # A power of two of the least turn, so that members whose calls differ a little still take the same turns.
    wanted = max(_LEAST_TURN, _CALLS_A_TURN * call_seconds)
    return _LEAST_TURN * 2.0 ** math.ceil(math.log2(wanted / _LEAST_TURN))


class ConcurrencyShare:
    """How many of the group's calls at once this process may make."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._partitions = 0
        self._owned: frozenset[int] = frozenset()
        self._before = 0
        self._moved_at = -math.inf

    def owns(self, now: float, wall: float, owned: Iterable[int], partitions: int, call_seconds: float) -> None:
        """Note which of the request topic's `partitions` this process owns now."""
        self._before = self.calls(now, wall, call_seconds)
        self._owned, self._partitions, self._moved_at = frozenset(owned), partitions, now

    def calls(self, now: float, wall: float, call_seconds: float) -> int:
        """Return how many calls may run at once now."""
        share = self._share(wall, call_seconds)
        if now - self._moved_at < _CALLS_TO_WAIT * call_seconds:
            share = min(share, self._before)
        return share

    def _share(self, wall: float, call_seconds: float) -> int:
        partitions = self._partitions
        if not partitions:
            return 0
        if self.limit >= partitions:
            return self._at_turn(0)
        length = turn_seconds(call_seconds)
        turn, into = divmod(wall, length)
        share = self._at_turn(int(turn))
        if into < _CALLS_TO_WAIT * call_seconds:  # the last turn's owner may still be calling
            share = min(share, self._at_turn(int(turn) - 1))
        return share

    def _at_turn(self, turn: int) -> int:
        return sum(slots((each + turn) % self._partitions, self._partitions, self.limit) for each in self._owned)

    def next_change(self, now: float, wall: float, call_seconds: float) -> float:
        """Return when the share may be another one, in seconds of `now`'s clock; infinity where it stays."""
        changes = [self._moved_at + _CALLS_TO_WAIT * call_seconds]
        if 0 < self.limit < self._partitions:
            length = turn_seconds(call_seconds)
            into = wall % length
            waits = (_CALLS_TO_WAIT * call_seconds - into, length - into)
            changes += [now + wait for wait in waits]
        return min((each for each in changes if each > now), default=math.inf)


@dataclass(slots=True)
class _Calls:
    """Calls of a short time, remembered as one, so that a large share takes no more memory than a small one.

    They count until the newest of them no longer does.
    """

    began: float
    newest_at: float = 0.0
    number: int = 0


class RateShare:
    """When this process may make the next of the group's calls in a time.

    It makes no more than its share in any such time, and those as soon as there is something to do. After a takeover
    they are spread evenly over the first such time: the old owner may have used up what was there.
    """

    def __init__(self, rate: Rate, random: Callable[[], float]) -> None:
        self.rate = rate
        self._random = random
        self._window = rate.seconds + min(_LONGEST_DELAY, _DELAY * rate.seconds)
        self._share = 0
        self._interval = math.inf
        self._made: deque[_Calls] = deque()
        self._count = 0
        self._spread_from = self._spread_until = self._spread_at = math.inf

    def owns(self, now: float, owned: Collection[int], partitions: int) -> None:
        """Take over a new share. It begins empty."""
        number, seconds = self.rate
        if not owned:
            self._share, self._spread_at = 0, math.inf
            return
        self._share = sum(slots(partition, partitions, number) for partition in owned) if number >= partitions else 0
        # With fewer calls than partitions each has a part of one, and they are always spread.
        self._interval = seconds / self._share if self._share else seconds * partitions / (number * len(owned))
        self._spread_from, self._spread_until = now, now + self._window if self._share else math.inf
        self._spread_at = now + self._random() * self._interval

    def next_at(self, now: float) -> float:
        """Return when the next call may begin, in seconds of `now`'s clock; in the past for at once."""
        while self._made and self._made[0].newest_at <= now - self._window:
            self._count -= self._made.popleft().number
        if self._share:
            left = self._count
            for calls in self._made:
                if left < self._share:
                    break
                left -= calls.number
                if left < self._share:
                    return max(self._spread_at, calls.newest_at + self._window)
        return self._spread_at

    def started(self, now: float) -> None:
        """Take one call from the share."""
        if now < self._spread_until:
            self._spread_at = max(now, self._spread_at) + self._interval
        if not self._made or self._made[-1].began + self._window / _PARTS <= now:
            self._made.append(_Calls(now))
        self._made[-1].newest_at = now
        self._made[-1].number += 1
        self._count += 1

    def gave_back(self, began: float) -> None:
        """Put back what began then: the provider does not count it. What began before this share is none of its."""
        if self._spread_from <= began < self._spread_until:
            self._spread_at -= self._interval
        for calls in reversed(self._made):
            if calls.began <= began:
                self._count -= 1
                calls.number -= 1
                return


class TokenShare:
    """What this process may spend of the group's tokens in a time. A call's cost is known only after it.

    So an estimate is reserved before the call, from what calls have cost so far and how much that varies; and the
    difference is booked after it.
    """

    def __init__(self, budget: Rate) -> None:
        self.budget = budget
        self._refill = 0.0
        self._most = 0.0
        self._level = 0.0
        self._owned_at = 0.0
        self._at = 0.0
        self._mean = 0.0
        self._deviation = 0.0
        self._calls = 0

    def owns(self, now: float, owned: int, partitions: int) -> None:
        """Take over a new share. It begins empty, as a share of the rate does."""
        part = owned / partitions if partitions else 0.0
        self._refill = TOKEN_REFILL * self.budget.number * part / self.budget.seconds
        self._most = TOKEN_BURST * self.budget.number * part
        self._level, self._owned_at, self._at = min(self._level, 0.0), now, now

    @property
    def estimate(self) -> float:
        """What the next call is expected to cost, in tokens."""
        return self._mean + self._deviation

    def next_at(self, now: float) -> float:
        """Return when there is enough for the next call."""
        self._fill(now)
        # More than the most there can ever be would be waited for for ever: such a call may overdraw a full share.
        missing = min(self.estimate, self._most) - self._level
        if missing <= 0:
            return now
        return now + missing / self._refill if self._refill else math.inf

    def started(self, now: float) -> float:
        """Reserve the estimate, and return it: `ended` wants it back."""
        self._fill(now)
        reserved = self.estimate
        self._level -= reserved
        return reserved

    def ended(self, now: float, began: float, reserved: float, cost: float | None) -> None:
        """Book what a call cost, in tokens; None where it reported nothing, as a refused one does."""
        self._fill(now)
        left = reserved - (cost or 0.0)
        # What was reserved before this share began is none of its.
        self._level += left if began >= self._owned_at else min(0.0, left)
        if cost is None:
            return
        self._calls += 1
        weight = max(_SMOOTHING, 1 / self._calls)
        difference = cost - self._mean
        self._mean += weight * difference
        self._deviation += weight * (abs(difference) - self._deviation)

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + (now - self._at) * self._refill)
        self._at = now


class GroupLimits:
    """All shares of this process together; what is not limited is None. `wall` gives seconds since the epoch."""

    def __init__(
        self,
        wall: Callable[[], float],
        *,
        concurrency: ConcurrencyShare | None = None,
        rate: RateShare | None = None,
        tokens: TokenShare | None = None,
    ) -> None:
        self._wall = wall
        self._concurrency = concurrency
        self._rate = rate
        self._tokens = tokens
        self._owned: frozenset[int] = frozenset()
        self._partitions = 0
        self.limited = bool(concurrency or rate or tokens)
        """Whether the group has any limit."""

    @property
    def calls(self) -> int | None:
        """The calls at once of the whole group; None without a limit."""
        return self._concurrency.limit if self._concurrency else None

    def share(self, now: float, call_seconds: float) -> int | None:
        """Return how many calls may run at once now; None without a limit of the group."""
        return self._concurrency.calls(now, self._wall(), call_seconds) if self._concurrency else None

    def owns(
        self, now: float, call_seconds: float, *, owned: Iterable[int] | None = None, partitions: int | None = None
    ) -> None:
        """Note which partitions this process owns, or how many the request topic has; None: as before.

        A share that stays the same is not begun anew.
        """
        before = self._owned, self._partitions
        if owned is not None:
            self._owned = frozenset(owned)
        if partitions is not None:
            self._partitions = partitions
        if (self._owned, self._partitions) == before:
            return
        if self._concurrency:
            self._concurrency.owns(now, self._wall(), self._owned, self._partitions, call_seconds)
        if self._rate:
            self._rate.owns(now, self._owned, self._partitions)
        if self._tokens:
            self._tokens.owns(now, len(self._owned), self._partitions)

    def begins_at(self, now: float, running: int, call_seconds: float) -> float:
        """Return when the next call may begin: not after `now` at once, infinity when another call ends."""
        if self._concurrency:
            wall = self._wall()
            if running >= self._concurrency.calls(now, wall, call_seconds):
                return self._concurrency.next_change(now, wall, call_seconds)
        begins = now
        if self._rate:
            begins = max(begins, self._rate.next_at(now))
        if self._tokens:
            begins = max(begins, self._tokens.next_at(now))
        return begins

    def started(self, now: float) -> float:
        """Take a call from every share, and return the tokens that are reserved for it."""
        if self._rate:
            self._rate.started(now)
        return self._tokens.started(now) if self._tokens else 0.0

    def ended(self, now: float, began: float, reserved: float, tokens: float | None, *, counts: bool) -> None:
        """Book what the attempt that began at `began` used, in tokens: nothing where the provider does not count it."""
        if self._rate and not counts:
            self._rate.gave_back(began)
        if self._tokens:
            self._tokens.ended(now, began, reserved, tokens if counts else None)
