"""What the provider takes, learnt from what it refuses: calls at once, calls a minute, and when to ask again.

A refusal says that something is full, not what. With n calls of ours running, n may be as many as the provider takes
at once; or the calls of this minute are used up; or everybody is refused for a while (`gate`). Three small parts each
remember one of these, and `ProviderLimits` attributes each refusal to one of them. Cutting all of them for each refusal
would leave most of the provider's limit unused.

Times are seconds of the monotonic clock and arguments. Not thread-safe: the dispatcher's lock guards it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gigaoffice_worker.core.gate import Gate

_CUT: Final = 0.75
"""What is left of the level at which a call was refused."""
_CLIMB: Final = 1.0
"""Calls at once that are won back per mean call, up to the level at which a call was refused."""
_EXPLORE: Final = 0.25
"""The same beyond that level: less after a second refusal there, twice as much for each call won."""
_OUTAGE: Final = 75.0
"""A limit a minute lets something through in this time. What refuses for longer is down."""
_PASSED: Final = (0.2, 1.0)
"""A call that was not refused for so many seconds was let through, at least and at most: providers refuse at once."""
_REFUSAL_TIMES: Final = 4.0
"""How often as long as the last refusals took."""
_PACE_CUT: Final = 0.97
_PACE_GROWTH: Final = 0.2
_PACE_REST: Final = 1.0
_LEAST_PACE: Final = 3.0
_PACE_FORGOTTEN: Final = 4.0
_MINUTE: Final = 60.0


@dataclass(slots=True)
class AdaptiveConcurrency:
    """How many calls at once the provider takes, as far as it has refused more. `limit` may be a fraction."""

    ceiling: int
    limit: float = 0.0
    level: float = 0.0
    """The number of running calls at which one was refused last: the way back to it is quick, beyond it slow."""
    _patience: float = 1.0
    _looked_at: float = 0.0
    _used_up: bool = False
    _before: tuple[float, float] = (0.0, 0.0)
    """Limit and level before the last flight of refusals."""

    def __post_init__(self) -> None:
        self.limit = self.level = float(self.ceiling)

    @property
    def whole(self) -> int:
        """The calls that may run at once, at least one: without a call nothing would ever be learnt."""
        return max(1, int(self.limit))

    def resize(self, ceiling: int) -> None:
        """Take another ceiling; what the provider has taught stays, below it."""
        at_the_top = self.limit >= self.ceiling
        self.ceiling = ceiling
        self.limit = float(ceiling) if at_the_top else min(self.limit, float(ceiling))
        self.level = min(self.level, float(ceiling)) if not at_the_top else self.limit

    def cut(self, running: int, *, told: bool = False) -> None:
        """Note the first refusal of a flight with `running` calls left: that many are taken, and no more.

        `told` says that all calls pause for it: then more is tried less often.
        """
        same = abs(running - self.level) <= max(1.0, 0.1 * self.level)
        least, most = (2.0, 4.0) if told else (1.0, 2.0)
        self._patience = min(most, 2 * self._patience) if same else least
        self._before = self.limit, self.level
        self.level = float(running)
        self.limit = max(1.0, _CUT * running)

    def lower(self, running: int) -> None:
        """Note another refusal of the same flight: it only says that the level is no higher than this."""
        self.level = min(self.level, float(max(1, running)))
        self.limit = max(1.0, min(self.limit, self.level))

    def restore(self) -> None:
        """Undo the last cut: nothing was let through since, so calls at once were not the reason."""
        self.limit, self.level = (min(self.ceiling, each) for each in self._before)

    def grow(self, now: float, running: int, call_seconds: float) -> None:
        """Raise the limit for the time in which it was used up; a limit that nobody reaches says nothing."""
        calls = (now - self._looked_at) / call_seconds
        self._looked_at = now
        if self._used_up and self.limit < self.ceiling:
            if self.limit < self.level:
                self.limit = min(self.level, self.limit + _CLIMB * calls)
            else:
                won = self.limit - self.level
                speed = _EXPLORE / self._patience * 2.0 ** max(0.0, won - 1.0)
                if won >= 1.5:
                    self._patience = 1.0
                self.limit = min(self.ceiling, self.limit + min(1.0, speed) * calls)
        self._used_up = running >= int(self.limit)


@dataclass(slots=True)
class Pace:
    """How many calls a minute the provider takes; none is known until it refuses for that reason."""

    per_minute: float = math.inf
    _base: float = math.inf
    _patience: float = 1.0
    _minutes: float = 0.0
    next_at: float = 0.0
    _binding: bool = False

    @property
    def known(self) -> bool:
        return self.per_minute < math.inf

    def learn(self, now: float, per_minute: float) -> None:
        """Take what was let through in a minute for what may be; the slower a service, the less that says."""
        if per_minute < _LEAST_PACE:
            return
        if self.known:
            self._patience = min(2.0, 2 * self._patience) if per_minute >= 0.9 * self._base else 1.0
            per_minute = min(per_minute, self.per_minute)
        self._base = self.per_minute = max(1.0, _PACE_CUT * per_minute)
        self._minutes = 0.0
        self.next_at = max(self.next_at, now)

    def forget(self) -> None:
        self.per_minute = math.inf

    def started(self, now: float) -> None:
        if self.known:
            self.next_at = max(now, self.next_at) + _MINUTE / self.per_minute

    def take_back(self) -> None:
        """Let the next call begin in the place of one that was none."""
        if self.known:
            self.next_at -= _MINUTE / self.per_minute

    def holds_back(self, now: float) -> bool:
        """Say whether the next call has to wait for its turn."""
        if not self.known or now >= self.next_at:
            return False
        self._binding = True
        return True

    def grow(self, seconds: float) -> None:
        """Try a quicker pace after a while at which this one held calls back: first hardly, then boldly."""
        if self.known and self._binding:
            self._minutes += seconds / _MINUTE
            beyond = max(0.0, (self._minutes - _PACE_REST) / self._patience)
            self.per_minute = self._base * (1.0 + _PACE_GROWTH * beyond**3)
            if self.per_minute > _PACE_FORGOTTEN * self._base:
                self.forget()
        self._binding = False


@dataclass(slots=True)
class _Starts:
    """Calls of the last minute that were not refused, one bucket a second."""

    first: float | None = None
    _buckets: deque[list[float]] = field(default_factory=deque)
    """When each second began, and how many calls have begun in it."""
    _newest_ends: float = -math.inf

    def add(self, now: float) -> None:
        """Count a call that begins."""
        if now >= self._newest_ends:
            self._begin_second(now)
        self._buckets[-1][1] += 1

    def _begin_second(self, now: float) -> None:
        if self.first is None:
            self.first = now
        self._newest_ends = now + 1.0
        self._buckets.append([now, 0])
        while self._buckets[0][0] <= now - _MINUTE:
            self._buckets.popleft()

    def take_back(self, began: float) -> None:
        for bucket in reversed(self._buckets):
            if bucket[0] <= began:
                bucket[1] -= 1
                return

    def count(self, now: float) -> float:
        return sum(calls for second, calls in self._buckets if second > now - _MINUTE)

    def per_minute(self, now: float) -> float:
        """Return the calls of the last minute; in the first one, what a minute like it would have."""
        seconds = min(_MINUTE, max(1.0, now - (self.first if self.first is not None else now)))
        return self.count(now) * _MINUTE / seconds


class ProviderLimits:
    """Says when a call may start, and learns from how it ended.

    `ceiling` is the most calls at once that this process could make. Until the provider refuses something, asking
    costs a comparison. Without `adaptive` every refusal closes the gate, and nothing is learnt.
    """

    def __init__(
        self, ceiling: int, wait: Callable[[int], float], random: Callable[[], float], *, adaptive: bool = True
    ) -> None:
        self.concurrency = AdaptiveConcurrency(ceiling)
        self.pace = Pace()
        self.gate = Gate(wait)
        self.refusals = self.cuts = 0
        self.adaptive = adaptive
        self._random = random
        self._starts = _Starts()
        # Mean seconds of the calls that were let through.
        self._call_seconds, self._calls = 1.0, 0
        self._looked_at = 0.0
        # When calls began that are neither refused nor old enough to count as let through, with their number.
        self._young: dict[float, int] = {}
        self._cut_at = self._refused_at = self._passed_at = -1.0
        # When the flight began for which calls at once were cut last.
        self._cut_flight_at = -math.inf
        self._closed_at_rate = 0.0
        self._learnt_in_series = False
        # Seconds that refusals take, the longest of late.
        self._refusal_seconds = 0.0

    @property
    def _passed_after(self) -> float:
        """Seconds after which a call that was not refused counts as let through."""
        least, most = _PASSED
        return min(most, max(least, _REFUSAL_TIMES * self._refusal_seconds))

    @property
    def call_seconds(self) -> float:
        """The mean time of a call that was let through, in seconds; 1 before the first."""
        return self._call_seconds

    def begins_at(self, now: float, running: int) -> float:
        """Return when the next call may begin: not after `now` at once, infinity when another call ends."""
        if not self.refusals:
            return now
        self._age(now)
        self.concurrency.grow(now, running, self._call_seconds)
        self.pace.grow(now - self._looked_at)
        self._looked_at = now
        if self.gate.closed(now):
            return self.gate.until
        if self.gate.probe_at is not None and now < (passed := self.gate.probe_at + self._passed_after):
            return passed
        if running >= self.concurrency.whole:
            if running < self.concurrency.ceiling:  # the limit grows meanwhile
                return now + max(0.05, 0.25 * self._call_seconds)
            return math.inf
        return self.pace.next_at if self.pace.holds_back(now) else now

    def started(self, now: float) -> None:
        """Note that a call begins."""
        self._starts.add(now)
        if self.refusals:
            self._young[now] = self._young.get(now, 0) + 1
            self.gate.started(now)
            self.pace.started(now)

    def passed(self, now: float, began: float) -> None:
        """Note that the provider let the call through that began at `began`, whatever it answered."""
        self._calls += 1
        weight = 0.1 if self._calls > 10 else 1.0 / self._calls
        self._call_seconds += (max(0.001, now - began) - self._call_seconds) * weight
        if self.refusals:
            self._forget(began)
            self._let_through(began)

    def ended(self, began: float, *, counts: bool = True) -> None:
        """Note an attempt that says nothing of the provider: its call failed, or with `counts` False there was none."""
        if not counts:
            self._starts.take_back(began)
            self.pace.take_back()
        if self.refusals:
            self._forget(began)
            if began == self.gate.probe_at:
                self.gate.probe_at = None  # another call has to tell

    def refused(self, now: float, began: float, running: int, retry_after: float | None, reason: str = "") -> float:
        """Note a refusal with `running` calls left, and return when that request may be tried again.

        `reason` is the type of the error; `retry_after` what the provider asks for, in seconds.
        """
        self.refusals += 1
        self._refusal_seconds = max(now - began, 0.9 * self._refusal_seconds)
        self._age(now)
        self._forget(began)
        self._starts.take_back(began)
        self._refused_at = now
        if not self.adaptive:
            return self.gate.close(now, reason, retry_after, self._random)
        last_minute, per_minute = self._starts.count(now), self._starts.per_minute(now)
        # Calls that began before the last cut are of the same flight: a burst cuts once.
        fresh, alone = began > self._cut_at, running == 0
        again = fresh and self._cut_at >= 0 and self._passed_at < self._cut_at
        if fresh:
            self._cut_at = now
        if alone and self._calls and self._passed_at < self._cut_flight_at:
            self._cut_flight_at = -math.inf
            self.concurrency.restore()
        if alone or again or retry_after is not None:
            self._close(now, per_minute, retry_after, reason, alone=alone)
            if alone or again:
                return max(now, self.gate.until)
        elif self._by_pace(last_minute, running):
            if fresh:
                self.pace.learn(now, per_minute)
            return now
        if fresh:
            self._cut_flight_at = began
            self.cuts += 1
            self.concurrency.cut(running, told=retry_after is not None)
        else:
            self.concurrency.lower(running)
        return max(now, self.gate.until)

    def refused_alone(self, began: float, running: int, *, cut: bool = False) -> None:
        """Note the refusal of a request that others passed: it most often says nothing of the provider.

        But where two calls at once are tried, each refusal beside the other one says that one call is all it takes.
        """
        self.refusals += 1
        self.ended(began)
        self._starts.take_back(began)
        if cut:
            self.concurrency.restore()
        if self.adaptive and running == 1 and self.concurrency.whole <= 2:
            self.concurrency.lower(running)

    def _by_pace(self, last_minute: float, running: int) -> bool:
        """Say whether a refusal is about calls a minute: those are used up, or calls at once can't be the reason."""
        used_up = last_minute >= 0.9 * self.pace.per_minute
        return self.pace.known and (used_up or running + 1 < _CUT * int(self.concurrency.limit))

    def _close(self, now: float, per_minute: float, retry_after: float | None, reason: str, *, alone: bool) -> None:
        """Shut the gate: nothing of ours gets through, or the provider has said for how long."""
        gate, opened = self.gate, not self.gate.closed(now)
        if not opened and retry_after is None:
            return
        if gate.series == 0:
            self._closed_at_rate = per_minute
            self._learnt_in_series = False
        shut = gate.shut_for(now)
        if shut is not None and shut[1] > _OUTAGE:
            self.pace.forget()
        if opened and alone and not self._learnt_in_series:
            self._learnt_in_series = True
            self.pace.learn(now, self._closed_at_rate)
        gate.close(now, reason, retry_after, self._random, at_least=_MINUTE / self.pace.per_minute)

    def _age(self, now: float) -> None:
        while self._young and (began := next(iter(self._young))) <= now - self._passed_after:
            del self._young[began]
            self._let_through(began)

    def _let_through(self, began: float) -> None:
        self._passed_at = max(self._passed_at, began)
        if began > self._refused_at:
            self.gate.passed(began)

    def _forget(self, began: float) -> None:
        left = self._young.get(began, 0) - 1
        if left > 0:
            self._young[began] = left
        else:
            self._young.pop(began, None)
