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

SEEDS = (1, 2, 3)
OUTAGE_ENDS = 151.3
REFUSED = Attempt(AttemptEnd.SHARED, 0.05, failure=Failure("RateLimited", "429"))


class Play:
    """Calls of `seconds` to a provider that takes `streams` at once, and refuses `poisoned` requests always.

    In `outage` (begin, end) it refuses everything. It asks for a pause of `retry_after` seconds, unless that is None.
    `unequal` is by how much calls are longer or shorter, as a share.
    """

    def __init__(
        self,
        *,
        streams: float,
        calls: int,
        seconds: float,
        poisoned: int = 0,
        unequal: float = 0.0,
        retry_after: float | None = None,
        outage: tuple[float, float] = (0.0, 0.0),
        seed: int = 1,
    ) -> None:
        rng, self._lengths = random.Random(seed), random.Random(seed)
        self.now = 0.0
        self.threads = 16
        self.dispatcher = dispatcher(
            RetryPolicy(), clock=lambda: self.now, rng=rng.random, adaptive=True, threads=self.threads
        )
        self.streams, self.calls, self.seconds, self.unequal = streams, calls, seconds, unequal
        self.outage, self._refused = outage, REFUSED._replace(retry_after=retry_after)
        partition = Partition()
        works = [partition.work(b"%d" % number) for number in range(poisoned + calls)]
        for number, work in enumerate(works):
            work.written_at = float(number)
        # At first, and then spread over the others.
        self.poisoned = set(works[:: len(works) // poisoned][:poisoned]) if poisoned else set()
        self.dispatcher.offer(works)
        self.answered = self.busy = self.dead = 0
        # When calls were refused, and when those began that were taken.
        self.refused_at: list[float] = []
        self.taken_at: list[float] = []
        self._ends: list[tuple[float, int, Work, bool]] = []
        self._numbers = itertools.count()

    @property
    def refusals(self) -> int:
        return len(self.refused_at)

    def run(self, limit: float = 1000.0) -> float:
        """Play until all good requests are answered, and return how long that took."""
        while self.answered < self.calls:
            self._step(limit)
        return self.now

    def run_on(self, limit: float = 1000.0) -> float:
        """Play until the poisoned requests have ended too, and return when that was."""
        while self.answered + self.dead < self.calls + len(self.poisoned):
            self._step(limit)
        return self.now

    def _step(self, limit: float) -> None:
        assert self.now < limit
        while self._ready():
            self._start()
        self._wait()

    def _ready(self) -> bool:
        running = len(self._ends)
        if running >= self.threads or self.dispatcher.admission.opens_at(self.now, running) > self.now:
            return False
        scheduler = self.dispatcher._scheduler
        return bool(scheduler.ready) or any(due <= self.now for due, _ in scheduler.retries())

    def _start(self) -> None:
        work = self.dispatcher.take(returning=True)
        assert work is not None
        down = self.outage[0] <= self.now < self.outage[1]
        taken = work not in self.poisoned and self.busy < self.streams and not down
        self.busy += taken
        (self.taken_at if taken else self.refused_at).append(self.now)
        takes = self.seconds * self._lengths.uniform(1.0 - self.unequal, 1.0 + self.unequal) if taken else 0.05
        heapq.heappush(self._ends, (self.now + takes, next(self._numbers), work, taken))

    def _wait(self) -> None:
        moments = [self._ends[0][0] if self._ends else math.inf]
        moments.append(self.dispatcher.admission.opens_at(self.now, len(self._ends)))
        moments.append(self.dispatcher._scheduler.next_due or math.inf)
        self.now = min((at for at in moments if at > self.now), default=self.now + 0.1)
        while self._ends and self._ends[0][0] <= self.now:
            _, _, work, taken = heapq.heappop(self._ends)
            self.busy -= taken
            made = Attempt(AttemptEnd.ANSWERED, self.seconds, b"{}") if taken else self._refused
            if isinstance(self.dispatcher.conclude(work, work.run, made), Outcome):
                self.dispatcher.free(work)
                self.dispatcher.settle([work])
                self.answered += work not in self.poisoned
                self.dead += work in self.poisoned


@pytest.mark.parametrize(
    "streams, calls, seconds, retry_after, longest, most",
    [
        (10, 200, 2.0, None, 44.0, 20),
        (1, 30, 1.0, None, 33.0, 20),
        (3, 60, 1.0, None, 22.0, 20),
        (10, 200, 1.0, 1.0, 24.0, 20),
    ],
)
def test_streams_are_used_whole_and_refusals_are_few(streams, calls, seconds, retry_after, longest, most):
    plays = [Play(streams=streams, calls=calls, seconds=seconds, retry_after=retry_after, seed=seed) for seed in SEEDS]

    assert median(play.run() for play in plays) <= longest
    assert median(play.refusals for play in plays) <= most


@pytest.mark.parametrize("streams", [math.inf, 10])
def test_five_poisoned_requests_leave_the_others_their_pace_and_end(streams):
    # Calls that end all in one moment would have it that few ran when one was refused.
    plays = [Play(streams=streams, calls=300, seconds=1.0, poisoned=5, unequal=0.2, seed=seed) for seed in SEEDS]

    ideal = 300 * 1.0 / min(16, streams)
    assert median(play.run() for play in plays) <= ideal / 0.79
    # Nothing is left then that could be answered between two of their refusals.
    for play in plays:
        assert play.run_on() <= 400.0
        assert play.dead == 5


@pytest.mark.parametrize("retry_after", [None, 2.0])
@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_an_outage_ends_no_request_and_is_noticed_to_be_over(seconds, retry_after):
    for seed in SEEDS:
        play = Play(
            streams=10, calls=1500, seconds=seconds, retry_after=retry_after, outage=(31.3, OUTAGE_ENDS), seed=seed
        )
        play.run()

        # Those at first are the flight in which the outage is noticed.
        assert sum(33.3 <= at < OUTAGE_ENDS for at in play.refused_at) <= 20
        soon = OUTAGE_ENDS + 10.0
        assert sum(soon - seconds < at <= soon for at in play.taken_at) >= 8
        assert play.answered == 1500
