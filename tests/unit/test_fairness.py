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


def test_a_tenant_that_is_done_is_forgotten():
    queue: FairQueue[int] = FairQueue()
    for number in range(1000):
        queue.add(f"tenant-{number}", 0.0, number, number)
        assert queue.pop() == number
        queue.ended(f"tenant-{number}", 0.0)

    assert len(queue._tenants) <= 2
