"""A provider with limits and the workers that call it, played through without waiting: what a limiter is tried on.

The provider refuses at once, as GigaChat does with 429: for too many calls at a time, or in a minute. Time is a number.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from gigaoffice_worker.core.limits import ProviderLimits
from gigaoffice_worker.core.retry import RetryPolicy

_A_REFUSAL_TAKES = 0.05
_SPREAD = 0.6


class Played(NamedTuple):
    """What came of a run: the part of the limit that was used, refusals a hundred calls, and when they came."""

    used: float
    refused_in_100: float
    refusals: list[float]
    answers: list[float]


@dataclass
class Provider:
    """Takes `streams` calls at once and `per_minute` in any 60 seconds; half of both from `drop[0]` to `drop[1]`."""

    streams: int | None = None
    per_minute: int | None = None
    retry_after: float | None = None
    drop: tuple[float, float] | None = None
    outage: tuple[float, float] | None = None
    busy: int = 0
    window: deque[float] = field(default_factory=deque)

    def takes(self, now: float) -> int | None:
        """Return how many calls at once it takes now."""
        if self.outage and self.outage[0] <= now < self.outage[1]:
            return 0
        if self.streams is None:
            return None
        return self.streams // 2 if self.drop and self.drop[0] <= now < self.drop[1] else self.streams

    def ask(self, now: float) -> bool:
        """Say whether a call is taken."""
        while self.window and self.window[0] <= now - 60.0:
            self.window.popleft()
        takes = self.takes(now)
        if takes is not None and self.busy >= takes:
            return False
        if self.per_minute is not None:
            if len(self.window) >= self.per_minute:
                return False
            self.window.append(now)
        self.busy += 1
        return True


@dataclass
class _Worker:
    limits: ProviderLimits
    threads: int
    running: int = 0
    wakes_at: float = math.inf


def play(
    provider: Provider, *, workers: int = 1, threads: int = 16, call: float = 2.0, seconds: float = 600.0, seed: int = 1
) -> Played:
    """Let workers with an endless backlog call the provider; the first fifth of the time does not count."""
    return _Play(provider, workers, threads, call, random.Random(seed)).run(seconds)


class _Play:
    """One run: events in the order of their times, each of which may let a worker start calls."""

    def __init__(self, provider: Provider, workers: int, threads: int, call: float, rng: random.Random) -> None:
        self._provider = provider
        self._workers = [
            _Worker(ProviderLimits(threads, RetryPolicy().ceiling, rng.random), threads) for _ in range(workers)
        ]
        self._call = call
        self._rng = rng
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None], _Worker]] = []
        self._answers: list[float] = []
        self._refusals: list[float] = []

    def run(self, seconds: float) -> Played:
        for number, worker in enumerate(self._workers):
            self._wake(worker, 0.001 * number)
        threads = sum(worker.threads for worker in self._workers)
        warm = last = seconds / 5
        area = possible = 0.0
        while self._events and self._events[0][0] <= seconds:
            now, _, happens, worker = heapq.heappop(self._events)
            if now > warm:
                takes = self._provider.takes(now)
                area += self._provider.busy * (now - last)
                possible += (threads if takes is None else min(threads, takes)) * (now - last)
                last = now
            happens(now)
            self._fill(worker, now)
        answered = sum(at > warm for at in self._answers)
        refused = sum(at > warm for at in self._refusals)
        per_minute = self._provider.per_minute
        used = area / possible if per_minute is None else answered / (per_minute * (seconds - warm) / 60.0)
        return Played(used, 100.0 * refused / max(1, answered), self._refusals, self._answers)

    def _fill(self, worker: _Worker, now: float) -> None:
        while worker.running < worker.threads:
            begins = worker.limits.begins_at(now, worker.running)
            if begins > now + 1e-9:
                if begins < worker.wakes_at:
                    worker.wakes_at = begins
                    self._wake(worker, begins)
                return
            self._start(worker, now)

    def _start(self, worker: _Worker, now: float) -> None:
        worker.running += 1
        worker.limits.started(now)
        if self._provider.ask(now):
            mean = math.log(self._call) - _SPREAD * _SPREAD / 2
            takes = min(20 * self._call, self._rng.lognormvariate(mean, _SPREAD))
            self._later(now + takes, lambda at: self._answered(worker, now, at), worker)
        else:
            takes = _A_REFUSAL_TAKES * (0.5 + self._rng.random())
            self._later(now + takes, lambda at: self._refused(worker, now, at), worker)

    def _answered(self, worker: _Worker, began: float, now: float) -> None:
        self._provider.busy -= 1
        worker.running -= 1
        worker.limits.passed(now, began)
        self._answers.append(now)

    def _refused(self, worker: _Worker, began: float, now: float) -> None:
        worker.running -= 1
        self._refusals.append(now)
        worker.limits.refused(now, began, worker.running, self._provider.retry_after)

    def _wake(self, worker: _Worker, at: float) -> None:
        def woken(now: float) -> None:
            if worker.wakes_at <= now:
                worker.wakes_at = math.inf

        self._later(at, woken, worker)

    def _later(self, at: float, happens: Callable[[float], None], worker: _Worker) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), happens, worker))
