"""Tenants share the calls by the time these take; priorities order what is a tenant's own, and nobody starves."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.fairness import FairQueue, rank


class Pool:
    """Threads that call for what the queue gives them, played through without waiting."""

    def __init__(self, queue: FairQueue[tuple[str, int]], threads: int, seconds) -> None:
        self.queue, self.threads, self.seconds = queue, threads, seconds
        self.now = 0.0
        self.done: list[tuple[float, str, int]] = []
        self.busy: Counter[str] = Counter()
        self._running: list[tuple[float, str, int]] = []
        self._numbers = itertools.count()

    def add(self, tenant: str, count: int, priority: float = 0.0, aging: float = 60.0) -> None:
        for _ in range(count):
            number = next(self._numbers)
            self.queue.add(tenant, rank(self.now, priority, aging), number, (tenant, number))

    def run(self, until: float) -> None:
        while True:
            while len(self._running) < self.threads and (item := self.queue.pop()) is not None:
                tenant, number = item
                heapq.heappush(self._running, (self.now + self.seconds(tenant), tenant, number))
                self.busy[tenant] += self.seconds(tenant)
            if not self._running or self._running[0][0] > until:
                self.now = until
                return
            self.now, tenant, number = heapq.heappop(self._running)
            self.done.append((self.now, tenant, number))
            self.queue.ended(tenant, self.seconds(tenant))


def test_late_tenants_do_not_wait_for_a_flood():
    pool = Pool(FairQueue(), 10, lambda _: 0.5)
    pool.add("A", 20_000)
    pool.run(10.0)
    for tenant in "BCD":
        pool.add(tenant, 20)
    pool.run(16.0)

    done = Counter(tenant for _, tenant, _ in pool.done)
    assert done["B"] == done["C"] == done["D"] == 20


def test_calls_are_shared_by_their_time_not_by_their_number():
    pool = Pool(FairQueue(), 10, lambda tenant: 5.0 if tenant == "slow" else 0.2)
    pool.add("slow", 5000)
    pool.add("quick", 5000)
    pool.run(200.0)

    assert pool.busy["slow"] / pool.busy["quick"] == pytest.approx(1.0, abs=0.15)


def test_idleness_saves_nothing_up():
    pool = Pool(FairQueue(), 4, lambda _: 1.0)
    pool.add("A", 1000)
    pool.run(100.0)
    pool.add("B", 1000)
    before = pool.busy["A"]
    pool.run(200.0)

    assert pool.busy["A"] - before == pytest.approx(pool.busy["B"], rel=0.1)


def test_higher_priorities_go_first_and_waiting_raises():
    pool = Pool(FairQueue(), 1, lambda _: 1.0)
    pool.add("A", 30, priority=0)
    pool.run(0.0)
    pool.add("A", 3, priority=2)
    pool.run(5.0)
    assert [number for _, _, number in pool.done] == [0, 30, 31, 32, 1]


def test_nobody_starves_where_nearly_everything_is_urgent():
    pool = Pool(FairQueue(), 1, lambda _: 1.0)
    pool.add("A", 1, priority=0)
    for second in range(300):
        pool.add("A", 2, priority=5)
        pool.run(float(second + 1))
    waited = [at for at, _, number in pool.done if number == 0]

    assert not waited, "an old request is passed by newer ones for five steps of sixty seconds"
    for second in range(300, 700):
        pool.add("A", 1, priority=5)
        pool.run(float(second + 1))
    assert [at for at, _, number in pool.done if number == 0]


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 3)), max_size=60), st.integers(0, 2**32))
def test_everything_that_was_added_comes_out_once(added, seed):
    queue: FairQueue[int] = FairQueue()
    rng = random.Random(seed)
    expected, out, running = [], [], []
    for number, (tenant, priority) in enumerate(added):
        queue.add(tenant, rank(float(number), priority, 60.0), number, number)
        expected.append(number)
        if rng.random() < 0.5 and (item := queue.pop()) is not None:
            out.append(item)
            running.append(added[item][0])
        if running and rng.random() < 0.5:
            queue.ended(running.pop(), rng.choice([None, 0.1, 5.0]))
        assert len(queue) == len(list(queue)) == len(expected) - len(out)
    while (item := queue.pop()) is not None:
        out.append(item)

    assert sorted(out) == expected
    assert queue.first() is None


def test_one_item_can_be_taken_out_of_its_turn():
    queue: FairQueue[str] = FairQueue()
    queue.add("A", 1.0, 1, "first")
    queue.add("A", 2.0, 2, "second")

    assert queue.remove("A", 2.0, 2, "second")
    assert not queue.remove("A", 2.0, 2, "second")
    assert queue.pop() == "first"
    assert len(queue) == 0


def come_once(pool: Pool, until: float) -> None:
    """Let as many new tenants come in each second as are served in it, each with one request of a second."""
    for second in range(int(pool.now), int(until)):
        for number in range(pool.threads):
            pool.add(f"a-{second}-{number}", 1)
        pool.run(float(second + 1))


def ends(pool: Pool, name: str) -> list[float]:
    return [at for at, tenant, _ in pool.done if tenant == name]


def test_of_tenants_who_come_once_the_oldest_goes_first_whatever_its_name():
    pool = Pool(FairQueue(), 10, lambda _: 1.0)
    pool.add("zz", 1)
    for number in range(500):
        pool.add(f"a{number}", 1)
    come_once(pool, 100.0)

    assert ends(pool, "zz") == [1.0]
    assert ends(pool, "a499") == [51.0]


@pytest.mark.parametrize("backlog", [20, 500])
def test_tenants_who_come_once_cannot_keep_off_who_comes_back(backlog):
    """Ten rounds of the others are what its first call of ten seconds took from them."""
    pool = Pool(FairQueue(), 10, lambda tenant: 10.0 if tenant == "back" else 1.0)
    for number in range(backlog):
        pool.add(f"a{number}", 1)
    pool.add("back", 2)
    come_once(pool, 2000.0)

    first, second = ends(pool, "back")
    assert first <= backlog / 10 + 11
    assert second - first < 10 * 2 * max(backlog, 100) / 10


def test_who_comes_back_gains_nothing_by_being_forgotten():
    queue: FairQueue[str] = FairQueue()
    numbers = itertools.count()

    def call(tenant: str, seconds: float) -> None:
        queue.add(tenant, -1.0, next(numbers), tenant)
        assert queue.pop() == tenant
        queue.ended(tenant, seconds)

    for number in range(100):
        queue.add(f"waits-{number}", 0.0, next(numbers), "waits")
    call("back", 50.0)
    for number in range(100):
        call(f"once-{number}", 100.0)
    assert "back" not in queue._idle
    queue.add("back", -1.0, next(numbers), "back")

    assert [queue.pop() for _ in range(101)] == ["waits"] * 100 + ["back"]


def test_nobody_owes_anything_once_nobody_waits():
    queue: FairQueue[str] = FairQueue()
    queue.add("A", 0.0, 0, "slow")
    queue.add("B", 0.0, 1, "hangs")
    queue.pop()
    queue.pop()
    queue.ended("A", 3600.0)
    queue.ended("B", 1.0)
    queue.add("A", 0.0, 2, "older")
    queue.add("C", 1.0, 3, "newer")

    assert queue.pop() == "older"


@pytest.mark.parametrize("seconds", [0.0, 1.0, 100.0])
def test_tenants_who_are_done_are_forgotten(seconds):
    """Where others always have something to do, as many are remembered as those are, and no more than sixty-four."""
    queue: FairQueue[int] = FairQueue()
    queue.add("busy", 0.0, -1, -1)
    assert queue.pop() == -1
    for number in range(20_000):
        queue.add(f"tenant-{number}", 0.0, number, number)
        assert queue.pop() == number
        queue.ended(f"tenant-{number}", seconds)
    assert len(queue._tenants) + len(queue._idle) <= 1 + 64
    assert len(queue._waiting) <= 1

    queue.ended("busy", 1.0)
    assert len(queue._tenants) + len(queue._idle) == 0


def test_tenants_of_whom_nothing_is_kept_are_forgotten():
    queue: FairQueue[int] = FairQueue()
    for number in range(1000):
        queue.add(f"tenant-{number}", 0.0, number, number)
    queue.keep(lambda number: number in {3, 5})

    assert len(queue) == len(list(queue)) == len(queue._tenants) == 2
    assert [queue.pop(), queue.pop(), queue.pop()] == [3, 5, None]
