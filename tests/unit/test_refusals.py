"""Refusals of the provider, from a request's side: whose fault one is, who tries next, and when it ends."""

from __future__ import annotations

import itertools
import weakref

import pytest

from gigaoffice_worker.core.group_share import ConcurrencyShare, GroupLimits, Rate, RateShare, TokenShare
from gigaoffice_worker.core.judgement import FREE_REFUSALS
from gigaoffice_worker.core.records import NO_CALL, Attempt, AttemptEnd, Failure, Outcome, Reason
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.usage import Usage
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.dispatcher import Dispatcher
from tests.support.making import Partition, dispatcher

ANSWERED = Attempt(AttemptEnd.ANSWERED, 1.0, b"{}")
ATTEMPTS = 3


def refused(retry_after: float | None = None) -> Attempt:
    return Attempt(AttemptEnd.SHARED, 0.05, failure=Failure("RateLimited", "429"), retry_after=retry_after)


class Scene:
    def __init__(self, *, adaptive: bool = True, group: GroupLimits | None = None) -> None:
        self.now = 100.0
        self.partition = Partition()
        self._numbers = itertools.count()
        policy = RetryPolicy(ATTEMPTS, delay=1.0, max_delay=8.0)
        self.dispatcher: Dispatcher = dispatcher(
            policy, clock=lambda: self.now, rng=lambda: 0.5, adaptive=adaptive, group=group
        )

    def offer(self, count: int) -> list[Work]:
        works = [self.partition.work(b"%d" % next(self._numbers)) for _ in range(count)]
        for work in works:
            work.written_at = float(work.record.offset)
        self.dispatcher.offer(works)
        return works

    def opens_at(self) -> float:
        return self.dispatcher.admission.opens_at(self.now, len(self.dispatcher.in_hand.attempts()))

    def take(self) -> Work:
        assert self.opens_at() <= self.now
        work = self.dispatcher.take(returning=True)
        assert work is not None
        return work

    def end(self, work: Work, made: Attempt) -> Outcome | object:
        return self.dispatcher.conclude(work, work.run, made)


@pytest.mark.parametrize("adaptive", [True, False])
def test_when_the_gate_opens_another_request_tries_first(adaptive):
    scene = Scene(adaptive=adaptive)
    poisoned, *others = scene.offer(3)
    assert scene.take() is poisoned
    scene.end(poisoned, refused(retry_after=5.0))
    assert scene.opens_at() > scene.now

    scene.now = scene.opens_at() + 0.1
    probe = scene.take()

    assert probe in others
    assert scene.opens_at() > scene.now, "until the probe has told, nobody else starts"
    scene.end(probe, ANSWERED)
    assert scene.opens_at() <= scene.now


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_request_that_is_always_refused_ends_while_others_pass(adaptive):
    scene = Scene(adaptive=adaptive)
    (poisoned,) = scene.offer(1)
    refusals = 0
    for _ in range(5000):
        scene.offer(1)
        scene.now += 1.0
        if scene.opens_at() > scene.now:
            continue
        work = scene.take()
        if work is not poisoned:
            scene.end(work, ANSWERED)
            continue
        refusals += 1
        outcome = scene.end(work, refused())
        if isinstance(outcome, Outcome):
            assert outcome.reason is Reason.ATTEMPTS_EXHAUSTED
            break
    # The first refusal, the free ones, and those that count.
    assert refusals == 1 + FREE_REFUSALS + ATTEMPTS


def test_what_everybody_is_refused_never_counts():
    scene = Scene()
    scene.offer(2)
    for _ in range(100):
        scene.now = scene.opens_at() + 20.0
        work = scene.take()
        assert not isinstance(scene.end(work, refused()), Outcome)
        assert work.attempt == 0


def test_a_lone_refusal_does_not_stop_the_others():
    scene = Scene(adaptive=False)
    poisoned, *_ = scene.offer(4)
    assert scene.take() is poisoned
    scene.end(poisoned, refused(retry_after=1.0))
    scene.now += 2.0
    scene.end(scene.take(), ANSWERED)
    assert scene.take() is poisoned
    scene.end(poisoned, refused(retry_after=1000.0))
    scene.end(scene.take(), ANSWERED)

    scene.offer(1)
    scene.end(scene.take(), ANSWERED)


class Witness:
    """Lives for as long as the request that refers to it."""


def test_nothing_is_kept_of_requests_that_expired_in_an_outage():
    scene = Scene()
    wall = 1e10
    kept: weakref.WeakSet[Witness] = weakref.WeakSet()
    for _ in range(360):
        scene.now += 10.0
        work = scene.partition.work()
        work.sharing = Witness()
        kept.add(work.sharing)
        work.worth_until = wall + scene.now + 60.0
        scene.dispatcher.offer([work])
        # The gate opens for one, and that is the one that was refused least: a new one each time.
        scene.end(scene.take(), refused())
        scene.dispatcher.settle(scene.dispatcher.expire([scene.partition.assignment], wall + scene.now))
    del work
    assert len(kept) <= 7


def test_refusals_before_an_answer_say_nothing_of_who_tries_first_after_it():
    scene = Scene()
    often, seldom, good, closing = scene.offer(4)
    admission = scene.dispatcher.admission

    def ends(work: Work, *, taken: bool) -> None:
        scene.now += 20.0
        admission.started(work, scene.now)
        if taken:
            admission.passed(work, scene.now)
        else:
            admission.refused(work, scene.now, 0, 1.0, "RateLimited")

    for work in (often, often, seldom):
        ends(work, taken=False)
    assert min([often, seldom], key=admission.preference) is seldom

    ends(good, taken=True)
    ends(closing, taken=False)
    assert min([closing, seldom, often], key=admission.preference) is often


def test_the_groups_share_bounds_the_calls_at_once():
    scene = Scene(group=GroupLimits(lambda: 0.0, concurrency=ConcurrencyShare(6)))
    scene.offer(10)
    assert scene.opens_at() == float("inf"), "without a partition there is no share"

    scene.dispatcher.change(lambda admission, now: admission.owns(now, owned=[0], partitions=3))
    scene.now += 10.0
    running = [scene.take(), scene.take()]
    assert scene.opens_at() == float("inf")

    scene.end(running[0], ANSWERED)
    assert scene.opens_at() <= scene.now


def test_the_groups_rate_spreads_the_calls():
    scene = Scene(adaptive=False, group=GroupLimits(lambda: 0.0, rate=RateShare(Rate(6, 60), lambda: 0.0)))
    scene.offer(10)
    scene.dispatcher.change(lambda admission, now: admission.owns(now, owned=[0], partitions=2))

    scene.end(scene.take(), ANSWERED)
    assert scene.opens_at() == scene.now + 20.0

    scene.now += 20.0
    scene.end(scene.take(), refused())
    assert scene.opens_at() <= scene.now + 2.0, "a refused call is not counted by the provider either"


NO_CALLS = [Attempt(ended, 0.0, failure=Failure("InvalidRequest", "no")) for ended in sorted(NO_CALL)]


def with_group_rate() -> Scene:
    """A scene that may make 20 calls in 60 s, and has made none for long."""
    scene = Scene(group=GroupLimits(lambda: 0.0, rate=RateShare(Rate(20, 60), lambda: 0.0)))
    scene.dispatcher.change(lambda admission, now: admission.owns(now, owned=[0], partitions=1))
    scene.now += 100.0
    return scene


@pytest.mark.parametrize("made", NO_CALLS, ids=lambda made: made.ended.value)
def test_an_attempt_without_a_call_uses_up_nothing_of_the_groups_rate(made):
    scene = with_group_rate()
    for _ in range(100):
        scene.offer(1)
        scene.end(scene.take(), made)
        scene.now += 0.1

    scene.offer(20)
    for _ in range(20):
        scene.take()
    assert scene.opens_at() > scene.now + 40.0, "all that was let through were calls"


def test_an_attempt_without_a_call_uses_up_nothing_where_its_partition_is_lost_meanwhile():
    scene = with_group_rate()
    scene.offer(20)
    running = [scene.take() for _ in range(20)]
    scene.dispatcher.forget(scene.partition.assignment)
    for work, made in zip(running, itertools.cycle((*NO_CALLS, refused())), strict=False):
        scene.end(work, made)

    assert scene.opens_at() <= scene.now


def test_a_refusal_leaves_the_learnt_pace_as_it_is_also_where_its_partition_is_lost():
    scene = Scene()
    limits = scene.dispatcher.admission.limits
    limits.refusals = 1
    limits.pace.learn(0.0, 60.0)
    [work] = scene.offer(1)
    assert scene.take() is work
    next_at = limits.pace.next_at
    scene.dispatcher.forget(scene.partition.assignment)
    scene.end(work, refused())
    assert limits.pace.next_at == next_at


@pytest.mark.parametrize("lost", [False, True], ids=["held", "lost"])
@pytest.mark.parametrize("made", [ANSWERED, *NO_CALLS], ids=lambda made: made.ended.value)
def test_the_groups_tokens_are_used_up_by_calls_also_of_a_lost_partition(made, lost):
    scene = Scene(group=GroupLimits(lambda: 0.0, tokens=TokenShare(Rate(1200, 60))))
    scene.dispatcher.change(lambda admission, now: admission.owns(now, owned=[0], partitions=1))
    scene.now += 100.0
    scene.offer(1)
    work = scene.take()
    if lost:
        scene.dispatcher.forget(scene.partition.assignment)
    scene.end(work, made._replace(used=(Usage(input_tokens=600),) if made is ANSWERED else ()))

    assert (scene.opens_at() > scene.now + 10.0) == (made is ANSWERED)


@pytest.mark.parametrize("made", NO_CALLS, ids=lambda made: made.ended.value)
def test_an_attempt_without_a_call_leaves_the_learnt_pace_to_calls(made):
    scene = Scene()
    limits = scene.dispatcher.admission.limits
    limits.started(scene.now)
    limits.refused(scene.now, scene.now, 0, None)
    scene.now += 20.0
    limits.pace.learn(scene.now, 20.0)
    calls_before = limits._starts.count(scene.now)
    for _ in range(100):
        scene.offer(1)
        scene.end(scene.take(), made)

    assert scene.opens_at() <= scene.now
    assert limits._starts.count(scene.now) == calls_before
    scene.offer(1)
    scene.take()
    assert scene.opens_at() > scene.now


def test_a_call_that_failed_uses_up_the_groups_rate():
    scene = with_group_rate()
    scene.offer(20)
    for _ in range(20):
        scene.end(scene.take(), Attempt(AttemptEnd.FAILED, 1.0, failure=Failure("ValueError", "bad")))

    assert scene.opens_at() > scene.now + 40.0
