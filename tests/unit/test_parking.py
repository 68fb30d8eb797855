"""Parking: what is held, what is parked, and that nothing is lost, repeated or taken out of its key's order."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gigaoffice_worker.core.commit_map import CommitMap
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.parked_offsets import ParkedOffsets
from gigaoffice_worker.core.parking import LEAST, UNIT, Parking, Sweep, units
from gigaoffice_worker.core.work import Assignment, Work
from tests.support.making import assignment, record

LIMIT = 4096


# The set of offsets


@given(st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=60), st.randoms(use_true_random=False))
def test_parked_offsets_are_a_set_of_rising_numbers(steps: list[tuple[int, bool]], random: Random) -> None:
    parked, model, at = ParkedOffsets(), set[int](), 0
    for gap, drops in steps:
        at += gap
        parked.add(at)
        model.add(at)
        for gone in random.sample(sorted(model), len(model) // 2 if drops else 0):
            assert parked.discard(gone)
            assert not parked.discard(gone)
            model.discard(gone)
        assert list(parked) == sorted(model)
        assert parked.lowest == min(model, default=None)
        assert len(parked) == len(model)
        assert at + 1 not in parked


# One partition, with a log, a consumer and a worker that are made of lists


class Log:
    """A partition and everything around it that a parking assignment meets, one step at a time."""

    def __init__(self, random: Random, keys: int, tenants: int, window: int) -> None:
        self.random = random
        self.window = window
        # Tenant, priority and key by offset.
        self.records: dict[int, tuple[str, int, bytes | None]] = {}
        self.end = 0
        self.keys, self.tenants = keys, tenants
        self.assignment = assignment()
        self.assignment.parking = Parking(window)
        self.in_hand: list[Work] = []
        self.settled: Counter[int] = Counter()
        self.lost: set[int] = set()
        self.taken: list[tuple[bytes | None, int]] = []
        self.now = 0.0
        # What the last restart knew as unfinished.
        self.restored: set[int] = set()

    @property
    def tracker(self) -> OffsetTracker[Work]:
        return self.assignment.tracker

    @property
    def parking(self) -> Parking:
        assert self.assignment.parking is not None
        return self.assignment.parking

    def write(self, count: int) -> None:
        for _ in range(count):
            self.end += self.random.choice([1, 1, 1, 3])
            tenant = min(self.random.randrange(self.tenants), self.random.randrange(self.tenants))
            key = self.random.choice([None, b"%d" % self.random.randrange(self.keys)])
            priority = self.random.randrange(self.random.choice([1, 3, 40]))
            self.records[self.end - 1] = (f"tenant-{tenant}", priority, key)

    def work(self, offset: int) -> Work:
        tenant, priority, key = self.records[offset]
        return Work(record(offset, key), self.assignment, 10, 0.0, tenant=tenant, sharing=(tenant, priority))

    def read(self, count: int) -> None:
        """Read at the frontier, unless it waits."""
        if self.parking.full(paused=False):
            return
        for offset in [each for each in sorted(self.records) if each >= self.tracker.position][:count]:
            work = self.work(offset)
            if self.assignment.receive(work):
                self.take(work)

    def sweep(self, reads: int) -> None:
        """Sweep as far as `reads` records, or to the end."""
        self.now += 0.3
        sweep = self.parking.next_sweep(self.now, self.tracker.position)
        if sweep is None:
            return
        assert sweep.start in self.tracker.parked
        position = sweep.end
        for number, offset in enumerate(each for each in sorted(self.records) if sweep.start <= each < sweep.end):
            if number == reads or not sweep.due:
                position = offset
                break
            if offset in self.tracker.parked and self.assignment.resume(work := self.work(offset), sweep):
                self.take(work)
        self.end_sweep(sweep, position)

    def end_sweep(self, sweep: Sweep, position: int) -> None:
        for offset in sweep.passed(position):
            assert offset not in self.records
            self.tracker.gone(offset)
            self.lost.add(offset)
        sweep.ended(self.now)

    def take(self, work: Work) -> None:
        self.in_hand.append(work)
        self.taken.append((work.record.key, work.record.offset))

    def settle(self, count: int) -> None:
        for work in self.random.sample(self.in_hand, min(count, len(self.in_hand))):
            self.in_hand.remove(work)
            self.assignment.settle(work)
            self.settled[work.record.offset] += 1

    def compact(self, count: int) -> None:
        """Remove what was read already, and not only from the start."""
        for offset in self.random.sample(sorted(self.records), min(count, len(self.records))):
            if offset in self.tracker.parked:
                del self.records[offset]

    def remove(self) -> None:
        """Let retention remove the first part of what is parked."""
        if not len(self.tracker.parked):
            return
        start = self.random.choice(list(self.tracker.parked)) + 1
        gone = self.parking.removed_below(start)
        assert sorted(gone) == [offset for offset in self.tracker.parked if offset < start]
        for offset in gone:
            self.tracker.gone(offset)
            self.records.pop(offset, None)
        self.lost.update(gone)

    def restart(self) -> None:
        """Begin again with what the commit map says, as after a crash."""
        made = self.tracker.commit_map()
        text, whole = made.encode(LIMIT)
        assert whole
        restored = CommitMap.decode(text, made.base)
        awaited = {offset for offset in self.restored if offset >= self.tracker.position}
        held = {work.record.offset for work in self.in_hand}
        assert set(restored.unfinished) == held | set(self.tracker.parked) | awaited
        self.restored = set(restored.unfinished)
        self.assignment = Assignment("t", 0, 1, OffsetTracker(made.base, restored), made.base)
        self.assignment.parking = Parking(self.window)
        self.in_hand.clear()
        self.taken.clear()

    def check(self) -> None:
        held = {work.record.offset for work in self.in_hand}
        parked = set(self.tracker.parked)
        for offset in self.records:
            if offset < self.tracker.position:
                assert (offset in held) + (offset in parked) + bool(self.settled[offset]) == 1, offset
        assert not self.lost & (held | parked)
        assert max(self.settled.values(), default=0) <= 1
        unfinished = held | parked
        assert not unfinished or self.tracker.committable <= min(unfinished)
        assert self.parking.held == sum(units(work.size) for work in self.in_hand)
        assert sum(self.parking.waiting().values()) == len(parked)
        assert sum(sharer.held for sharer in self.parking._sharers.values()) == self.parking.held
        last: dict[bytes, int] = {}
        for key, offset in self.taken:
            if key is not None:
                assert offset > last.get(key, -1), key
                last[key] = offset


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.sampled_from("wwrrrrsssttttcxz"), st.integers(1, 120)), max_size=50),
    st.integers(1, 40),
    st.integers(1, 8),
    st.sampled_from([16, 64, 300]),
)
def test_each_offset_is_settled_parked_held_or_lost_exactly_once(seed, steps, keys, tenants, window) -> None:
    log = Log(Random(seed), keys, tenants, window)
    deeds = {
        "w": log.write,
        "r": log.read,
        "s": log.sweep,
        "t": log.settle,
        "c": lambda n: log.compact(n // 20),
        "x": lambda _: log.remove(),
        "z": lambda _: log.restart(),
    }
    for deed, count in steps:
        deeds[deed](count)
        log.check()
    # In the end everything that is still there is settled, and all of it can be committed.
    for _ in range(10_000):
        log.read(500)
        log.sweep(10_000)
        log.settle(10_000)
        if not len(log.tracker) and log.tracker.position > max(log.records, default=-1):
            break
    log.check()
    assert set(log.records) == set(log.settled) & set(log.records)
    assert log.tracker.committable >= max(log.records, default=0)
    assert log.parking.done


# Shares


def filled(window: int = 160, count: int = 160) -> Parking:
    parking = Parking(window)
    for _ in range(count):
        parking.hold("big", None, 10)
    return parking


def test_who_has_more_than_a_share_is_parked_and_others_are_held() -> None:
    parking = filled(count=140)
    assert not parking.holds("big", None, 10)
    assert parking.holds("small", None, 10)
    parking.park("big", None, 140)
    for _ in range(LEAST):
        assert parking.holds("small", None, 10)
        parking.hold("small", None, 10)
    assert not parking.holds("small", None, 10)


def test_window_that_is_full_of_small_ones_stops_the_frontier_instead_of_parking_them() -> None:
    parking = Parking(160)
    for number in range(160):
        assert parking.holds(f"tenant-{number}", None, 10)
        parking.hold(f"tenant-{number}", None, 10)
    assert parking.full(paused=False)
    assert not parking.crowded


@pytest.mark.parametrize("priorities", [12, 100, 1000])
def test_one_tenant_with_many_priorities_leaves_room_for_others(priorities: int) -> None:
    """Each of its priorities holds next to nothing, and all of them together most of the window."""
    parking = Parking(1142)
    lots = [parking.hold(("A", number % priorities), None, 10) for number in range(1000)]
    assert parking.crowded
    for number in range(20_000):
        if parking.holds(("A", number % priorities), None, 10):
            lots.append(parking.hold(("A", number % priorities), None, 10))
        elif number % 2:
            parking.settled(lots.pop(0), None, 10)
    assert not parking.full(paused=False)
    assert parking.held < 1142 * 3 // 4
    for _ in range(LEAST):
        assert parking.holds(("B", 0), None, 10)
        parking.hold(("B", 0), None, 10)


def test_urgent_request_is_held_although_its_tenant_has_much() -> None:
    parking = Parking(1142)
    for _ in range(1000):
        parking.hold(("A", 0), None, 10)
    assert not parking.holds(("A", 0), None, 10)
    assert parking.holds(("A", 5), None, 10)


def test_of_a_tenants_priorities_that_have_next_to_nothing_left_the_highest_is_fetched_first() -> None:
    parking = Parking(1142)
    for _ in range(500):
        parking.hold(("A", 0), None, 10)
    for offset in range(500, 600):
        parking.park(("A", 1 if offset < 550 else 5), None, offset)
    parking.park(("B", 0), None, 600)
    starts = []
    for second in range(8):
        sweep = parking.next_sweep(float(second), 700)
        assert sweep is not None
        assert {lot.name for lot in sweep.due} in ({("A", 1), ("B", 0)}, {("A", 5), ("B", 0)})
        starts.append(sweep.start)
    assert starts == [550, 550, 550, 500] * 2, "the oldest must have its turn, however much is more urgent"


def test_large_request_of_one_priority_need_not_wait_for_all_others_to_end() -> None:
    parking = Parking(1142)
    for number in range(285):
        parking.hold(("A", number % 20), None, 10)
    assert parking.holds(("A", 20), None, 8 << 20)


def test_priorities_of_a_tenant_are_told_as_one() -> None:
    parking = Parking(160)
    for offset in range(6):
        parking.park(("A", offset % 3), None, offset)
    parking.park("key", None, 6)
    assert parking.waiting() == {"A": 6, "key": 1}


def test_records_without_a_key_are_nobodys_and_never_parked() -> None:
    parking = Parking(160)
    for _ in range(159):
        assert parking.holds(None, None, 10)
        parking.hold(None, None, 10)
    assert not parking.crowded


def test_more_keys_than_are_remembered_stop_the_frontier_until_some_are_done(monkeypatch) -> None:
    monkeypatch.setattr("gigaoffice_worker.core.parking._MOST_LANES", 100)
    monkeypatch.setattr("gigaoffice_worker.core.parking._PURGE_AFTER", 1)
    parking = Parking(1600)
    lot = parking.hold("big", b"first", 10)
    for number in range(100):
        parking.park("big", b"key-%d" % number, number)
    assert parking.full(paused=False)
    parking.settled(lot, b"first", 10)
    assert not parking.full(paused=False)


def test_key_stays_with_the_tenant_of_its_oldest_request() -> None:
    parking = filled()
    parking.hold("small", b"shared", 10)
    parking.park("big", b"other", 200)
    lot = parking.hold("another", b"shared", 10)
    assert lot.name == "small"
    # What comes behind a parked request of its key is parked too, whoever it is for.
    assert not parking.holds("small", b"other", 10)


def test_key_whose_lot_is_gone_does_not_bring_it_back() -> None:
    """Two lots of one name would hide what is parked in one of them, and it would be taken for missing."""
    parking = Parking(160)
    parking.hold("a", b"key", 10)
    for offset in range(3):
        parking.park("a", b"other", offset)
    assert parking.removed_below(3) == [0, 1, 2]
    lot = parking.hold("a", b"third", 10)
    parking.settled(lot, b"key", 10)
    parking.settled(lot, b"third", 10)
    parking.park("a", None, 5)
    parking.park("a", b"other", 6)
    assert parking.waiting() == {"a": 2}


def test_sweep_begins_when_a_lot_has_next_to_nothing_left() -> None:
    parking = filled()
    big = parking.hold("big", None, 10)
    for offset in range(200, 260):
        parking.park("big", None, offset)
    assert parking.next_sweep(0.0, 300) is None
    for _ in range(158):
        parking.settled(big, None, 10)
    sweep = parking.next_sweep(0.0, 300)
    assert sweep is not None
    assert (sweep.start, sweep.end, sweep.due) == (200, 300, {big})


@pytest.mark.parametrize("size, expected", [(0, 1), (UNIT - 1, 1), (UNIT, 2), (1 << 20, 257)])
def test_large_requests_count_as_several(size: int, expected: int) -> None:
    assert units(size) == expected
