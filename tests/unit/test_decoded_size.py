"""What values take once they are decoded, and how many of them may be there at once."""

from __future__ import annotations

import gc
import heapq
import itertools
import tracemalloc

import msgspec
import pytest

from gigaoffice_worker.core.decoded_size import LARGE, LONGEST_WAIT, DecodedRoom, decode_at_once, decoded_size
from gigaoffice_worker.core.ready import ByArrival, ByTenant
from gigaoffice_worker.core.scheduler import Scheduler
from gigaoffice_worker.core.work import Work
from tests.support.making import assignment, record

ITEMS = [
    b'{"":0},',
    b"{},",
    b"[],",
    b"[[[[[[]]]]]],",
    b"1.5,",
    b"999,",
    b'"ab",',
    b'{"":0,"a":0},',
    b'{"id":"abc","query":"some text of normal length","n":12.5},',
    '{"имя":"значение из слов"},'.encode(),
    '"😀",'.encode(),
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.decode())
def test_size_is_not_less_than_what_decoding_takes(item):
    value = b"[" + item * (200_000 // len(item)) + b"0]"
    tracemalloc.start()
    try:
        decoded = msgspec.json.decode(value)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded
    assert taken * 0.9 < decoded_size(value)


def test_size_of_ordinary_values_is_not_looked_for():
    assert decoded_size(None) == 0
    assert decoded_size(b"{" * (LARGE - 1)) == 0


def test_collection_goes_on_whatever_comes_of_decoding():
    value = b"[" + b"{}," * 100_000 + b"0]"
    assert len(decode_at_once(msgspec.json.decode, value)) == 100_001
    with pytest.raises(msgspec.DecodeError):
        decode_at_once(msgspec.json.decode, value[:-1])
    assert gc.isenabled()


def test_value_that_is_larger_than_all_room_runs_alone():
    room = DecodedRoom[str](100)
    assert room.fits("larger", 500, 0.0)
    room.take("larger", 500)
    assert not room.fits("large", 1, 0.0)
    assert room.fits("small", 0, 0.0)
    room.free(500)
    assert room.fits("large", 1, 0.0)


def work(offset: int, decoded: int) -> Work:
    return Work(record(offset, None), PLACE, 1, 0.0, float(offset), decoded=decoded)


PLACE = assignment()


def test_large_requests_take_turns_and_the_others_do_not_wait_for_them():
    scheduler = Scheduler("key")
    large = [work(number, 100 << 20) for number in range(3)]
    for each in (*large, small := work(9, 0)):
        scheduler.add(each, 0.0)
    assert scheduler.take(1.0) is large[0]
    assert scheduler.take(1.0) is small
    assert scheduler.take(1.0) is None
    assert scheduler.queued == 2
    assert scheduler.ended(large[0], 1.0)
    assert scheduler.take(2.0) is large[1]
    assert scheduler.take(2.0) is None
    scheduler.forget(PLACE, [])
    assert scheduler.queued == 0
    assert not scheduler.ended(large[1], 1.0)


class Threads:
    """Threads that are never short of requests of 16 KiB or more, and end at different times."""

    def __init__(self, scheduler: Scheduler, threads: int) -> None:
        self.scheduler, self.threads = scheduler, threads
        self.now = 0.0
        self.begun: list[Work] = []
        self._numbers = itertools.count(1)
        self._running: list[tuple[float, int, Work]] = []

    def run(self, until: float) -> None:
        while self.now < until:
            while len(self._running) < self.threads:
                self.scheduler.add(work(next(self._numbers), 1 << 20), self.now)
                if (taken := self.scheduler.take(self.now)) is None:
                    break
                self.begun.append(taken)
                seconds = 1.0 + len(self._running) / self.threads if taken.decoded else 0.1
                heapq.heappush(self._running, (self.now + seconds, next(self._numbers), taken))
            self.now, _, ended = heapq.heappop(self._running)
            self.scheduler.ended(ended, 1.0)
            self.scheduler.free(ended, self.now)


@pytest.mark.parametrize("threads", [2, 4, 16])
@pytest.mark.parametrize("ready", [ByArrival, lambda: ByTenant(60.0)], ids=["by arrival", "by tenant"])
def test_request_that_must_run_alone_waits_half_a_minute_and_a_call_at_most(threads, ready):
    pool = Threads(Scheduler("key", ready()), threads)
    pool.run(10.0)
    giant = work(0, 200 << 20)
    pool.scheduler.add(giant, pool.now)
    pool.run(10.0 + LONGEST_WAIT - 1.0)
    assert giant not in pool.begun, "nobody waits for it yet"
    pool.run(50.0)
    assert giant in pool.begun
    assert giant.started_at <= 10.0 + LONGEST_WAIT + 2 * 2.0
    before = len(pool.begun)
    pool.run(60.0)
    assert len(pool.begun) > before + 4 * threads, "the others go on once it has ended"


def test_small_requests_pass_one_that_waits_for_room_and_what_is_withdrawn_holds_nobody_up():
    scheduler = Scheduler("key")
    running, giant, large, small = work(1, 1 << 20), work(2, 200 << 20), work(3, 1 << 20), work(4, 0)
    scheduler.add(running, 0.0)
    assert scheduler.take(0.0) is running
    scheduler.add(giant, 0.0)
    assert scheduler.take(0.0) is None
    for each in (large, small):
        scheduler.add(each, 31.0)
    assert scheduler.take(31.0) is small
    assert scheduler.take(31.0) is None
    assert scheduler.queued == 2
    scheduler.withdraw(giant)
    assert scheduler.ended(running, 31.0)
    assert scheduler.take(31.0) is large


def test_preferred_request_passes_none_that_has_waited_for_room_for_long():
    scheduler = Scheduler("key")
    running, giant, large = work(1, 1 << 20), work(2, 200 << 20), work(3, 1 << 20)
    scheduler.add(running, 0.0)
    assert scheduler.take(0.0) is running
    scheduler.add(giant, 0.0)
    assert scheduler.take(0.0) is None
    scheduler.add(large, 31.0)
    assert scheduler.take(31.0, lambda each: each is giant) is None
    assert scheduler.ended(running, 31.0)
    assert scheduler.take(31.0, lambda each: each is giant) is giant
