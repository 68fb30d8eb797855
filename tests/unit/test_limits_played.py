"""The limits with the dispatcher around them, played through with a clock of their own: what requests see of them."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from statistics import median

import pytest

from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.work import Work
from tests.support.making import Partition, dispatcher

REFUSED = Attempt(AttemptEnd.SHARED, 0.05, failure=Failure("RateLimited", "429"))


class Play:
    """Calls of `seconds` to a provider that takes `streams` at once, and refuses `poisoned` requests always."""

    def __init__(self, *, streams: float, calls: int, seconds: float, poisoned: int = 0, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.now = 0.0
        self.threads = 16
        self.dispatcher = dispatcher(
            RetryPolicy(), clock=lambda: self.now, rng=rng.random, adaptive=True, threads=self.threads
        )
        self.streams, self.calls, self.seconds = streams, calls, seconds
        partition = Partition()
        works = [partition.work(b"%d" % number) for number in range(poisoned + calls)]
        for number, work in enumerate(works):
            work.turn = float(number)
        self.poisoned = set(works[:poisoned])
        self.dispatcher.offer(works)
        self.refusals = self.answered = self.busy = 0
        self._ends: list[tuple[float, int, Work, bool]] = []
        self._numbers = itertools.count()

    def run(self, limit: float = 1000.0) -> float:
        """Play until all good requests are answered, and return how long that took."""
        while self.answered < self.calls:
            assert self.now < limit
            while self._ready():
                self._start()
            self._wait()
        return self.now

    def _ready(self) -> bool:
        running = len(self._ends)
        if running >= self.threads or self.dispatcher.admission.opens_at(self.now, running) > self.now:
            return False
        scheduler = self.dispatcher._scheduler
        return bool(scheduler.ready) or any(due <= self.now for due, _ in scheduler.retries())

    def _start(self) -> None:
        work = self.dispatcher.take(returning=True)
        assert work is not None
        taken = work not in self.poisoned and self.busy < self.streams
        self.busy += taken
        takes = self.seconds if taken else 0.05
        heapq.heappush(self._ends, (self.now + takes, next(self._numbers), work, taken))

    def _wait(self) -> None:
        moments = [self._ends[0][0] if self._ends else math.inf]
        moments.append(self.dispatcher.admission.opens_at(self.now, len(self._ends)))
        moments.append(self.dispatcher._scheduler.next_due or math.inf)
        self.now = min((at for at in moments if at > self.now), default=self.now + 0.1)
        while self._ends and self._ends[0][0] <= self.now:
            _, _, work, taken = heapq.heappop(self._ends)
            self.busy -= taken
            self.refusals += not taken
            made = Attempt(AttemptEnd.ANSWERED, self.seconds, b"{}") if taken else REFUSED
            if isinstance(self.dispatcher.conclude(work, work.run, made), Outcome):
                self.dispatcher.free(work)
                self.dispatcher.settle([work])
                self.answered += work not in self.poisoned


@pytest.mark.parametrize(
    "streams, calls, seconds, longest, most",
    [(10, 200, 2.0, 44.0, 20), (1, 30, 1.0, 33.0, 20), (3, 60, 1.0, 22.0, 20)],
)
def test_streams_are_used_whole_and_refusals_are_few(streams, calls, seconds, longest, most):
    plays = [Play(streams=streams, calls=calls, seconds=seconds, seed=seed) for seed in (1, 2, 3)]

    assert median(play.run() for play in plays) <= longest
    assert median(play.refusals for play in plays) <= most


@pytest.mark.parametrize("streams", [math.inf, 10])
def test_five_poisoned_requests_leave_the_others_their_pace(streams):
    plays = [Play(streams=streams, calls=300, seconds=1.0, poisoned=5, seed=seed) for seed in (1, 2, 3)]

    ideal = 300 * 1.0 / min(16, streams)
    assert median(play.run() for play in plays) <= ideal / 0.79
