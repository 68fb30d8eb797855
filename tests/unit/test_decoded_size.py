"""What values take once they are decoded, and how many of them may be there at once."""

from __future__ import annotations

import gc
import tracemalloc

import msgspec
import pytest

from gigaoffice_worker.core.decoded_size import LARGE, DecodedRoom, decode_at_once, decoded_size
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
    room = DecodedRoom(100)
    assert room.fits(500)
    room.take(500)
    assert not room.fits(1)
    assert room.fits(0)
    room.free(500)
    assert room.fits(1)


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
