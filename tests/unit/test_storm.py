"""A storm of poisoned requests, played with a clock of its own: what 16 threads do in minutes takes moments here."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from typing import NamedTuple

import pytest

from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.storm import StormLimits
from gigaoffice_worker.core.work import Work
from tests.support.making import Partition, dispatcher

POISONED, GOOD = b"poisoned", b"good"
# Records that a poll hands over, and how often it does.
_BATCH, _EVERY = 500, 0.1
_CALL = 0.05


class Ended(NamedTuple):
    """When the last good request was answered and the last poisoned one given up, and how many of each ended."""

    good_at: float
    poisoned_at: float
    counts: Counter[bytes]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def play(records: list[tuple[bytes | None, bytes]], *, seed: int, until: float, threads: int = 16) -> Ended:
    """Run records, given as (key, kind), from one partition with the settings that the worker has by default."""
    clock, draw, partition = Clock(), random.Random(seed), Partition()
    asked = dispatcher(RetryPolicy(), storm=StormLimits(), clock=clock, rng=draw.random)
    log = iter(partition.work(key, value=kind) for key, kind in records)
    calls: list[tuple[float, int, Work]] = []
    numbers = itertools.count()
    counts: Counter[bytes] = Counter()
    last = {GOOD: 0.0, POISONED: 0.0}
    while clock.now < until and counts.total() < len(records):
        if asked.intake_stopped() is None:
            asked.offer(itertools.islice(log, _BATCH))
        next_poll = clock.now + _EVERY
        while clock.now < next_poll:
            while len(calls) < threads and (work := _next(asked)) is not None:
                heapq.heappush(calls, (clock.now + _CALL, next(numbers), work))
            if not calls or calls[0][0] > next_poll:
                clock.now = next_poll
                break
            clock.now, _, work = heapq.heappop(calls)
            kind = work.record.value or b""
            failed = Attempt(AttemptEnd.FAILED, _CALL, failure=Failure("KeyError", "no such field"))
            made = failed if kind == POISONED else Attempt(AttemptEnd.ANSWERED, _CALL, b"{}")
            if isinstance(asked.conclude(work, work.run, made), Outcome):
                asked.free(work)
                asked.settle([work])
                counts[kind] += 1
                last[kind] = clock.now
    return Ended(last[GOOD], last[POISONED], counts)


def _next(asked) -> Work | None:
    """Return what a thread would begin now, without waiting for it."""
    now = asked._clock()
    scheduler = asked._scheduler
    due = sum(at <= now for at, _ in scheduler.retries())
    if asked.admission.opens_at(now, 0) > now or not scheduler.ready + due:
        return None
    return asked.take(returning=True)


def keys(kind: bytes, count: int, shape: str) -> list[tuple[bytes | None, bytes]]:
    key = {"own": lambda n: b"%s-%d" % (kind, n), "one": lambda _: kind, "none": lambda _: None}[shape]
    return [(key(number), kind) for number in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["own", "one", "none"], ids="keys: {}".format)
def test_behind_forty_poisoned_ones_all_good_ones_are_answered_within_a_minute(shape: str, seed: int) -> None:
    ended = play([*keys(POISONED, 40, shape), *keys(GOOD, 180, "own")], seed=seed, until=600)
    assert ended.counts == {GOOD: 180, POISONED: 40}
    assert ended.good_at < 60


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mixed", [False, True], ids=["in front", "among"])
@pytest.mark.parametrize("shape", ["own", "none"], ids="keys: {}".format)
def test_four_hundred_poisoned_ones_among_six_hundred_good_ones_end_and_the_good_ones_within_three_minutes(
    shape: str, seed: int, *, mixed: bool
) -> None:
    records = [*keys(POISONED, 400, shape), *keys(GOOD, 600, "own")]
    if mixed:
        random.Random(seed).shuffle(records)
    ended = play(records, seed=seed, until=3600)
    assert ended.counts == {GOOD: 600, POISONED: 400}
    assert ended.good_at < 180


def test_while_everything_fails_hardly_anything_is_given_up() -> None:
    ended = play(keys(POISONED, 2000, "own"), seed=1, until=3600)
    assert ended.counts[POISONED] < 60
