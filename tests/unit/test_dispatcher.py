"""What becomes of requests in hand: every end of an attempt, holds, gate, storm guard, and threads that wait."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from gigaoffice_worker.core.judgement import Retry
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome, Reason
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.scheduler import Ordering
from gigaoffice_worker.core.storm import StormLimits
from gigaoffice_worker.core.usage import Usage
from gigaoffice_worker.core.work import Stage, Work
from gigaoffice_worker.engine.dispatcher import Counts, Dispatcher, Late, PassedOn
from tests.support.making import Partition, dispatcher
from tests.support.waiting import eventually

ANSWERED = Attempt(AttemptEnd.ANSWERED, 1.0, b'{"a":1}')
REJECTED = Attempt(AttemptEnd.REJECTED, 1.0, failure=Failure("RejectedError", "no"))
INVALID = Attempt(AttemptEnd.INVALID, 0.0, failure=Failure("InvalidRequest", "not JSON"))
UNUSABLE = Attempt(AttemptEnd.UNUSABLE, 1.0, failure=Failure("UnusableResult", "no JSON"))
FAILED = Attempt(AttemptEnd.FAILED, 1.0, failure=Failure("ValueError", "bad"))
HUNG = Attempt(AttemptEnd.TIMED_OUT, 9.0, failure=Failure("AttemptTimeout", "late"), hung=True)
TIMED_OUT = Attempt(AttemptEnd.TIMED_OUT, 9.0, failure=Failure("AttemptTimeout", "late"))


def shared(retry_after: float | None = None) -> Attempt:
    return Attempt(AttemptEnd.SHARED, 1.0, failure=Failure("TransientError", "429"), retry_after=retry_after)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A dispatcher with a time of its own, without jitter, asked by one thread."""

    def __init__(
        self,
        *,
        attempts: int = 3,
        storm: StormLimits | None = None,
        ordering: Ordering = "key",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.time = Clock()
        # With threads that really wait, delays are real too.
        policy = RetryPolicy(attempts, delay=0.1 if clock else 2.0, max_delay=8.0)
        self.dispatcher = dispatcher(policy, ordering=ordering, storm=storm, clock=clock or self.time, rng=lambda: 0.5)
        self.partition = Partition()

    def offer(self, *keys: bytes | None, partition: Partition | None = None) -> list[Work]:
        works = [(partition or self.partition).work(key) for key in keys]
        self.dispatcher.offer(works)
        return works

    def take(self) -> Work:
        """Take what must be there: a test that waits here for ever has found nothing to run."""
        assert not self.idle
        work = self.dispatcher.take(returning=True)
        assert work is not None
        return work

    @property
    def idle(self) -> bool:
        """Whether a thread that asks now would have to wait."""
        admission, scheduler = self.dispatcher.admission, self.dispatcher._scheduler
        with self.dispatcher.locked():
            if admission.opens_at(self.time.now, len(self.dispatcher._running)) > self.time.now:
                return True
            return scheduler.ready + sum(at <= self.time.now for at, _ in scheduler.retries()) == 0

    def run(self, made: Attempt) -> tuple[Work, Outcome | Retry | Late]:
        work = self.take()
        return work, self.dispatcher.conclude(work, work.run, made)

    def end(self, made: Attempt) -> Work:
        """Run one request to its end and settle it."""
        work, outcome = self.run(made)
        assert isinstance(outcome, Outcome)
        self.dispatcher.free(work)
        self.dispatcher.settle([work])
        return work


# How an attempt may end


@pytest.mark.parametrize(
    "made, expected",
    [
        (ANSWERED, Outcome(b'{"a":1}')),
        (REJECTED, Outcome(failure=REJECTED.failure, reason=Reason.REJECTED)),
        (INVALID, Outcome(failure=INVALID.failure, reason=Reason.INVALID_REQUEST)),
    ],
    ids=["answered", "rejected", "invalid"],
)
def test_an_answer_a_rejection_and_an_invalid_value_end_a_request_at_once(made: Attempt, expected: Outcome) -> None:
    scene = Scene()
    scene.offer(b"k")
    work, outcome = scene.run(made)
    assert outcome == expected
    assert work.stage is Stage.DELIVERING
    assert scene.dispatcher.counts() == Counts(0, 0, 0, 1)


def test_an_answer_that_says_it_failed_keeps_its_failure() -> None:
    scene = Scene()
    scene.offer(b"k")
    failure = Failure("HandlerFailure", "no")
    assert scene.run(ANSWERED._replace(failure=failure))[1] == Outcome(b'{"a":1}', failure)


@pytest.mark.parametrize(
    "made, reason", [(FAILED, Reason.ATTEMPTS_EXHAUSTED), (TIMED_OUT, Reason.TIMED_OUT)], ids=["failed", "timed out"]
)
def test_a_failure_is_tried_again_until_the_attempts_are_used_up(made: Attempt, reason: Reason) -> None:
    scene = Scene(attempts=3)
    scene.offer(b"k")
    for attempt, delay in ((1, 1.0), (2, 2.0)):
        work, outcome = scene.run(made)
        assert isinstance(outcome, Retry)
        assert (work.attempt, work.stage) == (attempt, Stage.WAITING_RETRY)
        assert scene.dispatcher.counts() == Counts(0, 0, 1, 0)
        scene.time.now += delay - 0.01
        assert scene.idle
        scene.time.now += 0.01
    work, outcome = scene.run(made)
    assert outcome == Outcome(failure=made.failure, reason=reason)
    assert work.attempt == 3
    assert work.seconds == 3 * made.seconds


def test_the_last_attempt_decides_between_timed_out_and_exhausted() -> None:
    for first, last, reason in ((TIMED_OUT, FAILED, Reason.ATTEMPTS_EXHAUSTED), (FAILED, TIMED_OUT, Reason.TIMED_OUT)):
        scene = Scene(attempts=2)
        scene.offer(b"k")
        scene.run(first)
        scene.time.now += 60
        _, outcome = scene.run(last)
        assert isinstance(outcome, Outcome)
        assert outcome.reason is reason


def test_the_delay_that_a_handler_asks_for_is_the_least() -> None:
    scene = Scene()
    scene.offer(b"k")
    scene.run(FAILED._replace(retry_after=100.0))
    scene.time.now += 99.9
    assert scene.idle
    scene.time.now += 2.1
    assert not scene.idle


def test_an_invalid_value_counts_no_attempt() -> None:
    scene = Scene()
    scene.offer(b"k")
    assert scene.run(INVALID)[0].attempt == 0


def test_a_failing_request_keeps_its_key_closed_and_delays_no_other() -> None:
    scene = Scene()
    first, second, other = scene.offer(b"a", b"a", b"b")
    assert scene.run(FAILED)[0] is first
    assert scene.run(ANSWERED)[0] is other
    assert scene.idle
    scene.time.now += 60
    assert scene.run(ANSWERED)[0] is first
    assert scene.idle
    scene.dispatcher.free(first)
    assert scene.take() is second


def test_a_key_opens_when_its_thread_comes_back_from_publishing() -> None:
    scene = Scene()
    scene.offer(b"a", b"a")
    first, _ = scene.run(ANSWERED)
    second = scene.dispatcher.take(first, returning=True)
    assert second is not None
    assert second.record.offset == 1


# Results that come too late


def test_the_result_of_an_abandoned_attempt_is_dropped_once_the_next_has_begun() -> None:
    scene = Scene()
    scene.offer(b"k")
    work = scene.take()
    run = work.run
    assert isinstance(scene.dispatcher.conclude(work, run, HUNG), Retry)
    scene.time.now += 60
    again = scene.take()
    assert (again, again.attempt) == (work, 2)
    assert scene.dispatcher.conclude(work, run, ANSWERED) is Late.ABANDONED
    assert isinstance(scene.dispatcher.conclude(work, again.run, ANSWERED), Outcome)
    assert scene.dispatcher.conclude(work, again.run, ANSWERED) is Late.ABANDONED


def test_a_late_result_is_told_apart_even_when_the_attempt_did_not_count() -> None:
    scene = Scene(attempts=1, storm=StormLimits(min_requests=1))
    scene.offer(b"a", b"b")
    scene.run(FAILED)
    probe = scene.take()
    first = probe.run
    scene.dispatcher.conclude(probe, first, TIMED_OUT)
    scene.time.now += 60
    assert scene.take() is probe
    assert probe.attempt == 1
    assert scene.dispatcher.conclude(probe, first, ANSWERED) is Late.ABANDONED
    assert scene.dispatcher.in_hand.attempts() == [(probe, probe.run)]


@pytest.mark.parametrize("made", [ANSWERED, REJECTED, UNUSABLE], ids=["answered", "rejected", "unusable"])
@pytest.mark.parametrize("is_due", [False, True], ids=["waiting", "due"])
def test_a_result_that_comes_before_the_retry_begins_is_taken(made: Attempt, is_due: bool) -> None:  # noqa: FBT001
    scene = Scene()
    scene.offer(b"k", b"k", b"other")
    work = scene.take()
    other = scene.take()
    scene.time.now += 9
    scene.dispatcher.conclude(work, work.run, HUNG)
    if is_due:
        scene.time.now += 60
        scene.dispatcher.conclude(other, other.run, ANSWERED)
        scene.dispatcher.free(other)
        scene.dispatcher._scheduler._promote_due(scene.time.now)
    outcome = scene.dispatcher.conclude(work, work.run, made._replace(seconds=12.0))
    assert isinstance(outcome, Outcome)
    assert (work.stage, work.seconds) == (Stage.DELIVERING, 12.0)
    assert scene.dispatcher.counts().waiting_retry == 0
    assert scene.idle
    # It counts once: whatever comes of that run later is too late.
    assert scene.dispatcher.conclude(work, work.run, ANSWERED) is Late.ABANDONED
    scene.dispatcher.free(work)
    assert scene.take().record.offset == 1


def test_a_failure_that_comes_late_changes_nothing() -> None:
    scene = Scene()
    scene.offer(b"k")
    work = scene.take()
    scene.dispatcher.conclude(work, work.run, HUNG)
    assert scene.dispatcher.conclude(work, work.run, FAILED) is Late.ABANDONED
    assert (work.stage, work.attempt) == (Stage.WAITING_RETRY, 1)
    assert scene.dispatcher.counts() == Counts(0, 0, 1, 0)


def test_a_late_result_for_a_lost_partition_is_dropped() -> None:
    scene = Scene()
    scene.offer(b"k")
    work = scene.take()
    scene.dispatcher.conclude(work, work.run, HUNG)
    scene.dispatcher.forget(scene.partition.assignment)
    assert scene.dispatcher.conclude(work, work.run, ANSWERED) is Late.LOST
    assert scene.dispatcher.counts() == Counts(0, 0, 0, 0)


def test_a_request_whose_second_call_hangs_too_gets_no_third() -> None:
    scene = Scene(attempts=9)
    scene.offer(b"k")
    for made in (FAILED, HUNG, FAILED):
        assert isinstance(scene.run(made)[1], Retry)
        scene.time.now += 60
    work, outcome = scene.run(HUNG)
    assert outcome == Outcome(failure=HUNG.failure, reason=Reason.TIMED_OUT)
    assert work.attempt == 4


def test_a_call_that_ends_by_its_deadline_does_not_hang() -> None:
    scene = Scene(attempts=3)
    scene.offer(b"k")
    for _ in range(2):
        assert isinstance(scene.run(TIMED_OUT)[1], Retry)
        scene.time.now += 60


def test_the_result_for_a_lost_partition_is_dropped_and_never_delivered() -> None:
    scene = Scene()
    scene.offer(b"a", b"a", b"b")
    work = scene.take()
    scene.dispatcher.forget(scene.partition.assignment)
    assert scene.dispatcher.counts() == Counts(0, 1, 0, 0)
    assert scene.dispatcher.conclude(work, work.run, ANSWERED) is Late.LOST
    assert scene.dispatcher.counts() == Counts(0, 0, 0, 0)
    assert scene.idle


def test_a_lost_partition_loses_its_retries_and_no_other_partitions() -> None:
    scene, kept = Scene(), Partition(1)
    scene.offer(b"a")
    scene.offer(b"a", partition=kept)
    scene.run(FAILED)
    scene.run(FAILED)
    scene.dispatcher.forget(scene.partition.assignment)
    scene.time.now += 60
    assert scene.take().assignment is kept.assignment
    assert scene.dispatcher.counts() == Counts(0, 1, 0, 0)


# A partition that returns while calls of its first ownership still run


def returned(scene: Scene, *keys: bytes | None, position: int = 0) -> list[Work]:
    """Lose the partition, let it return from an offset on, and offer what is read."""
    scene.dispatcher.forget(scene.partition.assignment)
    scene.partition = Partition(0, scene.partition.assignment.epoch + 1, position)
    return scene.offer(*keys)


@pytest.mark.parametrize("ordering", ["key", "partition"])
@pytest.mark.parametrize("made", [FAILED, REJECTED, UNUSABLE, shared(), HUNG])
def test_a_lane_waits_for_the_run_of_an_earlier_ownership_or_until_it_is_given_up(
    made: Attempt, ordering: Ordering
) -> None:
    scene = Scene(ordering=ordering)
    scene.offer(b"k", b"k")
    old = scene.take()
    first, second = returned(scene, b"k", b"k")
    assert scene.idle
    assert scene.dispatcher.counts() == Counts(2, 1, 0, 0)
    assert scene.dispatcher.conclude(old, old.run, made) is Late.LOST
    assert scene.take() is first
    assert first.attempt == 1
    assert scene.idle
    assert isinstance(scene.dispatcher.conclude(first, first.run, ANSWERED), Outcome)
    scene.dispatcher.free(first)
    assert scene.take() is second


def test_other_keys_and_partitions_do_not_wait_for_a_run_of_an_earlier_ownership() -> None:
    scene, other = Scene(), Partition(1)
    scene.offer(b"k")
    scene.take()
    (own,) = returned(scene, b"other", position=1)
    (elsewhere,) = scene.offer(b"k", partition=other)
    assert {scene.take(), scene.take()} == {own, elsewhere}


def test_a_lane_waits_for_a_run_that_outlasts_two_ownerships() -> None:
    scene = Scene()
    scene.offer(b"k")
    old = scene.take()
    returned(scene, b"k")
    (newest,) = returned(scene, b"k", position=1)
    assert scene.idle
    scene.dispatcher.conclude(old, old.run, ANSWERED)
    assert scene.take() is newest


@pytest.mark.parametrize("key", [b"k", None])
def test_the_result_of_an_earlier_ownership_answers_its_request_also_where_no_attempt_may_start(
    key: bytes | None,
) -> None:
    scene = Scene()
    scene.offer(key)
    old = scene.take()
    old.id = "r"
    heir, behind = returned(scene, key, key)
    scene.dispatcher.hold("draining")
    assert scene.dispatcher.conclude(old, old.run, ANSWERED) == PassedOn(heir, Outcome(b'{"a":1}'))
    assert (heir.id, heir.attempt, heir.seconds, heir.stage) == ("r", 1, 1.0, Stage.DELIVERING)
    assert scene.dispatcher.counts() == Counts(1, 0, 0, 1)
    assert not scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.dispatcher.settle([heir])
    assert scene.dispatcher.in_hand.wait_quiet(0.0)
    assert scene.partition.assignment.tracker.committable == 1
    scene.dispatcher.release("draining")
    assert scene.idle == (key is not None)
    scene.dispatcher.free(heir)
    assert scene.take() is behind


def test_what_the_calls_of_an_earlier_ownership_used_is_told_with_the_answer() -> None:
    scene = Scene()
    scene.offer(b"k")
    old = scene.take()
    returned(scene, b"k")
    passed = scene.dispatcher.conclude(old, old.run, ANSWERED._replace(used=(Usage(input_tokens=7),)))
    assert isinstance(passed, PassedOn)
    assert passed.outcome.usage == b'{"input_tokens":7}'


def test_a_request_that_owes_its_response_only_takes_no_result_of_an_earlier_ownership() -> None:
    scene = Scene()
    scene.offer(b"k")
    old = scene.take()
    scene.dispatcher.forget(scene.partition.assignment)
    scene.partition = Partition(0, epoch=2)
    owing = scene.partition.work(b"k")
    owing.owed = Outcome(failure=FAILED.failure, reason=Reason.REJECTED)
    scene.dispatcher.offer([owing])
    assert scene.dispatcher.conclude(old, old.run, ANSWERED) is Late.LOST
    assert scene.take() is owing


def test_the_result_of_an_earlier_ownership_answers_no_other_request() -> None:
    """Behind it in its key, or at its offset in a topic that was created again."""
    scene = Scene()
    scene.offer(b"k")
    old = scene.take()
    (behind,) = returned(scene, b"k", position=1)
    assert scene.dispatcher.conclude(old, old.run, ANSWERED) is Late.LOST
    assert scene.take() is behind
    scene.dispatcher.forget(scene.partition.assignment)
    created_again = Partition(0, 3, position=1).work(b"k")
    created_again.record = created_again.record._replace(timestamp=1.0)
    scene.dispatcher.offer([created_again])
    assert scene.dispatcher.conclude(behind, behind.run, ANSWERED) is Late.LOST
    assert scene.take() is created_again


def test_a_request_without_a_key_waits_for_its_own_run_of_an_earlier_ownership_only() -> None:
    scene = Scene()
    scene.offer(None, None)
    old = scene.take()
    itself, other = returned(scene, None, None)
    assert scene.take() is other
    assert scene.idle
    assert scene.dispatcher.conclude(old, old.run, FAILED) is Late.LOST
    assert scene.take() is itself


def test_one_that_expires_while_it_waits_for_an_earlier_ownership_leaves_its_lane_usable() -> None:
    scene = Scene()
    scene.offer(b"k")
    old = scene.take()
    scene.dispatcher.forget(scene.partition.assignment)
    scene.partition = Partition(0, 2)
    expiring, behind = [scene.partition.work(b"k") for _ in range(2)]
    expiring.worth_until = 2e9
    scene.dispatcher.offer([expiring, behind])
    assert scene.dispatcher.expire([scene.partition.assignment], 3e9) == [expiring]
    scene.dispatcher.free(expiring)
    assert scene.idle
    assert scene.dispatcher.conclude(old, old.run, ANSWERED) is Late.LOST
    assert scene.take() is behind


def test_an_idle_pool_wakes_for_a_key_that_an_earlier_ownership_opens() -> None:
    scene = Scene(clock=time.monotonic)
    scene.offer(b"k")
    old = scene.take()
    (heir,) = returned(scene, b"k")
    with takers(scene, 2) as pool:
        scene.dispatcher.conclude(old, old.run, FAILED)
        assert pool.next() is heir


# Settling


def test_what_is_held_is_counted_until_it_is_settled() -> None:
    scene = Scene()
    works = scene.offer(b"a", b"b")
    held = scene.partition.assignment
    assert (held.held_records, held.held_bytes) == (2, sum(work.size for work in works))
    scene.end(ANSWERED)
    assert (held.held_records, held.held_bytes) == (1, works[1].size)
    assert held.tracker.committable == 1
    scene.end(REJECTED)
    assert (held.held_records, held.held_bytes, held.tracker.committable) == (0, 0, 2)


def test_an_outcome_of_a_lost_partition_settles_nothing_and_nobody_waits_for_it() -> None:
    scene, kept = Scene(), Partition(1)
    scene.offer(b"a")
    work, _ = scene.run(ANSWERED)
    scene.offer(b"a", partition=kept)
    ours, _ = scene.run(ANSWERED)
    scene.dispatcher.forget(scene.partition.assignment)
    assert not scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.dispatcher.settle([ours])
    assert scene.dispatcher.in_hand.wait_quiet(0.0)
    assert scene.dispatcher.counts() == Counts(0, 0, 0, 0)
    scene.dispatcher.settle([work])
    assert scene.partition.assignment.tracker.committable == 0


def test_nobody_waits_for_a_run_of_a_lost_partition_unless_its_request_is_back() -> None:
    scene = Scene()
    scene.offer(b"k")
    old = scene.take()
    assert not scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.dispatcher.forget(scene.partition.assignment)
    assert scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.partition = Partition(0, epoch=2)
    scene.offer(b"k", b"k")
    assert not scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.dispatcher.forget(scene.partition.assignment)  # lost once more
    assert scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.partition = Partition(0, epoch=3, position=1)
    (behind,) = scene.offer(b"k")  # which needs the end of the run, and not its result
    assert scene.dispatcher.in_hand.wait_quiet(0.0)
    assert scene.dispatcher.conclude(old, old.run, ANSWERED) is Late.LOST
    assert scene.take() is behind


def test_whoever_waits_for_quiet_hears_that_what_runs_is_lost() -> None:
    scene = Scene()
    scene.offer(b"k")
    scene.take()
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(scene.dispatcher.in_hand.wait_quiet(20)))
    waiting.start()
    eventually(lambda: scene.dispatcher.in_hand.observed, "it waits", interval=0.001)
    scene.dispatcher.forget(scene.partition.assignment)
    waiting.join(10)
    assert found == [True]


def test_it_is_quiet_when_nothing_runs_and_every_outcome_is_durable() -> None:
    scene = Scene()
    scene.offer(b"a", b"b")
    assert scene.dispatcher.in_hand.wait_quiet(0.0)
    work = scene.take()
    assert not scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.dispatcher.conclude(work, work.run, ANSWERED)
    assert not scene.dispatcher.in_hand.wait_quiet(0.0)
    scene.dispatcher.settle([work])
    assert scene.dispatcher.in_hand.wait_quiet(0.0)


# Holds


def test_nothing_starts_until_every_hold_is_released() -> None:
    scene = Scene()
    scene.offer(b"a")
    scene.dispatcher.hold("delivery")
    scene.dispatcher.hold("rebalance")
    scene.dispatcher.hold("rebalance")
    assert scene.dispatcher.admission.holds.held(scene.time.now) == {"delivery", "rebalance"}
    scene.dispatcher.release("rebalance")
    assert scene.idle
    scene.dispatcher.release("delivery")
    scene.dispatcher.release("never held")
    assert scene.run(ANSWERED)[0].attempt == 1


def test_nothing_starts_when_the_lease_has_run_out_until_it_is_renewed() -> None:
    scene = Scene()
    scene.offer(b"a", b"b")
    scene.dispatcher.lease(scene.time.now + 5)
    scene.run(ANSWERED)
    scene.time.now += 5.1
    assert scene.idle
    assert scene.dispatcher.admission.holds.held(scene.time.now) == {"session"}
    assert scene.dispatcher.counts().starving_since is None
    scene.dispatcher.lease(scene.time.now - 1)
    assert scene.idle
    scene.dispatcher.lease(scene.time.now + 5)
    assert scene.dispatcher.admission.holds.held(scene.time.now) == frozenset()
    scene.run(ANSWERED)


# The shared gate


def test_a_shared_failure_closes_the_gate_for_all_and_counts_no_attempt() -> None:
    scene = Scene(attempts=1)
    scene.offer(b"a", b"b")
    for _ in range(3):
        work, outcome = scene.run(shared(10.0))
        assert isinstance(outcome, Retry)
        assert (work.attempt, work.stage) == (0, Stage.WAITING_RETRY)
        assert scene.idle
        scene.time.now = scene.dispatcher.admission.limits.gate.until
    first, second = scene.run(ANSWERED), scene.run(ANSWERED)
    assert {first[0].record.offset, second[0].record.offset} == {0, 1}
    assert first[0].attempt == second[0].attempt == 1


def test_a_call_that_runs_while_the_gate_closes_may_end() -> None:
    scene = Scene()
    scene.offer(b"a", b"b")
    calls = scene.take(), scene.take()
    scene.dispatcher.conclude(calls[0], 1, shared(10.0))
    assert scene.idle
    assert isinstance(scene.dispatcher.conclude(calls[1], 1, ANSWERED), Outcome)
    assert scene.idle


# The storm guard

STORM = StormLimits(min_requests=4, ratio=0.75)


def in_a_storm(others: int = 3) -> Scene:
    """A scene in which the guard has just tripped, with `others` requests still in hand."""
    scene = Scene(attempts=1, storm=STORM)
    scene.offer(*(b"%d" % number for number in range(4 + others)))
    for made in (ANSWERED, FAILED, FAILED):
        scene.end(made)
        assert scene.dispatcher.admission.guard.reason is None
    scene.end(FAILED)
    assert scene.dispatcher.admission.guard.reason == "ValueError"
    return scene


def test_rejected_and_invalid_requests_make_no_storm() -> None:
    scene = Scene(attempts=1, storm=STORM)
    scene.offer(*[None] * 40)
    for _ in range(20):
        scene.end(REJECTED)
        scene.end(INVALID)
    assert scene.dispatcher.admission.guard.reason is None


def test_invalid_requests_have_finished_too_and_thin_a_storm_out() -> None:
    scene = Scene(attempts=1, storm=STORM)
    scene.offer(*[None] * 6)
    for made in (INVALID, INVALID, FAILED, FAILED, FAILED, FAILED):
        scene.end(made)
    assert scene.dispatcher.admission.guard.reason is None


def test_in_a_storm_one_request_at_a_time_probes_each_time_another_and_all_keep_their_attempts() -> None:
    scene, probes = in_a_storm(others=5), []
    for _ in range(5):
        probes.append(probe := scene.take())
        assert scene.idle
        assert isinstance(scene.dispatcher.conclude(probe, probe.run, FAILED), Retry)
        assert (probe.attempt, probe.stage) == (0, Stage.WAITING_RETRY)
        assert scene.idle
        scene.time.now += 60
    assert len(set(probes)) == 5
    assert scene.partition.assignment.tracker.committable == 4
    # When each has tried, they begin again.
    assert scene.take() in probes


def test_a_key_and_a_partition_that_have_been_tried_less_are_preferred() -> None:
    other = Partition(1)
    for _ in range(20):  # chance decides only among equals
        scene = in_a_storm(others=0)
        scene.offer(b"a", b"b")
        scene.offer(b"a", b"c", partition=other)
        first = scene.take()
        scene.dispatcher.conclude(first, first.run, FAILED)
        scene.time.now += 1.5
        second = scene.take()
        assert second.assignment is not first.assignment
        scene.dispatcher.conclude(second, second.run, FAILED)
        scene.time.now += 60
        assert scene.take() not in (first, second)


def test_a_tenant_that_has_been_tried_less_is_preferred() -> None:
    for _ in range(20):  # chance decides only among equals
        scene = in_a_storm(others=0)
        for tenant, works in (("a", scene.offer(b"1", b"2", b"3")), ("b", scene.offer(b"4"))):
            for work in works:
                work.tenant = tenant
        first = scene.take()
        scene.dispatcher.conclude(first, first.run, FAILED)
        scene.time.now += 60
        assert scene.take().tenant != first.tenant


def test_probes_come_at_growing_distances() -> None:
    scene, waits = in_a_storm(), []
    for _ in range(5):
        scene.run(FAILED)
        opens = scene.dispatcher.admission.opens_at(scene.time.now, 0)
        waits.append(opens - scene.time.now)
        scene.time.now = max(opens, scene.dispatcher._scheduler.next_due or 0.0)
    assert waits == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_what_one_probe_asks_for_does_not_hold_the_others() -> None:
    scene = in_a_storm()
    scene.run(FAILED._replace(retry_after=600.0))
    assert scene.dispatcher.admission.opens_at(scene.time.now, 0) - scene.time.now == 1.0


def test_a_probe_that_answers_late_opens_intake() -> None:
    scene = in_a_storm()
    probe = scene.take()
    scene.dispatcher.conclude(probe, probe.run, HUNG)
    assert isinstance(scene.dispatcher.conclude(probe, probe.run, ANSWERED), Outcome)
    assert scene.dispatcher.admission.guard.reason is None


def test_a_result_that_cannot_be_used_ends_a_request_and_counts_towards_a_storm() -> None:
    scene = Scene(storm=STORM)
    scene.offer(*[None] * 5)
    for _ in range(4):
        assert scene.run(UNUSABLE)[1] == Outcome(failure=UNUSABLE.failure, reason=Reason.UNUSABLE_RESULT)
    assert scene.dispatcher.admission.guard.reason == "UnusableResult"
    work, judged = scene.run(UNUSABLE)
    assert isinstance(judged, Retry)
    assert work.attempt == 0


def test_intake_is_open_for_a_second_now_and_then_while_the_storm_lasts() -> None:
    scene = in_a_storm()
    found = []
    for _ in range(10):
        found.append(scene.dispatcher.intake_stopped())
        scene.time.now += 1.0
    assert found == 2 * [*4 * ["ValueError"], None]


@pytest.mark.parametrize("made", [ANSWERED, REJECTED], ids=["answered", "rejected"])
def test_a_probe_that_is_answered_or_rejected_opens_intake(made: Attempt) -> None:
    scene = in_a_storm()
    assert isinstance(scene.run(made)[1], Outcome)
    assert scene.dispatcher.admission.guard.reason is None
    assert scene.take() is not scene.take()


def test_what_ran_when_the_guard_tripped_is_not_dead_lettered() -> None:
    scene = Scene(attempts=1, storm=STORM)
    scene.offer(*(b"%d" % number for number in range(8)))
    bystander = scene.take()
    for _ in range(4):
        scene.end(FAILED)
    assert scene.dispatcher.admission.guard.reason == "ValueError"
    assert isinstance(scene.dispatcher.conclude(bystander, bystander.run, FAILED), Retry)
    assert (bystander.attempt, bystander.stage) == (0, Stage.WAITING_RETRY)


def test_a_shared_failure_of_the_probe_lets_another_probe() -> None:
    scene = in_a_storm()
    probe, _ = scene.run(shared(10.0))
    scene.time.now += 60
    assert scene.take() is not probe


def test_a_probe_that_is_no_request_lets_another_probe() -> None:
    scene = in_a_storm()
    probe, outcome = scene.run(INVALID)
    assert isinstance(outcome, Outcome)
    assert scene.dispatcher.admission.guard.reason == "ValueError"
    assert scene.take() is not probe


def test_a_probe_of_a_lost_partition_lets_another_probe() -> None:
    scene, lost = Scene(attempts=1, storm=STORM), Partition(1)
    scene.offer(*[None] * 4)
    scene.offer(None, partition=lost)
    for _ in range(4):
        scene.end(FAILED)
    probe = scene.take()
    assert probe.assignment is lost.assignment
    (other,) = scene.offer(None)
    scene.dispatcher.forget(lost.assignment)
    assert scene.idle
    assert scene.dispatcher.conclude(probe, probe.run, FAILED) is Late.LOST
    assert scene.take() is other


def test_intake_goes_on_in_a_storm_while_there_is_nothing_to_probe_with() -> None:
    scene = in_a_storm(others=0)
    assert scene.dispatcher.intake_stopped() is None
    scene.offer(b"x")
    assert scene.dispatcher.intake_stopped() == "ValueError"
    probe = scene.take()
    assert scene.dispatcher.intake_stopped() == "ValueError"
    scene.dispatcher.conclude(probe, probe.run, FAILED)
    assert scene.dispatcher.intake_stopped() == "ValueError"
    scene.time.now += 60
    scene.end(ANSWERED)
    assert scene.dispatcher.intake_stopped() is None


# For the main thread and the observers


def test_an_attempt_past_its_limit_is_overdue() -> None:
    scene = Scene()
    scene.offer(b"a", b"b")
    first = scene.take()
    scene.time.now += 5
    scene.take()
    scene.time.now += 5.5
    assert scene.dispatcher.in_hand.attempts(longer_than=10.0) == [(first, first.run)]
    assert scene.dispatcher.in_hand.attempts(longer_than=11.0) == []


def test_ready_work_starves_only_when_nothing_holds_it_back() -> None:
    scene = Scene()
    began = scene.time.now

    def starving_since() -> float | None:
        return scene.dispatcher.counts().starving_since

    assert starving_since() is None
    scene.offer(b"a", b"b")
    scene.time.now += 100
    assert starving_since() == began
    scene.dispatcher.hold("drain")
    assert starving_since() is None
    scene.dispatcher.release("drain")
    scene.take()
    assert starving_since() is None


# Threads that wait


class Takers:
    """Threads that ask a dispatcher for work and stay busy with it until they are told to conclude it."""

    def __init__(self, dispatcher: Dispatcher, size: int) -> None:
        self.dispatcher = dispatcher
        self.size = size
        self.taken: queue.Queue[Work] = queue.Queue()
        self._done: dict[Work, threading.Event] = {}
        self._let_go = False
        self._threads = [threading.Thread(target=self._run) for _ in range(size)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        # A retry may become due before all of them wait.
        eventually(lambda: self.all_wait() or not self.taken.empty(), "every thread waits", interval=0.001)
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go = True
        self.dispatcher.stop()
        for done in list(self._done.values()):
            done.set()
        for thread in self._threads:
            thread.join(20)

    def all_wait(self) -> bool:
        with self.dispatcher.locked():
            idle = self.dispatcher._idle
            return idle.has_leader and idle.following == self.size - 1

    def _run(self) -> None:
        while (work := self.dispatcher.take()) is not None:
            self._done[work] = done = threading.Event()
            if self._let_go:
                return
            self.taken.put(work)
            done.wait(20)

    def next(self) -> Work:
        return self.taken.get(timeout=30)


@contextmanager
def takers(scene: Scene, size: int) -> Iterator[Takers]:
    with Takers(scene.dispatcher, size) as found:
        yield found


def test_an_idle_pool_takes_all_that_it_has_threads_for() -> None:
    scene = Scene(clock=time.monotonic)
    with takers(scene, 4) as pool:
        works = scene.offer(*[None] * 6)
        assert {pool.next() for _ in range(4)} == set(works[:4])
        assert scene.dispatcher.counts().queued == 2


def test_work_behind_a_call_that_turns_slow_is_taken_by_another_thread() -> None:
    """One thread that takes quick calls in a row is left alone; when it does not come back, others take over."""
    scene = Scene(clock=time.monotonic)
    scene.offer(None)
    quick = scene.take()
    scene.dispatcher.conclude(quick, quick.run, ANSWERED._replace(seconds=0.00001))
    with takers(scene, 3) as pool:
        for _ in range(3):
            scene.offer(None)
        assert len({pool.next() for _ in range(3)}) == 3


def test_room_that_a_thread_makes_and_may_not_use_itself_is_used_by_another() -> None:
    scene = Scene(clock=time.monotonic)
    scene.dispatcher.change(lambda admission, _: admission.limit_running(1))
    first, second = scene.offer(None, None)
    assert scene.take() is first
    with takers(scene, 1) as pool:
        scene.dispatcher.conclude(first, first.run, ANSWERED._replace(seconds=0.0))
        with scene.dispatcher.locked():
            scene.dispatcher._idle.took(0, time.monotonic() + 0.02)  # calls are quick, and another thread goes on
        turned_away = threading.Thread(target=scene.dispatcher.take, args=(first,), kwargs={"returning": True})
        turned_away.start()
        assert pool.next() is second
    turned_away.join(20)


def test_an_idle_pool_wakes_for_a_retry_that_becomes_due() -> None:
    scene = Scene(clock=time.monotonic)
    (work,) = scene.offer(None)
    scene.run(FAILED._replace(retry_after=0.0))
    with takers(scene, 2) as pool:
        assert pool.next() is work


def test_an_idle_pool_wakes_for_a_retry_that_is_due_sooner_than_the_one_it_waits_for() -> None:
    scene = Scene(clock=time.monotonic)
    late, soon = scene.offer(None, None)
    scene.take()
    scene.take()
    scene.dispatcher.conclude(late, late.run, FAILED._replace(retry_after=600.0))
    with takers(scene, 2) as pool:
        scene.dispatcher.conclude(soon, soon.run, FAILED._replace(retry_after=0.0))
        assert pool.next() is soon


def test_an_idle_pool_wakes_when_the_gate_opens() -> None:
    scene = Scene(clock=time.monotonic)
    (work,) = scene.offer(None)
    scene.run(shared(0.05))
    with takers(scene, 2) as pool:
        assert pool.next() is work


def test_an_idle_pool_wakes_when_the_last_hold_is_released() -> None:
    scene = Scene(clock=time.monotonic)
    scene.dispatcher.hold("delivery")
    works = scene.offer(None, None, None)
    with takers(scene, 3) as pool:
        scene.dispatcher.release("delivery")
        assert {pool.next() for _ in range(3)} == set(works)


def test_an_idle_pool_wakes_when_its_lease_is_renewed() -> None:
    scene = Scene(clock=time.monotonic)
    scene.dispatcher.lease(time.monotonic() - 1)
    works = scene.offer(None, None, None)
    with takers(scene, 3) as pool:
        scene.dispatcher.lease(time.monotonic() + 60)
        assert {pool.next() for _ in range(3)} == set(works)


def test_an_idle_pool_wakes_for_a_key_that_delivery_opens() -> None:
    scene = Scene(clock=time.monotonic)
    first, second = scene.offer(b"k", b"k")
    scene.run(ANSWERED)
    with takers(scene, 2) as pool:
        scene.dispatcher.free(first)
        assert pool.next() is second


def test_an_idle_pool_lets_another_request_probe_when_the_probe_is_lost() -> None:
    scene, lost = Scene(attempts=1, storm=STORM, clock=time.monotonic), Partition(1)
    scene.offer(*[None] * 4)
    scene.offer(None, partition=lost)
    for _ in range(4):
        scene.end(FAILED)
    probe = scene.take()
    (other,) = scene.offer(None)
    with takers(scene, 2) as pool:
        scene.dispatcher.forget(lost.assignment)
        scene.dispatcher.conclude(probe, probe.run, FAILED)
        assert pool.next() is other


def test_an_idle_pool_wakes_for_the_next_probe() -> None:
    scene = Scene(attempts=1, storm=STORM, clock=time.monotonic)
    scene.offer(*[None] * 6)
    for _ in range(4):
        scene.end(FAILED)
    probe, _ = scene.run(FAILED._replace(retry_after=600.0))
    with takers(scene, 2) as pool:
        assert pool.next() is not probe


def test_a_thread_waits_for_what_is_due_whoever_else_takes_work() -> None:
    """A retry due later is not forgotten when a follower that was called finds work by itself."""
    jump_at: list[int] = []
    calls = [0]

    def clock() -> float:
        calls[0] += 1
        return time.monotonic() + (5.0 if jump_at and calls[0] >= jump_at[0] else 0.0)

    scene = Scene(clock=clock)
    soon, later = scene.offer(None, None)
    for work, delay in ((soon, 4.0), (later, 5.2)):
        assert scene.take() is work
        scene.dispatcher.conclude(work, work.run, FAILED._replace(retry_after=delay))
    with takers(scene, 3) as pool:
        # Asked by `offer` and by the leader, the clock jumps when the next thread asks.
        jump_at.append(calls[0] + 3)
        (fresh,) = scene.offer(None)
        assert pool.next() is fresh
        assert pool.next() is soon
        assert pool.next() is later


def test_a_retry_due_in_a_thousand_years_can_be_waited_for() -> None:
    scene = Scene(clock=time.monotonic)
    scene.offer(None)
    scene.run(FAILED._replace(retry_after=1e12))
    with takers(scene, 1) as pool:
        (work,) = scene.offer(None)
        assert pool.next() is work


def test_stop_sends_every_thread_home() -> None:
    scene = Scene(clock=time.monotonic)
    with takers(scene, 4) as pool:
        scene.dispatcher.stop()
        for thread in pool._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in pool._threads)
    assert scene.dispatcher.take() is None


class Storm:
    """Threads that end requests at random, and note whether anything of a key ever overlapped or ran out of order."""

    def __init__(self, dispatcher: Dispatcher, seed: int) -> None:
        self.dispatcher = dispatcher
        self.seed = seed
        self.ended: Counter[Work] = Counter()
        self.wrong: list[str] = []
        self.to_free: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._in_lane: dict[object, int] = {}
        self._last: dict[object, int] = {}

    def serve(self, number: int) -> None:
        draw = random.Random(self.seed + number)
        done = None
        returning = False
        while (work := self.dispatcher.take(done, returning=returning)) is not None:
            done, returning = None, True
            run, lane = work.run, (work.assignment.partition, work.record.key)
            self._enter(work, lane)
            if draw.random() < 0.01:
                time.sleep(0.003)
            self._leave(work, lane)
            made = draw.choice([ANSWERED, ANSWERED, REJECTED, FAILED, FAILED, shared(0.0001)])
            seconds = draw.choice([0.00001, 1.0])
            outcome = self.dispatcher.conclude(work, run, made._replace(seconds=seconds))
            if isinstance(outcome, Outcome):
                self.ended[work] += 1
                if draw.random() < 0.5:
                    done = work
                    self.dispatcher.settle([work])
                else:
                    self.to_free.put(work)

    def _enter(self, work: Work, lane: tuple[int, bytes | None]) -> None:
        if lane[1] is None:
            return
        with self._lock:
            if lane in self._in_lane:
                self.wrong.append(f"{work.record.source} beside {self._in_lane[lane]}")
            if work.record.offset < self._last.get(lane, -1):
                self.wrong.append(f"{work.record.source} behind {self._last[lane]}")
            self._in_lane[lane] = self._last[lane] = work.record.offset

    def _leave(self, work: Work, lane: tuple[int, bytes | None]) -> None:
        with self._lock:
            self._in_lane.pop(lane, None)

    def deliver(self) -> None:
        while (work := self.to_free.get()) is not None:
            self.dispatcher.free(work)
            self.dispatcher.settle([work])


@pytest.mark.parametrize("seed", [1, 2])
def test_under_load_nothing_of_a_key_overlaps_and_everything_ends_once(seed: int) -> None:
    policy = RetryPolicy(4, delay=0.05, max_delay=0.1)
    # Little jitter, so that retries and the gate take their turn without taking long.
    asked = dispatcher(policy, rng=lambda: 0.01)
    storm, draw = Storm(asked, seed), random.Random(seed)
    threads = [threading.Thread(target=storm.serve, args=(number,)) for number in range(8)]
    threads.append(threading.Thread(target=storm.deliver))
    for thread in threads:
        thread.start()
    partitions = [Partition(number) for number in range(3)]
    keys = [None, b"", *(b"%d" % number for number in range(40))]
    works: list[Work] = []
    try:
        for batch in range(100):
            fresh = [draw.choice(partitions).work(draw.choice(keys)) for _ in range(50)]
            works += fresh
            asked.offer(fresh)
            if batch % 10 == 5:
                asked.hold("rebalance")
                asked.release("rebalance")
        eventually(lambda: len(storm.ended) == len(works), "everything has ended", timeout=60, interval=0.01)
        eventually(lambda: asked.in_hand.wait_quiet(0.1), "everything is settled", interval=0)
    finally:
        asked.stop()
        storm.to_free.put(None)
        for thread in threads:
            thread.join(20)
    assert storm.wrong == []
    assert set(storm.ended.values()) == {1}
    assert asked.counts() == Counts(0, 0, 0, 0)
    assert [partition.assignment.held_records for partition in partitions] == [0, 0, 0]
    assert [len(partition.assignment.tracker) for partition in partitions] == [0, 0, 0]


def test_slow_calls_begin_at_once_on_as_many_threads_as_there_is_work_for() -> None:
    asked = dispatcher(ordering="none")
    taken, go = [], threading.Event()
    for _ in range(8):

        def serve() -> None:
            while (work := asked.take()) is not None:
                taken.append(work)
                go.wait(5)

        threading.Thread(target=serve).start()
    eventually(lambda: asked._idle.following == 7, "the threads to be idle")
    partition = Partition()
    try:
        asked.offer([partition.work() for _ in range(5)])
        assert asked._idle.called >= 4  # before any of them has had a chance to call the next
        eventually(lambda: len(taken) == 5, "five calls at once")
    finally:
        asked.stop()
        go.set()


def test_the_gate_opens_for_one_that_was_refused_least_since_a_call_was_answered() -> None:
    """Two requests that the provider alone refuses must not take turns at trying the gate while the others wait."""
    scene = Scene()
    refused = scene.offer(b"a", b"b", b"c")
    (good,) = scene.offer(b"good")
    for work in refused:
        assert scene.run(shared(10.0))[0] is work
        scene.time.now += 60
    assert scene.run(ANSWERED)[0] is good
