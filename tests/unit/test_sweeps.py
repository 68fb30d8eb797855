"""Intake and sweeps on a log that is a list: what is read when, and where the position stands."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import pytest

from gigaoffice_worker.broker.errors import OutOfRangeError, UndecodableError
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.parking import Parking
from gigaoffice_worker.core.ready import ByTenant
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.core.scheduler import Scheduler
from gigaoffice_worker.core.tenancy import Urgency
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine import sweeps
from gigaoffice_worker.engine.intake import MAX_RECORDS, Intake
from gigaoffice_worker.observe.metrics import Metrics
from tests.support.making import dispatcher

WINDOW = MAX_RECORDS
POLL = 500


class LogConsumer:
    """The consumer of one partition, whose log is a list; None is an offset that does not exist."""

    def __init__(self) -> None:
        self.log: list[Record | None] = []
        self.start = 0
        self.at = 0
        self.paused = False
        self.read = 0
        self.broken: int | None = None
        self.refused = 0

    def write(self, tenant: str, count: int, key: str | None = None, priorities: Sequence[int] = (0,)) -> None:
        for number in range(count):
            named = None if key is None else key.encode()
            priority = priorities[number % len(priorities)]
            headers = [("tenant", tenant.encode()), ("priority", b"%d" % priority)]
            self.log.append(Record("requests", 0, len(self.log), time.time(), named, b"{}", headers))

    def poll(self, timeout: float, limit: int) -> dict[int, list[Record]]:
        if self.paused:
            time.sleep(0.002)
            return {}
        if self.at < self.start:
            raise OutOfRangeError({0: self.at})
        if self.at == self.broken:
            self.refused += 1
            raise UndecodableError(0, self.at, ValueError("broken"), self.at + 1)
        until = min(self.at + limit, len(self.log), self.broken if self.broken is not None else len(self.log))
        if self.broken is not None and self.at > self.broken:
            until = min(self.at + limit, len(self.log))
        found = [each for each in self.log[self.at : until] if each is not None]
        self.at = until
        self.read += len(found)
        return {0: found} if found else {}

    def position(self, partition: int) -> int:
        return self.at

    def seek(self, partition: int, position: int) -> None:
        self.at = position

    def pause(self, partitions: Iterable[int]) -> None:
        self.paused = self.paused or 0 in partitions

    def resume(self, partitions: Iterable[int]) -> None:
        self.paused = self.paused and 0 not in partitions

    def watermark(self, partition: int) -> int:
        return len(self.log)

    def has_leader(self, partition: int) -> bool:
        return True

    def readable_end(self, partition: int) -> int:
        return len(self.log)

    def start_of_log(self, partition: int, timeout: float) -> int:
        return self.start

    def request_watermarks(self, partitions: Iterable[int]) -> None:
        """Nothing more is known."""


class Owned:
    """One assignment that stays ours."""

    def __init__(self) -> None:
        self.assignments = {0: Assignment("requests", 0, 1, OffsetTracker(0), 0)}
        self.unpositioned: dict[int, str] = {}
        self.joined = self.stable = True
        self.lost_at: list[int] = []

    def out_of_range(self, partition: int, position: int) -> None:
        self.lost_at.append(position)


class Worker:
    """A worker with one partition, one step at a time."""

    def __init__(self, *, tenants: bool = True, map_limit: int = 4096) -> None:
        self.consumer, self.owned, self.metrics = LogConsumer(), Owned(), Metrics("0")
        self.scheduler = Scheduler("key", ByTenant(60.0) if tenants else None)
        self.dispatcher = dispatcher(scheduler=self.scheduler)
        self.intake = Intake(
            self.consumer,
            self.dispatcher,
            SimpleNamespace(unsettled_bytes=0),
            self.owned,
            SimpleNamespace(waits=lambda _: False),
            SimpleNamespace(note=lambda _: None),
            self.metrics,
            topic="requests",
            max_poll_records=POLL,
            map_limit=lambda: map_limit,
            parks=True,
            read_urgency=Urgency("header:tenant", "header:priority").reader() if tenants else None,
        )
        self.done: list[Record] = []

    @property
    def assignment(self) -> Assignment:
        return self.owned.assignments[0]

    @property
    def parked(self) -> int:
        return len(self.assignment.tracker.parked)

    def turn(self, calls: int = 0) -> None:
        """Do what the consumer thread does in a turn, and answer so many requests."""
        self.intake.pace(full=frozenset(), draining=False)
        self.intake.receive(0.0)
        taken = [work for _ in range(calls) if (work := self.scheduler.take(0.0)) is not None]
        for work in taken:
            self.finish(work)
        self.intake.watch_log(time.monotonic())

    def finish(self, work: Work) -> None:
        self.scheduler.ended(work, 0.1)
        self.scheduler.free(work, 0.0)
        self.dispatcher.settle([work])
        self.done.append(work.record)

    def turn_until(self, done, calls: int = 0, limit: float = 60.0) -> None:
        until = time.monotonic() + limit
        while not done():
            assert time.monotonic() < until
            self.turn(calls)

    def tenants(self) -> Counter[str]:
        return Counter(dict(record.headers)["tenant"].decode() for record in self.done)


@pytest.fixture
def flooded() -> Worker:
    """A worker that has parked what it could not hold of 30,000 requests of A, and has seen all of the log."""
    worker = Worker()
    worker.consumer.write("A", 30_000)
    worker.consumer.write("B", 20)
    worker.turn_until(lambda: worker.assignment.tracker.position == 30_020)
    return worker


def test_small_tenant_behind_a_large_one_is_seen_and_served(flooded):
    assert flooded.parked > 30_000 - WINDOW * 8 // 7
    for _ in range(60):
        flooded.turn(calls=1)
    assert flooded.tenants()["B"] == 20


def test_small_tenant_behind_a_large_one_with_many_priorities_is_seen_and_served():
    worker = Worker()
    worker.consumer.write("A", 20_000, priorities=range(1000))
    worker.consumer.write("B", 20)
    worker.turn_until(lambda: worker.assignment.tracker.position == 20_020, limit=10)
    for _ in range(60):
        worker.turn(calls=1)
    assert worker.tenants()["B"] == 20
    worker.turn_until(lambda: len(worker.done) == 20_020, calls=200)
    assert worker.assignment.tracker.committable == 20_020


def test_urgent_requests_behind_the_backlog_of_their_own_tenant_are_served_soon():
    worker = Worker()
    worker.consumer.write("A", 20_000)
    worker.consumer.write("A", 40, priorities=[5])
    worker.turn_until(lambda: worker.assignment.tracker.position == 20_040)

    def urgent() -> int:
        return sum(record.offset >= 20_000 for record in worker.done)

    worker.turn_until(lambda: urgent() == 40, calls=1, limit=20)
    assert len(worker.done) < 10_000


def test_all_of_it_is_served_in_order_and_read_about_twice(flooded):
    flooded.turn_until(lambda: len(flooded.done) == 30_020, calls=200)
    offsets = [record.offset for record in flooded.done if record.offset < 30_000]
    assert offsets == sorted(offsets)
    assert len(set(offsets)) == 30_000
    assert flooded.consumer.read < 3 * 30_020
    print(f"\n{flooded.consumer.read / 30_020:.2f} times the log was read")
    assert flooded.assignment.tracker.committable == 30_020
    flooded.turn_until(lambda: flooded.assignment.parking is None)


def test_quick_work_never_parks():
    """A window that makes room at once hides nobody for long, and to read everything twice would cost a half."""
    worker = Worker()
    worker.consumer.write("A", 60_000)
    worker.turn_until(lambda: len(worker.done) == 60_000, calls=2_000)
    assert worker.consumer.read == 60_000


def test_keys_share_where_tenants_are_not_told_apart():
    worker = Worker(tenants=False)
    worker.consumer.write("", 12_000, "hot")
    worker.consumer.write("", 200, None)
    for number in range(200):
        worker.consumer.write("", 1, f"key-{number}")
    worker.turn_until(lambda: worker.assignment.tracker.position == 12_400)
    for _ in range(500):
        worker.turn(calls=4)
    keys = Counter(record.key for record in worker.done)
    assert sum(count for key, count in keys.items() if key != b"hot") == 400


def test_backlog_of_keys_of_their_own_is_not_parked():
    worker = Worker(tenants=False)
    for number in range(20_000):
        worker.consumer.write("", 1, f"key-{number}")
    worker.turn_until(lambda: worker.intake.paused)
    began = time.monotonic()
    worker.turn_until(lambda: time.monotonic() > began + 1.0)
    assert worker.parked == 0
    assert worker.intake.paused == {0: "records"}


def test_order_of_a_key_stands_across_tenants():
    worker = Worker()
    for number in range(15_000):
        worker.consumer.write("A" if number % 3 else "B", 1, f"key-{number % 7}")
    worker.turn_until(lambda: len(worker.done) == 15_000, calls=30, limit=30)
    by_key = defaultdict(list)
    for record in worker.done:
        by_key[record.key].append(record.offset)
    assert all(offsets == sorted(offsets) for offsets in by_key.values())


def test_what_is_parked_comes_back_although_the_commit_map_is_full_of_it(monkeypatch):
    monkeypatch.setattr(sweeps, "_LOOK_EVERY", 0.001)
    worker = Worker(map_limit=50)
    worker.consumer.write("A", 800)
    tracker, chance = worker.assignment.tracker, random.Random(1)
    worker.assignment.parking = Parking(400)
    for offset in range(800):
        if chance.random() < 0.5:
            tracker.park(offset)
            worker.assignment.parking.park(("A", 0), None, offset)
        else:
            tracker.start(offset, None)
            tracker.settle(offset)
    worker.consumer.at = 800
    parked = worker.parked
    worker.turn_until(lambda: not len(tracker), calls=50, limit=20)
    assert len(worker.done) == parked
    assert tracker.committable == 800


def test_what_retention_removed_is_counted_and_the_rest_is_served(flooded):
    flooded.consumer.start = 25_000
    held = sum(1 for work in flooded.assignment.tracker if work.record.offset < 25_000)
    flooded.turn_until(lambda: not len(flooded.assignment.tracker), calls=200)
    assert flooded.owned.lost_at == []
    lost = flooded.metrics.lost_by_retention._value.get()  # the client's only way
    assert lost == 25_000 - held
    assert len(flooded.done) == 30_020 - lost
    assert flooded.assignment.tracker.committable == 30_020


def test_compaction_of_what_is_parked_is_no_loss_and_no_standstill(flooded):
    removed = [offset for offset in range(30_000) if offset in flooded.assignment.tracker.parked and offset % 3]
    for offset in removed:
        flooded.consumer.log[offset] = None
    flooded.turn_until(lambda: not len(flooded.assignment.tracker), calls=200)
    assert len(flooded.done) == 30_020 - len(removed)
    assert flooded.assignment.tracker.committable == 30_020


def test_rebalance_in_a_sweep_goes_on_at_the_frontier(flooded):
    flooded.turn_until(lambda: flooded.consumer.at < 30_000, calls=100)
    flooded.consumer.seek(0, flooded.assignment.tracker.position)
    flooded.intake.note_assigned()
    flooded.turn_until(lambda: len(flooded.done) == 30_020, calls=200)
    assert len({record.offset for record in flooded.done}) == 30_020


def test_sweeps_go_on_in_front_of_what_cannot_be_decoded():
    worker = Worker()
    worker.consumer.write("A", 20_000)
    worker.consumer.broken = 20_000
    worker.consumer.write("A", 10)
    worker.turn_until(lambda: worker.intake.paused == {0: "undecodable record"})
    assert worker.parked > 10_000
    looks = worker.consumer.refused
    worker.turn_until(lambda: len(worker.done) == 20_000, calls=200)
    assert worker.consumer.refused < looks + 5, "what is parked waits for the looks at what cannot be decoded"
    assert set(worker.intake.quarantined) == {0}
    assert worker.intake.quarantined[0].offset == 20_000
    assert worker.assignment.tracker.committable == 20_000


def test_what_cannot_be_decoded_within_a_sweep_shuts_the_partition_in(flooded):
    first = flooded.assignment.tracker.parked.lowest
    flooded.consumer.broken = first + 100
    flooded.turn_until(lambda: 0 in flooded.intake.quarantined, calls=200)
    assert flooded.intake.quarantined[0].offset == first + 100
    flooded.consumer.broken = None
    flooded.turn_until(lambda: len(flooded.done) == 30_020, calls=200, limit=20)
    assert not flooded.intake.quarantined
