"""The scheduler against a simple model: a list of requests per lane and the time."""

from __future__ import annotations

import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.scheduler import Ordering, Scheduler
from gigaoffice_worker.core.work import Assignment, Stage, Work
from tests.support.making import TOPIC, Partition, record

KEYS = (None, b"", b"a", b"b")


def lane_by_the_contract(ordering: Ordering, work: Work) -> tuple[Assignment, bytes | int | None]:
    """What must run one at a time: written down once more, from the contract."""
    alone = (work.assignment, work.record.offset)
    if ordering == "none":
        return alone
    if ordering == "partition":
        return (work.assignment, None)
    return alone if work.record.key is None else (work.assignment, work.record.key)


class Model(RuleBasedStateMachine):
    """Any sequence of what the dispatcher may do with a scheduler, and what must hold after each step."""

    ordering: Ordering = "key"

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.ordering)
        self.now = 100.0
        self.epoch = 1
        self.partitions = [Partition(0), Partition(1)]
        # Unfinished requests of a lane in the order of their offsets; the first is the one that may run.
        self.lanes: dict[object, list[Work]] = {}
        self.running: list[Work] = []
        # Runs whose assignment is lost, by partition and what is behind the assignment in the name of their lane.
        self.outlasting: dict[object, Work] = {}
        self.waiting: dict[Work, float] = {}
        self.promoted: set[Work] = set()
        self.finished: set[Work] = set()
        self.attempts: dict[Work, int] = {}

    def lane(self, work: Work) -> list[Work]:
        return self.lanes.setdefault(lane_by_the_contract(self.ordering, work), [])

    def held_by(self, work: Work) -> object:
        """Return what two requests have in common that must not run side by side, whoever owned them when."""
        lane = lane_by_the_contract(self.ordering, work)
        return (work.record.partition, lane[1])

    def heads(self) -> list[Work]:
        heads = [lane[0] for lane in self.lanes.values() if lane]
        return [work for work in heads if self.held_by(work) not in self.outlasting]

    def ready(self) -> set[Work]:
        return {work for work in self.heads() if work not in self.running and work not in self.waiting}

    def promote(self) -> None:
        for work in [work for work, due in self.waiting.items() if due <= self.now]:
            del self.waiting[work]

    def note_taken(self, work: Work) -> None:
        assert work in self.ready()
        assert work not in self.finished
        self.running.append(work)
        self.attempts[work] = self.attempts.get(work, 0) + 1
        assert work.stage is Stage.RUNNING
        assert (work.attempt, work.run, work.started_at) == (self.attempts[work], self.attempts[work], self.now)
        assert work.first_at is not None
        assert work.first_at <= self.now

    @rule(partition=st.sampled_from([0, 1]), key=st.sampled_from(KEYS))
    def add(self, partition: int, key: bytes | None) -> None:
        work = self.partitions[partition].work(key)
        self.scheduler.add(work, self.now)
        self.lane(work).append(work)

    @rule()
    def take(self) -> None:
        work = self.scheduler.take(self.now)
        self.promote()
        if work is None:
            assert not self.ready()
        else:
            self.note_taken(work)

    @precondition(lambda self: any(self.lanes.values()))
    @rule(data=st.data())
    def take_the_preferred(self, data: st.DataObject) -> None:
        wanted = data.draw(st.sampled_from([work for lane in self.lanes.values() for work in lane]))
        work = self.scheduler.take(self.now, lambda each: each is not wanted)
        self.promote()
        if work is None:
            assert not self.ready()
            return
        assert work is wanted or wanted not in self.ready()
        self.note_taken(work)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), delay=st.integers(0, 5))
    def retry(self, data: st.DataObject, delay: int) -> None:
        work = data.draw(st.sampled_from(self.running))
        if work.assignment.lost:
            return
        self.running.remove(work)
        self.waiting[work] = self.now + delay
        self.scheduler.retry(work, self.now + delay)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.running))
        self.running.remove(work)
        self.finished.add(work)
        if not work.assignment.lost:
            assert self.lane(work).pop(0) is work
        self.end_outlasting(work)
        self.scheduler.free(work, self.now)

    def end_outlasting(self, work: Work) -> None:
        if self.outlasting.get(self.held_by(work)) is work:
            del self.outlasting[self.held_by(work)]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(list(self.waiting)))
        del self.waiting[work]
        self.finished.add(work)
        assert self.lane(work).pop(0) is work
        self.scheduler.withdraw(work)
        self.scheduler.free(work, self.now)

    @rule(partition=st.sampled_from([0, 1]))
    def forget(self, partition: int) -> None:
        lost = self.partitions[partition].assignment
        lost.lost = True
        running = [work for work in self.running if work.assignment is lost]
        self.outlasting |= {self.held_by(work): work for work in running}
        self.scheduler.forget(lost, self.running)
        self.lanes = {name: lane for name, lane in self.lanes.items() if lane and lane[0].assignment is not lost}
        self.waiting = {work: due for work, due in self.waiting.items() if work.assignment is not lost}
        self.epoch += 1
        # It begins with what has not ended, so requests in no lane meet their old runs.
        first = min((work.record.offset for work in running), default=0)
        self.partitions[partition] = Partition(partition, self.epoch, position=first)

    @rule(seconds=st.integers(0, 3))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def counts_are_true(self) -> None:
        unfinished = sum(map(len, self.lanes.values()))
        running = sum(not work.assignment.lost for work in self.running)
        assert self.scheduler.waiting_retry == len(self.waiting)
        assert self.scheduler.queued == unfinished - running - len(self.waiting)
        assert self.scheduler.ready == len(self.ready())

    @invariant()
    def due_times_are_true(self) -> None:
        assert self.scheduler.next_due == min(self.waiting.values(), default=None)
        assert sorted((due, id(work)) for due, work in self.scheduler.retries()) == sorted(
            (due, id(work)) for work, due in self.waiting.items()
        )
        since = self.scheduler.ready_since
        assert (since is None) == (not self.ready())
        assert since is None or since <= self.now

    def teardown(self) -> None:
        """Whatever happened: in the end everything that was not forgotten runs, each lane in its order."""
        for work in list(self.running):
            self.running.remove(work)
            if not work.assignment.lost:
                self.lane(work).pop(0)
            self.end_outlasting(work)
            self.scheduler.free(work, self.now)
        self.now += 1000
        while (work := self.scheduler.take(self.now)) is not None:
            self.promote()
            self.note_taken(work)
            self.running.remove(work)
            assert self.lane(work).pop(0) is work
            self.scheduler.free(work, self.now)
        assert not any(self.lanes.values())
        assert (self.scheduler.queued, self.scheduler.waiting_retry, self.scheduler.ready) == (0, 0, 0)
        assert not self.scheduler._lanes
        assert not self.scheduler.old_runs.running


class PartitionModel(Model):
    ordering: Ordering = "partition"


class UnorderedModel(Model):
    ordering: Ordering = "none"


BUDGET = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOrderByKey = Model.TestCase
TestOrderByKey.settings = BUDGET
TestOrderByPartition = PartitionModel.TestCase
TestOrderByPartition.settings = BUDGET
TestNoOrder = UnorderedModel.TestCase
TestNoOrder.settings = BUDGET


def taken(scheduler: Scheduler, now: float = 0.0) -> list[Work]:
    found = []
    while (work := scheduler.take(now)) is not None:
        found.append(work)
    return found


@pytest.mark.parametrize(
    "ordering, at_once",
    [("key", [0, 1, 2, 3, 5]), ("partition", [0]), ("none", [0, 1, 2, 3, 4, 5])],
)
def test_ordering_decides_what_may_run_side_by_side(ordering: Ordering, at_once: list[int]) -> None:
    scheduler, partition = Scheduler(ordering), Partition()
    for key in (b"", None, None, b"a", b"a", b"b"):
        scheduler.add(partition.work(key), 0.0)
    assert [work.record.offset for work in taken(scheduler)] == at_once


def test_an_empty_key_is_a_key_and_no_key_is_unordered() -> None:
    scheduler, partition = Scheduler("key"), Partition()
    empty, keyless = [partition.work(b"") for _ in range(2)], [partition.work(None) for _ in range(2)]
    for work in (*empty, *keyless):
        scheduler.add(work, 0.0)
    assert taken(scheduler) == [empty[0], *keyless]
    scheduler.free(empty[0], 0.0)
    assert taken(scheduler) == [empty[1]]


def test_the_same_key_in_two_partitions_makes_two_lanes() -> None:
    scheduler = Scheduler("key")
    both = [Partition(0).work(b"k"), Partition(1).work(b"k")]
    for work in both:
        scheduler.add(work, 0.0)
    assert taken(scheduler) == both


def test_a_request_that_waits_for_its_retry_delays_nobody_but_its_lane() -> None:
    scheduler, partition = Scheduler("key"), Partition()
    first, second, other = partition.work(b"a"), partition.work(b"a"), partition.work(b"b")
    scheduler.add(first, 0.0)
    scheduler.add(second, 0.0)
    assert taken(scheduler) == [first]
    scheduler.retry(first, 5.0)
    scheduler.add(other, 0.0)
    assert taken(scheduler, 4.9) == [other]
    assert taken(scheduler, 5.0) == [first]
    assert first.attempt == 2


def test_of_what_is_ready_the_oldest_runs_first_however_late_it_became_ready() -> None:
    scheduler, partition = Scheduler("key"), Partition()
    retried, head, behind, fresh = (partition.work(key) for key in (b"retried", b"busy", b"busy", None))
    scheduler.add(retried, 0.0)
    scheduler.add(head, 0.0)
    taken(scheduler)
    scheduler.add(behind, 0.0)
    scheduler.add(fresh, 0.0)
    scheduler.retry(retried, 2.0)
    scheduler.free(head, 1.0)
    assert taken(scheduler, 3.0) == [retried, behind, fresh]


def test_what_was_put_behind_lets_all_others_go_first_that_were_written_at_the_same_time() -> None:
    scheduler, partition = Scheduler("key"), Partition()
    refused, others = partition.work(b"refused"), [partition.work() for _ in range(3)]
    for work in (refused, *others):
        scheduler.add(work, 0.0)
    assert scheduler.take(0.0) is refused
    scheduler.retry(refused, 1.0, behind=True)
    assert taken(scheduler, 2.0) == [*others, refused]


def test_partition_that_was_fetched_later_is_not_kept_waiting_by_younger_requests_of_another() -> None:
    scheduler, early, late = Scheduler("key"), Partition(0), Partition(1)
    works = [early.work(b"a"), early.work(b"a"), late.work(b"b"), late.work(b"b")]
    for work, written_at in zip(works, (10.0, 40.0, 20.0, 30.0), strict=True):
        work.written_at = written_at
        scheduler.add(work, 0.0)
    in_turn = []
    while (work := scheduler.take(1.0)) is not None:
        in_turn.append(work.written_at)
        scheduler.free(work, 1.0)
    assert in_turn == [10.0, 20.0, 30.0, 40.0]


def test_first_attempt_is_remembered_and_every_run_is_counted() -> None:
    scheduler, work = Scheduler("none"), Partition().work()
    scheduler.add(work, 0.0)
    scheduler.take(1.0)
    work.attempt -= 1  # It did not count.
    scheduler.retry(work, 2.0)
    scheduler.take(2.0)
    assert (work.attempt, work.run, work.first_at, work.started_at) == (1, 2, 1.0, 2.0)


class Watched(Assignment):
    """An assignment whose end can be seen."""


def test_forgetting_a_partition_leaves_no_trace() -> None:
    scheduler = Scheduler("key")
    kept = Partition(1)
    lost = Watched(TOPIC, 0, 1, OffsetTracker(0), 0)
    trace = weakref.ref(lost)
    for offset, key in enumerate((b"running", b"running", b"retry", b"retry", b"ready", b"ready", None)):
        scheduler.add(Work(record(offset, key), lost, 0, 0.0), 0.0)
    running, retried = scheduler.take(0.0), None
    while retried is None or retried.record.key != b"retry":
        retried = scheduler.take(0.0)
    assert retried is not None
    scheduler.retry(retried, 1.0)
    other = kept.work(b"retry")
    scheduler.add(other, 0.0)
    lost.lost = True
    scheduler.forget(lost, [running])
    scheduler.free(running, 0.0)
    assert (scheduler.queued, scheduler.waiting_retry, scheduler.ready) == (1, 0, 1)
    assert taken(scheduler, 9.0) == [other]
    del running, retried, lost
    assert trace() is None
